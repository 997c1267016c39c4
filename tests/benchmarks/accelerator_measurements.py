"""What `accelerator.py` measures: rates of the device, encoding, relation scoring, training steps.

Rates are items per second. FLOP are counted by formula (`image_flop`), because XLA's count for GPUs
leaves out calls of cuBLAS and cuDNN; only CLIP-AT's and CMCA's training rely on it. A share divides
FLOP per second by the measured rate of matrix products in the same dtype (float32: at JAX's default
precision, which may use TF32 on GPUs).

Compilation takes most of the time, so programs are compiled together (`Bench.build`), ours in
parallel and PyTorch's one after the other beside them; then they are measured one by one.
"""

import functools
import importlib.util
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.benchmarks.accelerator_plan import Clock, Measurement, Row, Run, seconds_of
from tests.benchmarks.scoring import VARIANTS
from tests.benchmarks.systems import TINY, config_of, counts, noise
from tests.zse_jax.random_weights import drawn, drawn_state
from zse_jax import retrievers
from zse_jax.models import convolutions
from zse_jax.models.backbone import create_backbone
from zse_jax.models.clip import CLIP, CLIPSizes
from zse_jax.models.layers import normalise
from zse_jax.retrievers.base import evaluation_view
from zse_jax.retrievers.registry import SYSTEMS
from zse_jax.runtime import sharding
from zse_jax.training import profiling
from zse_jax.training import step as training_step

ENCODERS = {
    "ZSE B/16": "zse",
    "CLIP B/32": "clip",
    "ResNet-50": "resnet50",
    "DINOv2 B/14": "dinov2_vitb14",
    "DINOv2 S/14": "dinov2_vits14",
    "EfficientNet-Lite0": "efficientnet_lite0",
    "EfficientNet-Lite2": "efficientnet_lite2",
}
"""Title, also in `torch_networks.NETWORKS`, -> "zse", "clip" or a backbone."""

TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in SYSTEMS} | {
    "rbg zse": ("zse", {}),  # with another generator of random numbers, for dropout
    "efficient_cnn Lite0": (
        "efficient_cnn",
        # The last two are of ResNets, and must have their default values.
        {"model.backbone": "efficientnet_lite0", "model.depths": (3, 4, 6, 3), "model.width": 64},
    ),
}
"""Title -> system, and values of its config."""

LAYERS = {
    "112x112x96 k3 s2": (112, 96, 3, 2),
    "56x56x144 k3 s1": (56, 144, 3, 1),
    "14x14x672 k5 s1": (14, 672, 5, 1),
}
"""Depthwise convolutions of EfficientNet-Lite0: side, channels, kernel, stride."""


class Prepared(NamedTuple):
    """A compiled program with arrays on the device, and the items and FLOP of a call."""

    run: Run
    items: int
    flops: float
    compiled: Any


