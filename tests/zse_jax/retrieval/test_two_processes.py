"""Two processes, each with its share of the images, return the results of one process.

Run as a program, this file is one of the two: `python -m ... <port> <process> <folder>`.
"""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SKETCH_LABELS, PHOTO_LABELS = np.arange(10) % 3, np.arange(24) % 3


def share(labels, seed, process, processes):
    """Batches of one process: together, all processes have all images in order."""
    from tests.zse_jax.retrieval.fakes import batches, images

    result, size = [], 8 // processes
    for batch in batches(images(len(labels), seed), labels):
        mine = slice(process * size, (process + 1) * size)
        result.append({name: array[mine] for name, array in batch.items()})
    return result


def evaluate(process=0, processes=1, sharding=None):
    from tests.zse_jax.retrieval.fakes import fake
    from zse_jax.retrieval.protocols import zero_shot

    sketches = share(SKETCH_LABELS, 1, process, processes)
    photos = share(PHOTO_LABELS, 2, process, processes)
    return zero_shot(fake(), sketches, photos, sharding=sharding)


def two_stage(folder, process=0, processes=1, sharding=None):
    """Ranks by two stages, from features encoded onto disk (interrupted once) and the devices."""
    from tests.zse_jax.retrieval.fakes import fake
    from zse_jax.retrieval.encoding import encode, fingerprint
    from zse_jax.retrieval.storage import Storage
    from zse_jax.retrieval.two_stage import two_stage_blocks

    def interrupted():
        yield from photos
        raise InterruptedError

    retriever = fake()
    retriever.serial = -1  # The count of fakes made so far differs between the processes.
    sketches = share(SKETCH_LABELS, 1, process, processes)
    photos = share(PHOTO_LABELS, 2, process, processes)
    result = {"fingerprint": fingerprint(retriever)}
    disk = Storage("disk", folder=f"{folder}/{process}-of-{processes}", key="drawn")
    with contextlib.suppress(InterruptedError):
        encode(
            retriever,
            Sized(interrupted, len(photos)),
            "photo",
            sharding=sharding,
            storage=disk,
        )
    record = Path(disk.folder) / "photo" / "record.json"
    if process:  # The processes resume from what all of them have finished.
        text = json.loads(record.read_text()) | {"finished": 1, "items": 8}
        record.write_text(json.dumps(text))
    for where in (disk, Storage("device")):
        options = {"sharding": sharding, "storage": where}
        features = [
            encode(retriever, batches, modality, **options)[0]
            for batches, modality in ((sketches, "sketch"), (photos, "photo"))
        ]
        for k in (5, 24):
            blocks = two_stage_blocks(retriever, *features, k, sharding=sharding)
            ranks = [np.asarray(values) for _, values in blocks]
            result[f"{where.where}, {k}"] = np.concatenate(ranks).tolist()
    return result


class Sized:
    """A generator with a known length."""

    def __init__(self, generator, length):
        self.generator, self.length = generator, length

    def __iter__(self):
        return self.generator()

    def __len__(self):
        return self.length


def main(port, process, folder):
    gc.disable()  # a fifth of the time of such a short program
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((4, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    result = evaluate(process, 2, sharding)
    values = {"queries": result.queries, "gallery": result.gallery} | result.flat()
    ranks = two_stage(folder, process, 2, sharding)
    print("RESULT", json.dumps({"evaluation": values, "two-stage": ranks}))


@pytest.mark.slow
def test_two_processes_return_the_results_of_one(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(port), str(process), tmp_path],
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
    one, ranks = evaluate(), two_stage(tmp_path)
    expected = {"queries": 10, "gallery": 24} | one.flat()
    for output in outputs:
        assert "RESULT" in output, output
        line = output.split("RESULT", 1)[1].splitlines()[0]
        found = json.loads(line)
        assert found["evaluation"] == pytest.approx(expected, abs=1e-6)
        assert found["two-stage"] == ranks


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
