"""Relation scoring and encoding on this machine, relative to its matrix-product rate.

    python -m tests.benchmarks.scoring [--variant=B/16] [--dtype=float32] [--sketches=16]
        [--photos=32] [--rounds=4] [--no-torch]

All sides run in turn, round after round, so that a busy machine disturbs them equally; medians are
printed. Shares of the matrix-product rate are given by wall time and by CPU time: CPU time is more
reliable on a shared machine, and meaningless on an accelerator.

Needs jax, flax, jaxtyping, ml_collections, psutil and tqdm. With the `torch` package, also measures
a PyTorch network of equal arithmetic that projects both images of every pair, as the published code
does (on the CPU).

Only operations that depend on the pair are counted, as in `pair_flop` (2.25 GFLOP for B/16).
"""

import argparse
import functools
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.benchmarks.machine import describe
from zse_jax.models.relation_network import AnchorMap
from zse_jax.retrieval import scoring
from zse_jax.retrievers.zse import ZSE

TOKENS, IMAGE, ANCHORS, ANCHOR_WIDTH = 197, 224, 49, 512
PRODUCTS = "float32", "bfloat16", "int8"  # of matrices, for comparison
POOLED = 1 + ANCHORS  # tokens of `ZSE.with_pooled_tokens`

# Sketches and photos of the full test sets.
BENCHMARKS = {
    "Sketchy split 1": (15_229, 17_101),
    "Sketchy split 2": (12_694, 12_553),
    "TU-Berlin": (2_400, 27_989),
    "QuickDraw": (92_291, 54_151),
}


class Variant(NamedTuple):
    """Sizes of a network."""

    width: int
    heads: int
    mlp: int
    cross_heads: int
    cross_mlp: int
    scale_channels: int

    def build(self, dtype: str, anchor_map: AnchorMap = "published") -> ZSE:
        """The network, in evaluation mode."""
        model = ZSE(
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp,
            cross_heads=self.cross_heads,
            cross_mlp_width=self.cross_mlp,
            scale_channels=self.scale_channels,
            anchor_map=anchor_map,
            dtype=jnp.dtype(dtype),
            rngs=nnx.Rngs(params=0, dropout=1),
        )
        return nnx.view(model, deterministic=True)

    def pair_flop(self, tokens: int = TOKENS) -> float:
        """FLOP that depend on the pair, both directions; a multiply-add is 2."""
        d, t = self.width, tokens
        attention = 2 * t * t * d * 2
        layer = attention + 2 * t * d * d + 2 * t * d * self.cross_mlp * 2
        anchors = 2 * (tokens - 1) * d * ANCHOR_WIDTH
        relation = 2 * ANCHORS**2 * (ANCHOR_WIDTH + 343) + 2 * 343 * ANCHORS
        return 2 * (layer + anchors) + relation

    def projection_flop(self) -> float:
        """FLOP of query, key and value of one image."""
        return 3 * 2 * TOKENS * self.width**2

    def image_flop(self) -> float:
        """FLOP of encoding one image with 12 blocks."""
        d, t, c = self.width, TOKENS, self.scale_channels
        block = 2 * t * d * d * 4 + 4 * t * t * d + 4 * t * d * self.mlp
        scale = 2 * (112**2 * 147 * c + 56**2 * 18 * c**2 + 28**2 * 72 * c**2 + 196 * 36 * c * d)
        return 12 * block + 2 * 196 * 768 * d + scale


VARIANTS = {
    "B/16": Variant(768, 12, 3072, 8, 1024, 64),
    "Ti/16": Variant(192, 3, 768, 2, 256, 16),
}


def times(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Wall and CPU seconds [rounds, 2] of each side; one warm-up, then all in turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            if i:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.asarray(values) for name, values in seconds.items()}


def matrix_products(dtype: str) -> tuple[Callable[[], object], float]:
    """Products of square matrices on the device, and their FLOP. Of int8, the sums are int32."""
    accelerator = jax.default_backend() != "cpu"
    size, count = (8192, 50) if accelerator else (2048, 20)
    scale, sums = (100, "int32") if dtype == "int8" else (1, dtype)
    a, b = (
        (scale * jax.random.normal(jax.random.key(i), (size, size)) / size**0.5).astype(dtype)
        for i in range(2)
    )

    @jax.jit
    def run(a, b):
        def product(_, x):
            return jax.lax.dot(x, b, preferred_element_type=sums).astype(dtype)

        return jax.lax.fori_loop(0, count, product, a)

    return functools.partial(run, a, b), 2 * size**3 * count


