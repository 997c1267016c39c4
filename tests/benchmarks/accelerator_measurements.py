"""What `accelerator.py` measures: rates of the device, encoding, relation scoring, training steps.

Rates are items per second. FLOP are XLA's count of the program, for relation scores those of
`scoring.Variant.pair_flop`; a share divides FLOP per second by the measured rate of matrix products
in the same dtype (float32: at JAX's default precision, which may use TF32 on GPUs).
"""

import functools
import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.benchmarks.accelerator_plan import Clock, Measurement, Row, seconds_of
from tests.benchmarks.scoring import VARIANTS
from tests.benchmarks.systems import TINY, config_of, counts, noise
from zse_jax import retrievers
from zse_jax.models.backbone import create_backbone
from zse_jax.models.clip import CLIP, CLIPSizes
from zse_jax.models.layers import normalise
from zse_jax.retrievers.base import evaluation_view
from zse_jax.retrievers.registry import SYSTEMS
from zse_jax.runtime import sharding
from zse_jax.training import profiling
from zse_jax.training import step as training_step

Run = Callable[[], None]
"""Runs and waits for the result."""

ENCODERS = {
    "ZSE B/16": "zse",
    "EfficientNet-Lite0": "efficientnet_lite0",
    "CLIP B/32": "clip",
    "ResNet-50": "resnet50",
    "DINOv2 B/14": "dinov2_vitb14",
    "DINOv2 S/14": "dinov2_vits14",
    "EfficientNet-Lite2": "efficientnet_lite2",
}
"""Title, also in `torch_networks.NETWORKS`, -> "zse", "clip" or a backbone."""


class Prepared(NamedTuple):
    """A compiled program on arrays on the device, and the items and FLOP of a call."""

    run: Run
    items: int
    flops: float


@dataclass
class Bench:
    """Settings of the measurements, and the rates that later ones are compared with.

    Attributes:
      tiny: small networks and arrays, to try the program out on a CPU.
      torch: whether PyTorch is measured too, if it is installed.
      encode: images per encoding call.
      tiles: sides of the tiles of sketches and photos.
      batches: samples per training step, ascending.
      rounds, least: measured rounds of each side, and their seconds.
      rates: dtype -> FLOP/s of matrix products.
      slow: (share, title, program) of what was measured, for profiles.
    """

    tiny: bool = False
    torch: bool = True
    encode: int = 256
    tiles: Sequence[int] = (64, 128, 256)
    batches: Sequence[int] = (16, 32, 64, 128)
    rounds: int = 3
    least: float = 0.3
    rates: dict[str, float] = field(default_factory=dict)
    slow: list[tuple[float, str, Callable[[], Prepared]]] = field(default_factory=list)

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

    def compared(
        self, row: Row, ours: Prepared, dtype: str, torch: Callable[[], tuple[Run, int]]
    ) -> Row:
        """Adds rate and share of a program, and the rate of PyTorch, measured in turn.

        `torch` returns a program, which may fail to compile, and its items.
        """
        runs, items = {"ours": ours.run}, 0
        if self.torch:
            try:
                runs["torch"], items = torch()
            except Exception as error:  # our figure is still worth having
                row["note"] = f"PyTorch failed: {type(error).__name__}: {str(error)[:120]}"
        times = seconds_of(runs, self.rounds, self.least)
        row["rate"] = ours.items / times["ours"]
        if ours.flops:
            row["flops_per_item"] = ours.flops / ours.items
            row["share"] = ours.flops / times["ours"] / self.rate_of(dtype)
        if "torch" in times and not self.tiny:  # its networks have their full size
            row["torch"] = items / times["torch"]
        return row


