"""The photos and the index of the demo page."""

from types import SimpleNamespace

import numpy as np
import pytest

from zse_jax.gallery import demo, index

from .conftest import photo, written_checkpoint


def doodles(modality, classes, count=2):
    """A replacement for the prepared data set, with random images."""
    names = [f"{modality}/{name}/{number}.png" for name in classes for number in range(count)]
    labels = np.repeat(np.arange(len(classes)), count)
    return SimpleNamespace(
        names=names, rows=np.arange(len(names)), source=[b""] * len(names),
        by_class=lambda: [np.flatnonzero(labels == label) for label in range(len(classes))],
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_writes_its_photos_once_and_follows_its_checkpoint(zse, tmp_path, monkeypatch):
    items = doodles("photo", ["cat", "dog", "eel"])
    items.source = [
        photo(tmp_path / f"source/{row}.png", row).read_bytes() for row in range(len(items.rows))
    ]
    monkeypatch.setattr(demo.loading, "load_items", lambda *_: items)
    where = demo.build(zse, tmp_path / "demo")
    file = tmp_path / "demo/photos/cat/0.png"
    assert index.open(where).photos == 6
    written = file.stat().st_mtime_ns
    demo.build(zse, tmp_path / "demo", per_class=1)
    assert file.stat().st_mtime_ns == written
    assert index.open(where).photos == 6
    other = written_checkpoint(tmp_path / "other", seed=3)
    assert index.open(demo.build(other, tmp_path / "demo")).step == 3