def jitted(model: ZSE, method: Callable, *operands: jax.Array) -> Callable[[], object]:
    """A method of the model on operands, compiled."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, *operands: method(nnx.merge(graphdef, state), *operands))
    compiled = run.lower(state, *operands).compile()
    return functools.partial(compiled, state, *operands)


def torch_pairs(variant: Variant, count: int) -> Callable[[], object]:
    """The published method with one thread per core: projects both images of each pair."""
    import torch

    from tests.benchmarks.torch_zse import TorchRelation

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = TorchRelation(
        variant.width, variant.cross_heads, variant.cross_mlp, ANCHOR_WIDTH
    ).eval()
    sketches, photos = (torch.randn(count, TOKENS, variant.width) for _ in range(2))

    @torch.inference_mode()
    def run():
        network(sketches, photos)

    return run


class Fake(ZSE):
    """ZSE's features without its network: measures tiles, transfers and blocks alone."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.image_size = IMAGE
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (8,)))

    def score(self, sketches, photos):
        """Products of a few features."""
        return (sketches[:, 1, :8] * self.weight[...]) @ photos[:, 1, :8].T


def memory(queries: int, gallery: int, devices: int, width: int, folder: str) -> None:
    """Scores memory-mapped features of Ti/16 by `Fake` and prints the process's peak memory."""

    def features(name: str, items: int) -> np.ndarray:
        shape = (items, TOKENS, width)
        made = np.memmap(Path(folder, name), np.float32, "w+", shape=shape)
        # A sparse file: pages that were never written are read as zeros and still use memory.
        made.flush()
        return np.memmap(made.filename, np.float32, "r", shape=shape)

    sharding = None
    if devices > 1:
        mesh = jax.make_mesh((2, devices // 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
        sharding = NamedSharding(mesh, PartitionSpec(("a", "b")))
    operands = Fake(rngs=nnx.Rngs(0)), features("s", queries), features("p", gallery), "relation"
    started = time.perf_counter()
    for _ in scoring.similarity_blocks(*operands, sharding=sharding):
        pass
    seconds = time.perf_counter() - started
    # Not getrusage: there a process starts with the peak of its parent.
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak) / 2**20, seconds)