def out_of_memory(error: Exception) -> bool:
    """Whether the error means that the arrays are too large."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def matrix_rate(bench: Bench, dtype: str, left: Clock) -> Row:
    """TFLOP/s of matrix products."""
    return {"rate": bench.rate_of(dtype) / 1e12, "unit": "TFLOP/s"}


def copy_rate(bench: Bench, dtype: str, left: Clock) -> Row:
    """Bytes read and written per second by a program that changes each value of a large array."""
    count = 2**20 if bench.tiny else 2**30
    x = jnp.zeros(count // jnp.dtype(dtype).itemsize, dtype)
    change = jax.jit(lambda x: x + 1)
    time = seconds_of({"": lambda: jax.block_until_ready(change(x))}, bench.rounds, bench.least)[""]
    return {"rate": 2 * x.nbytes / time / 1e9, "unit": "GB/s"}


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
    create = jax.jit(lambda: nnx.state(_network(name, dtype, tiny)))
    graphdef = nnx.graphdef(
        evaluation_view(nnx.eval_shape(functools.partial(_network, name, dtype, tiny)))
    )
    images = jnp.asarray(_pixels(count, _side(name, tiny)))

    def encode(state: nnx.State, images: jax.Array) -> jax.Array:
        return _encoded(nnx.merge(graphdef, state), name, images)

    state = create()
    compiled, cost = profiling.compile_step(jax.jit(encode), state, images, 1)
    return Prepared(lambda: jax.block_until_ready(compiled(state, images)), count, cost.flops)


def encoding(title: str, bench: Bench, dtype: str, left: Clock) -> Row:
    """Images per second of an encoder."""
    name = ENCODERS[title]
    build = functools.partial(encoder, name, dtype, bench.encode, bench.tiny)
    ours = build()

    def torch() -> tuple[Run, int]:
        from tests.benchmarks import torch_networks

        size = 224 if title.startswith(("ZSE", "CLIP", "DINO")) else _side(name, bench.tiny)
        run = torch_networks.encoding(title, _pixels(bench.encode, size), dtype)
        return run, bench.encode

    row = bench.compared({"unit": "images/s", "batch": bench.encode}, ours, dtype, torch)
    bench.slow.append((row.get("share", 1.0), f"encoding {title} {dtype}", build))
    return row


def tile(dtype: str, side: int, tiny: bool) -> Prepared:
    """ZSE's relation scores of `side` sketches with as many photos, from tokens on the device."""
    graphdef = nnx.graphdef(
        evaluation_view(nnx.eval_shape(functools.partial(_network, "zse", dtype, tiny)))
    )
    state = jax.jit(lambda: nnx.state(_network("zse", dtype, tiny)))()
    width = TINY["zse"]["width"] if tiny else VARIANTS["B/16"].width
    tokens = jax.random.normal(jax.random.key(0), (side, 197, width), dtype)
    score = jax.jit(lambda state, q, g: nnx.merge(graphdef, state).score(q, g))
    # Not XLA's count, which counts the body of a loop once.
    flops = 0.0 if tiny else side**2 * VARIANTS["B/16"].pair_flop()
    return Prepared(lambda: jax.block_until_ready(score(state, tokens, tokens)), side**2, flops)


def scoring(bench: Bench, dtype: str, left: Clock) -> Row:
    """Pairs per second at the best tile, and at each one that fits."""
    rates: dict[int, float] = {}
    for side in bench.tiles:
        if rates and left() <= 0:
            break
        try:
            some = tile(dtype, side, bench.tiny)
            rates[side] = some.items / seconds_of({"": some.run}, 1, bench.least)[""]
        except Exception as error:
            if not rates or not out_of_memory(error):
                raise
            break
    side = max(rates, key=lambda side: rates[side])
    build = functools.partial(tile, dtype, side, bench.tiny)
    best = build()

    def torch() -> tuple[Run, int]:
        from tests.benchmarks import torch_networks

        pairs = 2 if bench.tiny else 256
        return torch_networks.relation(pairs, dtype), pairs

    row: Row = {"unit": "pairs/s", "tiles": {str(side): rate for side, rate in rates.items()}}
    row = bench.compared(row, best, dtype, torch)
    row.setdefault("note", f"tile {side} x {side}")
    bench.slow.append((row.get("share", 1.0), f"scoring {dtype}", build))
    return row


