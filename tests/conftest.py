"""Setup of all tests: eight virtual devices, runtime type checks, golden outputs, real images."""

import gc
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

gc.disable()  # Until everything is imported.

# Compiled modules are kept, also where the environment forbids it: each program that a test starts
# would compile the project again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Set before jax is imported, and inherited by the programs that tests start. The networks are
# small, so XLA's compilation takes more time than what it compiles: at optimization level 0 it
# takes less than half, and without fusion emitters (a flag that newer versions do not know) a
# quarter of that. The caller's XLA_FLAGS come last and override these.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Compiled programs are shared by the workers, by the programs that tests start, and by later runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Programs without the call stack of each operation: lowering takes a third less time.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")

# Data sets in TFDS's default folder are prepared once: `doodles` takes most of a minute.
os.environ.setdefault("TFDS_DATA_DIR", str(ROOT / ".cache" / "tensorflow_datasets"))

import hypothesis
import jax
import numpy as np
import orbax.checkpoint as ocp
import psutil
import pytest
from absl import flags
from jax._src.interpreters import partial_eval

from tests import checking

# A shell's background jobs ignore Ctrl-C, and programs that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Annotated shapes and types of the packages are checked at each call.
checking.install(["data_pipelines", "zse_jax"])

# Replicas that save in parallel compile a slice of each array for each device. One writes all here.
ocp.type_handlers.get_type_handler(jax.Array)._min_slice_bytes_for_replica_parallel = 2**20

# `nnx.Rngs` asks each traced counter for its sharding. That raises an AttributeError whose text,
# which is not used, prints all operations so far: half of the time of tracing a network.
partial_eval.DynamicJaxprTracer._origin_msg = lambda tracer: ""

# grain's worker processes read absl flags, which `app.run` parses in a program.
flags.FLAGS.mark_as_parsed()

# The same examples in every run, and no deadline: the first one includes compilation.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


_MEMORY = 3 * 2**30


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_that_fit() -> Iterator[None]:
    """Drops compiled programs after a module if the process uses more than `_MEMORY` bytes."""
    yield
    if psutil.Process().memory_info().rss > _MEMORY:
        jax.clear_caches()
        gc.collect()


def pytest_collection_finish() -> None:
    """Leaves what is imported out of garbage collection, which runs less often, too."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def warnings_of_the_project() -> Iterator[None]:
    """Undoes what a program that runs in a test sets: which warnings are logged."""
    yield
    for package in ("data_pipelines", "zse_jax"):
        logging.getLogger(package).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("zse")` reads the arrays of tests/golden/zse.npz; see tests/golden/README.md."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(ROOT / "tests" / "golden" / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def sketchy_folder() -> Path:
    """The Sketchy images: $SKETCHY_DIR, or `../shared/data/Sketchy` beside the checkout."""
    folder = Path(os.environ.get("SKETCHY_DIR", ROOT.parent / "shared" / "data" / "Sketchy"))
    if not folder.is_dir():
        pytest.skip(f"needs the Sketchy images; {folder} does not exist; set SKETCHY_DIR")
    return folder
