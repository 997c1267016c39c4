"""Fixtures that several folders of tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zse_jax import tiny
from tests.zse_jax.fake_hub import FakeHub, serving
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


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub on the loopback interface, which huggingface_hub uses, with an empty cache."""
    from huggingface_hub import constants

    with serving(tmp_path / "hub") as (hub, address):
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
