"""Evaluation by two processes, each with its share of the images, gives what one process gives.

Run as a program, this file is one of the two: `python -m ... <port> <process>`.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SKETCH_LABELS, PHOTO_LABELS = np.arange(10) % 3, np.arange(24) % 3


def evaluate(process=0, processes=1, sharding=None):
    from tests.zse_jax.retrieval.fakes import batches, fake, images
    from zse_jax.retrieval.protocols import zero_shot

    def share(labels, seed):
        mine = slice(process, None, processes)
        return batches(images(len(labels), seed)[mine], labels[mine], size=8 // processes)

    retriever, sketches, photos = fake(), share(SKETCH_LABELS, 1), share(PHOTO_LABELS, 2)
    return zero_shot(retriever, sketches, photos, sharding=sharding)


def main(port, process):
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((4, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    result = evaluate(process, 2, sharding)
    print(
        "RESULT", json.dumps({"queries": result.queries, "gallery": result.gallery} | result.flat())
    )


@pytest.mark.slow
def test_two_processes_measure_what_one_measures():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(port), str(process)],
            cwd=Path(__file__).parents[3],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    one = evaluate()
    expected = {"queries": 10, "gallery": 24} | one.flat()
    for output in outputs:
        assert "RESULT" in output, output
        line = output.split("RESULT", 1)[1].splitlines()[0]
        assert json.loads(line) == pytest.approx(expected, abs=1e-6)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
