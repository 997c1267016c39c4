"""Fixtures that several folders of tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zse_jax import tiny
from zse_jax.training import loop


@pytest.fixture(scope="module")
def tiny_system() -> Iterator[None]:
    """Registers the system `tiny` and its data for a module."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch.setattr)
        yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """The workdir of `tiny.config()`, trained without interruption. Copy it before changing it.

    It contains checkpoints 9 and 12, and the best one if that is earlier.
    """
    workdir = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch.setattr)
        loop.train(tiny.config(), workdir)
    return workdir
