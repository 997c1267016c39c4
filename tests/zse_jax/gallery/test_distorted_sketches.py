"""Real sketches find what they draw although they are photographed, inverted, ruled or scanned."""

import pytest

from tests.benchmarks.distorted_sketches import DISTORTIONS, precision
from zse_jax.gallery import index, search

CLASSES = "airplane", "bell", "bicycle", "cup", "giraffe", "guitar", "scissors", "windmill"
SKETCHES = 4  # of each class


@pytest.mark.slow
def test_a_distorted_sketch_loses_at_most_a_tenth_of_its_photos(sketchy_folder, tmp_path):
    photos = [sketchy_folder / "256x256/photo/tx_000000000000_ready" / name for name in CLASSES]
    index.build(photos, tmp_path / "index")
    searcher = search.Searcher(index.open(tmp_path / "index"))
    folders = [sketchy_folder / "256x256/sketch/tx_000000000000_ready" / name for name in CLASSES]
    sketches = [file for folder in folders for file in sorted(folder.iterdir())[:SKETCHES]]
    found = {name: precision(searcher, sketches, made) for name, made in DISTORTIONS.items()}
    print({name: round(100 * value, 1) for name, value in found.items()})
    assert found["clean"] > 0.6
    assert all(value >= 0.9 * found["clean"] for value in found.values()), found