def trained(system: str, dtype: str, samples: int, tiny: bool) -> Prepared:
    """The compiled training step of `zse_jax.training.loop`; each call continues the training.

    Raises:
      jax.errors.JaxRuntimeError: if it does not fit in memory.
    """
    config = config_of(system, tiny=tiny, compute_dtype=dtype)
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    setup = training_step.set_up(config, mesh)
    batch = jax.device_put(
        noise(system, samples, config.model.image_size), sharding.batch_sharding(mesh)
    )
    step, cost = profiling.compile_step(setup.step, setup.abstract, batch, 1)
    state = setup.init()

    def run() -> None:
        nonlocal state
        state, losses = step(state, batch)
        jax.block_until_ready(losses)

    run()
    return Prepared(run, samples * sum(counts(system)), cost.flops)


def training(system: str, bench: Bench, dtype: str, left: Clock) -> Row:
    """Images per second of a step at the best batch.

    The batch doubles while the rate grows by at least 3 %, memory suffices, and time is left.
    """
    best, batch, rates, last = None, 0, {}, left()
    for samples in bench.batches:
        took, last = last - left(), left()
        if rates and 2 * took > last:  # the step, and PyTorch's
            break
        try:
            some = trained(system, dtype, samples, bench.tiny)
            rate = some.items / seconds_of({"": some.run}, 1, bench.least)[""]
        except Exception as error:
            if not rates or not out_of_memory(error):
                raise
            break
        grown = not rates or rate > 1.03 * max(rates.values())
        rates[samples] = rate
        if not grown:
            break
        best, batch = some, samples
    assert best is not None  # the first batch either fits or raises
    size = config_of(system, tiny=bench.tiny).model.image_size

    def torch() -> tuple[Run, int]:
        from tests.benchmarks import torch_networks

        if system not in torch_networks.TRAINED:
            raise LookupError("there is no baseline for this system")
        return torch_networks.training(system, _pixels(best.items, size), dtype), best.items

    row: Row = {"unit": "images/s", "batch": batch}
    row["batches"] = {str(samples): rate for samples, rate in rates.items()}
    row = bench.compared(row, best, dtype, torch)
    row.setdefault("note", f"{best.items} images a step")
    build = functools.partial(trained, system, dtype, batch, bench.tiny)
    bench.slow.append((row.get("share", 1.0), f"training {system} {dtype}", build))
    return row


def profiles(bench: Bench, folder: Path, dtype: str, left: Clock) -> Row:
    """Profiles of the two programs with the smallest shares of the matrix rate.

    Returns:
      By title, the operations that take the most time: name -> milliseconds of three calls.
    """
    found = {}
    for _, title, build in sorted(bench.slow, key=lambda item: item[0])[:2]:
        if found and left() <= 0:
            break
        place = folder / "profiles" / title.replace(" ", "_").replace("/", "-")
        prepared = build()
        prepared.run()
        with jax.profiler.trace(str(place)):
            for _ in range(3):
                prepared.run()
        found[title] = operations(place)
    return {"profiles": found, "note": "profiles: " + ", ".join(found)}


def operations(folder: Path, most: int = 15) -> dict[str, float]:
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
                times[event.name[:80]] += event.duration_ns / 1e6
    return dict(times.most_common(most))


def plan(bench: Bench, folder: Path, dtypes: Sequence[str]) -> list[Measurement]:
    """Everything in the order of its worth; estimates are those of an H100, PyTorch included."""
    items = []
    for i, dtype in enumerate(dtypes):

        def add(name: str, seconds: float, run: Callable[..., Row], dtype: str = dtype) -> None:
            items.append(Measurement(name, dtype, seconds, functools.partial(run, bench, dtype)))

        add("matrix products", 5, matrix_rate)
        add("copy", 2, copy_rate)
        add("scoring ZSE B/16", 40, scoring)
        add("encoding ZSE B/16", 30, functools.partial(encoding, "ZSE B/16"))
        add("training zse", 90, functools.partial(training, "zse"))
        for title in list(ENCODERS)[1:]:
            add(f"encoding {title}", 25, functools.partial(encoding, title))
        if not i:  # before the other dtype
            run = functools.partial(profiles, bench, folder)
            items.append(
                Measurement("profile of the two slowest", dtype, 25, functools.partial(run, dtype))
            )
        for system in SYSTEMS:
            if system != "zse":
                add(f"training {system}", 60, functools.partial(training, system))
    return items
