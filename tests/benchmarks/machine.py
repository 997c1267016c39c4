"""What benchmarks share: a line about machine and versions, and timing of two sides in turn."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path


def describe(*packages: str) -> str:
    """Processor, usable cores, Python, and the versions of `packages`."""
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    processor = names[0] if names else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores; Python {platform.python_version()}, {versions}"


def alternate(sides: dict, rounds: int) -> dict[str, list[float]]:
    """Wall times of each side after a warm-up, in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if i:
                times[name].append(time.perf_counter() - started)
    return times