@dataclass
class Bench:
    """Settings of the measurements, the compiled programs, and what later measurements use.

    Attributes:
      tiny: small networks and arrays, to try the program out on a CPU.
      torch: whether PyTorch is measured too, if it is installed.
      encode: images per encoding call.
      tiles: sides of the tiles of sketches and photos.
      batches: images per training step.
      rounds, least: measured rounds of each side, and their seconds.
      profiled: number of programs of which a profile is written.
      rates: dtype -> FLOP/s of matrix products.
      programs: name -> a program that is compiled or being compiled.
      slow: (share, title, program) of what was measured, for profiles.
    """

    tiny: bool = False
    torch: bool = True
    encode: int = 256
    tiles: Sequence[int] = (64, 128, 256)
    batches: Sequence[int] = (256,)
    rounds: int = 3
    least: float = 0.3
    profiled: int = 2
    rates: dict[str, float] = field(default_factory=dict)
    programs: dict[str, Future] = field(default_factory=dict)
    slow: list[tuple[float, str, Prepared]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Leaves PyTorch out where it is not installed; the tiny sizes."""
        self.torch = self.torch and importlib.util.find_spec("torch") is not None
        if self.tiny:
            self.encode, self.tiles, self.batches = 2, (2,), (2,)
            self.rounds, self.least = 1, 0.0

    def rate_of(self, dtype: str) -> float:
        """FLOP/s of matrix products; measured on first use."""
        if dtype not in self.rates:
            size = 256 if self.tiny else None
            self.rates[dtype] = profiling.matrix_rate(dtype, size, count=4 if self.tiny else 50)
        return self.rates[dtype]

    def build(self, builds: Mapping[str, Callable[[], Any]], left: Clock) -> Row:
        """Compiles programs, at the same time, and waits for them while time is left.

        Those of PyTorch, whose names start with "torch", run in one thread: it compiles one at a
        time. Their errors are raised where the programs are used. The threads are daemons: a
        compilation that hangs does not keep the benchmark from ending.
        """
        queues = [[name] for name in builds if not name.startswith("torch")]
        if self.torch:
            queues.append([name for name in builds if name.startswith("torch")])
        names = [name for queue in queues for name in queue]
        self.programs |= {name: Future() for name in names}

        def work(queue: list[str]) -> None:
            for name in queue:
                try:
                    self.programs[name].set_result(builds[name]())
                except BaseException as error:  # raised by `result`
                    self.programs[name].set_exception(error)

        for queue in queues:
            threading.Thread(target=work, args=(queue,), daemon=True).start()
        late = wait([self.programs[name] for name in names], max(1.0, left() - 10)).not_done
        return {"note": f"{len(names)} programs" + (f", {len(late)} not in time" if late else "")}

    def result(self, name: str) -> Any:
        """A program of `build`, which is then dropped.

        Raises:
          TimeoutError: it was not compiled in time.
          Exception: of its compilation.
        """
        program = self.programs.pop(name, None)
        if program is None or not program.done():
            raise TimeoutError("its program was not compiled in time")
        return program.result()

    def compared(self, row: Row, title: str, dtype: str, ours: Prepared, name: str) -> Row:
        """Adds rate and share of a program, and the rate of PyTorch's, measured in turn.

        Args:
          row: what is known.
          title: of the measurement.
          dtype: of activations.
          ours: the program.
          name: of PyTorch's program, a `Run` and its items.
        """
        runs, items = {"ours": ours.run}, 0
        if self.torch:
            try:
                runs["torch"], items = self.result(name)
            except Exception as error:  # our figure is still worth having
                row["note"] = f"PyTorch failed: {type(error).__name__}: {str(error)[:120]}"
        times = seconds_of(runs, self.rounds, self.least)
        row |= {"rate": ours.items / times["ours"], "seconds_per_call": times["ours"]}
        row["items_per_call"] = ours.items
        if ours.flops:
            row["flops_per_item"] = ours.flops / ours.items
            row["share"] = ours.flops / times["ours"] / self.rate_of(dtype)
        if "torch" in times and not self.tiny:  # its networks have their full size
            row["torch"] = items / times["torch"]
        if any(not program.done() for program in self.programs.values()):
            row["note"] = "TOO LOW: other programs were still being compiled"
        self.slow.append((row.get("share", 1.0), f"{title} {dtype}", ours))
        return row


def out_of_memory(error: Exception) -> bool:
    """Whether the error means that the arrays are too large."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def running(program: Callable[..., Any], *operands: Any) -> Run:
    """Calls a program several times, and waits for the last result."""

    def run(calls: int) -> None:
        result = None
        for _ in range(calls):
            result = program(*operands)
        jax.block_until_ready(result)

    return run


def matrix_rate(bench: Bench, dtype: str, left: Clock) -> Row:
    """TFLOP/s of matrix products."""
    return {"rate": bench.rate_of(dtype) / 1e12, "unit": "TFLOP/s"}


def copy_rate(bench: Bench, dtype: str, left: Clock) -> Row:
    """Bytes read and written per second by a program that changes each value of a large array."""
    count = 2**20 if bench.tiny else 2**30
    x = jnp.zeros(count // jnp.dtype(dtype).itemsize, dtype)
    change = jax.jit(lambda x: x + 1)
    time = seconds_of({"": running(change, x)}, bench.rounds, bench.least)[""]
    return {"rate": 2 * x.nbytes / time / 1e9, "unit": "GB/s"}


CNN_FLOP = {"efficientnet_lite0": 0.8197e9, "efficientnet_lite2": 1.2199e9, "resnet50": 7.987e9}
"""FLOP of an image of 224 pixels, by XLA's count of the program for CPUs with native convolutions.

XLA's count for GPUs leaves out calls of cuBLAS and cuDNN.
"""


def image_flop(name: str) -> float:
    """FLOP of an image: `CNN_FLOP`, or the matrix products of a Vision Transformer."""
    if name in CNN_FLOP:
        return CNN_FLOP[name]
    if name == "zse":
        return VARIANTS["B/16"].image_flop()
    patch, d = {"clip": (32, 768), "dinov2_vitb14": (14, 768), "dinov2_vits14": (14, 384)}[name]
    patches = (224 // patch) ** 2
    t = patches + 1
    return 12 * (24 * t * d * d + 4 * t * t * d) + 2 * patches * 3 * patch**2 * d


def training_flop(title: str) -> float:
    """FLOP of an image in training, three times the forward pass; 0 if there is no formula."""
    if title.endswith("zse"):
        sizes = VARIANTS["B/16"]
        # A sample of four images has two pairs.
        pair = 2 * sizes.projection_flop() + sizes.pair_flop()
        return 3 * (sizes.image_flop() + pair / 2)
    networks = {"efficient_cnn": "resnet50", "efficient_cnn Lite0": "efficientnet_lite0"}
    return 3 * CNN_FLOP[networks[title]] if title in networks else 0.0


def _network(name: str, dtype: str, tiny: bool) -> Any:
    rngs, kind = nnx.Rngs(params=0, dropout=1), jnp.dtype(dtype)
    if name == "zse":
        settings = TINY["zse"] if tiny else {}
        return retrievers.create({"system": "zse", **settings}, dtype=dtype, rngs=rngs)
    if name == "clip":
        sizes = TINY["clip_prompt"] if tiny else {}
        return CLIP(CLIPSizes(**sizes), dtype=kind, rngs=rngs)
    settings = {"depths": (1, 1), "width": 8} if tiny and name == "resnet50" else {}
    return create_backbone(name, settings, dtype=kind, rngs=rngs)


def _drawn(name: str, dtype: str, tiny: bool) -> tuple[Any, nnx.State]:
    model = drawn(functools.partial(_network, name, dtype, tiny))
    return nnx.split(evaluation_view(model))


def _encoded(model: Any, name: str, images: jax.Array) -> jax.Array:
    if name == "zse":
        return model.encode(images, "photo")
    if name == "clip":
        return model.encode_image(normalise(images, (0.5,) * 3, (0.5,) * 3))
    return model(normalise(images, model.mean, model.std))[0]


def _pixels(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def _side(name: str, tiny: bool) -> int:
    return 28 if tiny and name not in ("zse", "clip") else 224


def encoder(name: str, dtype: str, count: int, tiny: bool) -> Prepared:
    """The encoding of `count` uint8 images that are on the device."""
    graphdef, state = _drawn(name, dtype, tiny)
    images = jnp.asarray(_pixels(count, _side(name, tiny)))

    def encode(state: nnx.State, images: jax.Array) -> jax.Array:
        return _encoded(nnx.merge(graphdef, state), name, images)

    compiled = jax.jit(encode).lower(state, images).compile()
    flops = 0.0 if tiny else count * image_flop(name)
    return Prepared(running(compiled, state, images), count, flops, compiled)


def encoding(title: str, bench: Bench, dtype: str) -> Measurement:
    """Images per second of an encoder."""
    name, whole = ENCODERS[title], f"encoding {title}"

    def ours() -> Prepared:
        return encoder(name, dtype, bench.encode, bench.tiny)

    def torch() -> tuple[Run, int]:
        from tests.benchmarks import torch_networks

        size = 224 if title.startswith(("ZSE", "CLIP", "DINO")) else _side(name, bench.tiny)
        run = torch_networks.encoding(title, _pixels(bench.encode, size), dtype)
        return run, bench.encode

    keys = f"{whole} {dtype}", f"torch {whole} {dtype}"

    def run(left: Clock) -> Row:
        row = {"unit": "images/s", "batch": bench.encode}
        return bench.compared(row, whole, dtype, bench.result(keys[0]), keys[1])

    return Measurement(whole, dtype, 4, run, {keys[0]: ours, keys[1]: torch})


def tile(dtype: str, side: int, tiny: bool) -> Prepared:
    """ZSE's relation scores of `side` sketches with as many photos, from tokens on the device."""
    graphdef, state = _drawn("zse", dtype, tiny)
    width = TINY["zse"]["width"] if tiny else VARIANTS["B/16"].width
    tokens = jnp.asarray(np.random.default_rng(0).standard_normal((side, 197, width)), dtype)
    score = jax.jit(lambda state, q, g: nnx.merge(graphdef, state).score(q, g))
    compiled = score.lower(state, tokens, tokens).compile()
    # Not XLA's count, which counts the body of a loop once.
    flops = 0.0 if tiny else side**2 * VARIANTS["B/16"].pair_flop()
    return Prepared(running(compiled, state, tokens, tokens), side**2, flops, compiled)


def best_of(
    bench: Bench, names: Mapping[int, str], left: Clock
) -> tuple[int, Prepared, dict[str, float]]:
    """The fastest of some programs that fit in memory, by size, and all their rates."""
    rates: dict[int, float] = {}
    best: Prepared | None = None
    for size, name in names.items():
        if rates and left() <= 0:
            break
        try:
            some = bench.result(name)
            rate = some.items / seconds_of({"": some.run}, 1, bench.least)[""]
        except TimeoutError:
            continue
        except Exception as error:
            if not out_of_memory(error):
                raise
            continue
        if best is None or rate > max(rates.values()):
            best = some
        rates[size] = rate
    if best is None:
        raise TimeoutError("its programs were not compiled in time, or none fits in memory")
    size = max(rates, key=lambda size: rates[size])
    return size, best, {str(size): rate for size, rate in rates.items()}


def scoring(bench: Bench, dtype: str) -> Measurement:
    """Pairs per second at the best tile, and at each one that fits."""
    title = "scoring ZSE B/16"
    names = {side: f"{title} {side} {dtype}" for side in bench.tiles}
    other = f"torch {title} {dtype}"

    def torch() -> tuple[Run, int]:
        from tests.benchmarks import torch_networks

        pairs = 2 if bench.tiny else 256
        return torch_networks.relation(pairs, dtype), pairs

    def run(left: Clock) -> Row:
        side, best, rates = best_of(bench, names, left)
        row: Row = {"unit": "pairs/s", "tile": side, "tiles": rates}
        row = bench.compared(row, title, dtype, best, other)
        row.setdefault("note", f"tile {side} x {side}")
        return row

    builds: dict[str, Callable[[], Any]] = {
        name: functools.partial(tile, dtype, side, bench.tiny) for side, name in names.items()
    }
    return Measurement(title, dtype, 6, run, builds | {other: torch})


def trained(title: str, dtype: str, samples: int, tiny: bool) -> Prepared:
    """The compiled training step of `zse_jax.training.loop`; each call continues the training.

    Raises:
      jax.errors.JaxRuntimeError: if it does not fit in memory.
    """
    system, values = TRAININGS[title]
    config = config_of(system, tiny=tiny, compute_dtype=dtype, **values)
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    batch = jax.device_put(
        noise(system, samples, config.model.image_size), sharding.batch_sharding(mesh)
    )
    generator = jax.config.jax_default_prng_impl
    with jax.default_prng_impl("rbg" if title.startswith("rbg") else generator):
        setup = training_step.set_up(config, mesh)
        step, cost = profiling.compile_step(setup.step, setup.abstract, batch, 1)
        state = drawn_state(setup)

    def run(calls: int) -> None:
        nonlocal state
        losses = None
        for _ in range(calls):
            state, losses = step(state, batch)
        jax.block_until_ready(losses)

    images = samples * sum(counts(system))
    flops = 0.0 if tiny else images * training_flop(title)
    return Prepared(run, images, flops or cost.flops, step)


def training(title: str, bench: Bench, dtype: str) -> Measurement:
    """Images per second of a step at the best batch."""
    system, _ = TRAININGS[title]
    whole, each = f"training {title}", sum(counts(system))
    sizes = [max(2, images // each) for images in bench.batches]
    names = {samples: f"{whole} {samples} {dtype}" for samples in sizes}
    other = f"torch {whole} {dtype}"

    def torch() -> tuple[Run, int]:
        from tests.benchmarks import torch_networks

        if title not in torch_networks.TRAINED:
            raise LookupError("there is no baseline for this system")
        size = config_of(system, tiny=bench.tiny).model.image_size
        images = each * sizes[0]
        return torch_networks.training(title, _pixels(images, size), dtype), images

    def run(left: Clock) -> Row:
        samples, best, rates = best_of(bench, names, left)
        row: Row = {"unit": "images/s", "batch": samples, "batches": rates}
        row = bench.compared(row, whole, dtype, best, other)
        row.setdefault("note", f"{best.items} images a step")
        return row

    builds: dict[str, Callable[[], Any]] = {
        name: functools.partial(trained, title, dtype, samples, bench.tiny)
        for samples, name in names.items()
    }
    return Measurement(whole, dtype, 6, run, builds | {other: torch})


def depthwise(bench: Bench, dtype: str) -> Measurement:
    """Milliseconds of depthwise convolutions in XLA's native form, and as sums of shifted maps."""
    count, key, other = 2 if bench.tiny else 128, f"depthwise {dtype}", f"torch depthwise {dtype}"

    def ours() -> dict[str, dict[str, Run]]:
        runs: dict[str, dict[str, Run]] = {}
        for title, (side, channels, size, stride) in LAYERS.items():
            rng = np.random.default_rng(0)
            x = jnp.asarray(rng.standard_normal((count, side, side, channels)), dtype)
            kernel = jnp.asarray(rng.standard_normal((size, size, 1, channels)) / size, dtype)
            for form in (convolutions.native, convolutions.shifted):

                def forward(x, k, form=form, stride=stride):
                    return form(x, k, stride)

                def both(x, k, w, forward=forward):
                    y, back = jax.vjp(forward, x, k)
                    return y, back(w)

                w = jax.jit(forward)(x, kernel)
                for kind, program, operands in (
                    ("forward", forward, (x, kernel)),
                    ("with gradients", both, (x, kernel, w)),
                ):
                    compiled = jax.jit(program).lower(*operands).compile()
                    runs.setdefault(f"{title} {kind}", {})[form.__name__] = running(
                        compiled, *operands
                    )
        return runs

    def torch() -> dict[str, Run]:
        from tests.benchmarks import torch_networks

        return torch_networks.depthwise(LAYERS, count, dtype)

    def run(left: Clock) -> Row:
        runs, found = bench.result(key), {}
        try:
            theirs = bench.result(other) if bench.torch else {}
        except Exception:  # our figures are still worth having
            theirs = {}
        for name, forms in runs.items():
            sides = forms | ({"torch": theirs[name]} if name in theirs else {})
            times = seconds_of(sides, 1, bench.least / 6)
            found[name] = {form: 1e3 * time for form, time in times.items()}
        ratios = [times["native"] / times["shifted"] for times in found.values()]
        text = ", ".join(f"{ratio:.2g}" for ratio in ratios)
        return {"milliseconds": found, "images": count, "note": f"native / shifted: {text}"}

    return Measurement("depthwise", dtype, 4, run, {key: ours, other: torch})


def profiles(bench: Bench, folder: Path, dtype: str, left: Clock) -> Row:
    """Profiles of the programs with the smallest shares of the matrix rate, and their programs.

    Returns:
      By title, the operations that take the most time: name -> milliseconds of three calls.
    """
    found = {}
    for _, title, prepared in sorted(bench.slow, key=lambda item: item[0])[: bench.profiled]:
        if found and left() <= 0:
            break
        place = folder / "profiles" / title.replace(" ", "_").replace("/", "-")
        prepared.run(1)
        with jax.profiler.trace(str(place)):
            prepared.run(3)
        found[title] = operations(place)
        (place / "program.txt").write_text(prepared.compiled.as_text())
    return {"profiles": found, "note": "profiles: " + ", ".join(found)}


def operations(folder: Path, most: int = 30) -> dict[str, float]:
    """The operations of a profile that take the most time, in milliseconds."""
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        return {}
    data = jax.profiler.ProfileData.from_file(str(files[-1]))
    device = [plane for plane in data.planes if plane.name.startswith("/device:")]
    times: Counter[str] = Counter()
    for plane in device or data.planes:
        for line in plane.lines:
            if device and "XLA" in line.name and "Ops" not in line.name:
                continue  # the same time again, by module
            for event in line.events:
                part = dict(event.stats).get("hlo_op", "")
                times[f"{event.name[:80]} {part}".strip()] += event.duration_ns / 1e6
    return dict(times.most_common(most))


def plan(bench: Bench, folder: Path, dtypes: Sequence[str]) -> list[Measurement]:
    """Everything in the order of its worth; estimates are those of an H100, PyTorch included."""
    items = []
    for i, dtype in enumerate(dtypes):
        rates = (("matrix products", 5, matrix_rate), ("copy", 2, copy_rate))
        items += [
            Measurement(name, dtype, seconds, functools.partial(run, bench, dtype))
            for name, seconds, run in rates
        ]
        profile = functools.partial(profiles, bench, folder, dtype)
        items += [
            scoring(bench, dtype),
            encoding("ZSE B/16", bench, dtype),
            encoding("EfficientNet-Lite0", bench, dtype),
            training("zse", bench, dtype),
            training("rbg zse", bench, dtype),
            depthwise(bench, dtype),
            *([] if i else [Measurement("profile of the slowest", dtype, 10, profile)]),
            training("efficient_cnn Lite0", bench, dtype),
            encoding("CLIP B/32", bench, dtype),
            encoding("ResNet-50", bench, dtype),
            encoding("DINOv2 B/14", bench, dtype),
            encoding("EfficientNet-Lite2", bench, dtype),
            encoding("DINOv2 S/14", bench, dtype),
            *(training(title, bench, dtype) for title in SYSTEMS if title != "zse"),
        ]
    return items


def with_compilation(
    bench: Bench, items: Sequence[Measurement], size: int = 3
) -> list[Measurement]:
    """The plan with compilations of the programs of `size` measurements before them."""
    planned: list[Measurement] = []
    wave: list[Measurement] = []

    def close() -> None:
        if any(item.builds for item in wave):
            builds = {name: build for item in wave for name, build in item.builds.items()}
            run = functools.partial(bench.build, builds)
            planned.append(Measurement("compilation", wave[-1].dtype, 0, run))
        planned.extend(wave)
        wave.clear()

    for item in items:
        if wave and (item.dtype != wave[0].dtype or len(wave) == size):
            close()
        wave.append(item)
        if not item.builds:
            close()
    close()
    return planned