def peak(queries: int, gallery: int, devices: int = 1) -> tuple[float, float]:
    """Peak memory in GB and seconds of `memory` in a process of its own."""
    import tempfile

    flags = f"--xla_force_host_platform_device_count={devices}"
    with tempfile.TemporaryDirectory() as folder:
        call = f"memory({queries}, {gallery}, {devices}, {VARIANTS['Ti/16'].width}, {folder!r})"
        run = subprocess.run(
            [sys.executable, "-c", f"from tests.benchmarks.scoring import *; {call}"],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        raise RuntimeError(run.stderr)
    gigabytes, seconds = map(float, run.stdout.split()[-2:])
    return gigabytes, seconds


class Side(NamedTuple):
    """One measurement: `count` pairs or images, `flop` each."""

    title: str
    run: Callable[[], object]
    count: int
    flop: float


def sides_of(variant: Variant, options: argparse.Namespace) -> dict[str, Side]:
    """Our tile, its baselines, and encoding."""
    model, dtype = variant.build(options.dtype), options.dtype
    few = min(8 if jax.default_backend() == "cpu" else 128, options.photos)
    sketches, photos = (
        jax.random.normal(jax.random.key(i), (n, TOKENS, variant.width), dtype)
        for i, n in enumerate((options.sketches, options.photos))
    )
    images = jax.random.randint(jax.random.key(3), (options.images, IMAGE, IMAGE, 3), 0, 256)
    one = jnp.broadcast_to(sketches[:1], (few, *sketches.shape[1:]))

    def projected(model, sketches, photos):
        return model.pairs(sketches, photos).score

    single = jitted(model, projected, one[:1], photos[:1])
    together = jitted(model, projected, one, photos[:few])
    pixels, flop = images.astype(jnp.uint8), variant.pair_flop()
    pooled = variant.build(dtype, "spatial").with_pooled_tokens()
    tile = f"ours, {options.sketches} sketches x {options.photos} photos"
    sides = {
        "tile": Side(
            tile, jitted(model, ZSE.score, sketches, photos), sketches.shape[0] * len(photos), flop
        ),
        "pooled": Side(
            "the same, means of 2 x 2 tokens (inexact)",
            jitted(pooled, ZSE.score, sketches[:, :POOLED], photos[:, :POOLED]),
            sketches.shape[0] * len(photos),
            variant.pair_flop(POOLED),
        ),
        "single": Side(
            "projected, pair by pair", lambda: [single() for _ in range(few)], few, flop
        ),
        "together": Side(f"projected, {few} together", together, few, flop),
        "encode": Side(
            f"encoding, {options.images} together",
            jitted(model, lambda m, x: m.encode(x, "photo"), pixels),
            options.images,
            variant.image_flop(),
        ),
    }
    if options.torch:
        title = f"PyTorch, projected, {few} together"
        sides["torch"] = Side(title, torch_pairs(variant, few), few, flop)
    return sides


def report(variant: Variant, options: argparse.Namespace) -> None:
    """Measures and prints pairs, images and projections."""
    sides = sides_of(variant, options)
    products = {dtype: matrix_products(dtype) for dtype in (options.dtype, *PRODUCTS)}
    seconds = times(
        {dtype: run for dtype, (run, _) in products.items()}
        | {name: side.run for name, side in sides.items()},
        options.rounds,
    )
    for dtype, (_, flop) in products.items():
        rates = flop / seconds[dtype][:, 0] / 1e9
        print(
            f"matrix products, {dtype}: {np.median(rates):.0f} GFLOP/s "
            f"({rates.min():.0f} to {rates.max():.0f} over {options.rounds} rounds)"
        )
    rates = products[options.dtype][1] / seconds[options.dtype]  # by wall and CPU seconds
    print(
        f"{variant.pair_flop() / 1e9:.3f} GFLOP a pair; not counted: "
        f"{variant.projection_flop() / 1e9:.3f} to project an image; "
        f"{variant.image_flop() / 1e9:.1f} GFLOP to encode one"
    )
    heads = ("ms each", "per s", "GFLOP/s", "share", "by CPU time", "x ours")
    print(f"{'':43}" + "".join(f"{head:>{max(9, len(head) + 2)}}" for head in heads))
    tile = seconds["tile"][:, 0] / sides["tile"].count
    for name, side in sides.items():
        each = seconds[name] / side.count
        # Round by round: other load on the machine disturbs both sides of a ratio.
        share, by_cpu = np.median(side.flop / each / rates, axis=0)
        slower = "" if name == "encode" else f"{np.median(each[:, 0] / tile):9.2f}"
        middle = np.median(each[:, 0])
        print(
            f"{side.title:43}{middle * 1e3:9.3f}{1 / middle:9.1f}"
            f"{side.flop / middle / 1e9:9.0f}{share:9.1%}{by_cpu:13.1%}{slower}"
        )
    if not options.torch:
        print("PyTorch: not measured (--no-torch, or the torch package is not installed)")
    print("projected for the full test sets, one such device:")
    pair, image = np.median(tile), np.median(seconds["encode"][:, 0]) / options.images
    for name, (q, g) in BENCHMARKS.items():
        encoding, scores = (q + g) * image / 3600, q * g * pair / 3600
        print(f"  {name:16}{q:7} x {g:6}: encoding {encoding:9.2f} h, scoring {scores:9.2f} h")


def growth(queries: int, gallery: int) -> None:
    """Prints peak memory and time as the task and the devices double."""
    item = VARIANTS["Ti/16"].width * TOKENS * 4
    print(
        "\nblocks, tiles and transfers without the network: Ti/16 features on disk, "
        f"{item / 1e6:.2f} MB an item"
    )
    print(f"{'sketches':>9}{'photos':>8}{'devices':>9}{'peak RSS':>10}{'seconds':>9}")
    for q, g, devices in (
        (queries, gallery, 1),
        (queries, 2 * gallery, 1),
        (2 * queries, gallery, 1),
        (queries, gallery, 2),
        (queries, gallery, 4),
    ):
        gigabytes, seconds = peak(q, g, devices)
        print(f"{q:9}{g:8}{devices:9}{gigabytes:7.2f} GB{seconds:9.1f}")


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    accelerator = jax.default_backend() != "cpu"
    small = (256, 256, 64) if accelerator else (16, 32, 4)
    parser.add_argument("--variant", choices=VARIANTS, default="B/16")
    parser.add_argument("--dtype", default="bfloat16" if accelerator else "float32")
    parser.add_argument("--sketches", type=int, default=small[0], help="of the tile")
    parser.add_argument("--photos", type=int, default=small[1], help="of the tile")
    parser.add_argument("--images", type=int, default=small[2], help="per encoding call")
    parser.add_argument("--rounds", type=int, default=4, help="counted runs of each side")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="ours only")
    parser.add_argument("--no-growth", action="store_true", help="skip memory and growth")
    parser.add_argument("--growth", type=int, nargs=2, default=(256, 5000), metavar=("Q", "G"))
    options = parser.parse_args()
    options.torch &= importlib.util.find_spec("torch") is not None
    print(describe("jax", "jaxlib", "flax", "numpy"))
    device = jax.devices()[0]
    kind = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    print(f"{kind}; {options.variant}, {options.dtype}")
    report(VARIANTS[options.variant], options)
    if not options.no_growth:
        growth(*options.growth)


if __name__ == "__main__":
    main()
