"""A new system is one file and one registry entry: every program then works with it."""

import functools
import json
import sys

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image, ImageDraw

import zse_jax
from tests.zse_jax import fourth_system, tiny
from tests.zse_jax.gallery.conftest import photo
from tests.zse_jax.test_convert import resnet_arrays, written
from zse_jax import convert, evaluate
from zse_jax.checkpoints import reading
from zse_jax.gallery import index, search
from zse_jax.retrievers import registry
from zse_jax.runtime import cli, sharding
from zse_jax.training import loop


def run(program, *arguments):
    """What `python -m PROGRAM ARGUMENTS` does, in this process."""
    options, argv = flags.FlagValues(), [program.__name__, *map(str, arguments)]
    program.define_flags(options, argv)
    program.main(options, *cli.parse(options, argv)[1:])


@pytest.fixture
def drawing(tmp_path):
    image = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), outline="black", width=3)
    image.save(tmp_path / "circle.png")
    return tmp_path / "circle.png"


@pytest.mark.slow
def test_a_fourth_system_is_converted_trained_evaluated_indexed_searched_and_explained(
    tmp_path, monkeypatch, drawing
):
    tiny.install(monkeypatch.setattr)
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)  # compiles faster than for eight devices
    systems = {**registry.SYSTEMS, fourth_system.NAME: fourth_system.ENTRY}
    monkeypatch.setattr(registry, "SYSTEMS", systems)
    monkeypatch.setitem(sys.modules, "configs.pooled", fourth_system)

    weights = written(tmp_path / "resnet.safetensors", resnet_arrays(seed=3))
    run(convert, weights, tmp_path / "converted", f"--system={fourth_system.NAME}")
    converted = zse_jax.load(tmp_path / "converted")
    assert isinstance(converted, fourth_system.Pooled)
    np.testing.assert_array_equal(
        converted.network.head.bias[...], resnet_arrays(seed=3)["fc.bias"]
    )

    config = fourth_system.get_config()
    config.init_from = str(tmp_path / "converted")
    results = loop.train(config, tmp_path / "run")
    assert reading.step_of(tmp_path / "run") in (0, 2)
    assert 0 < results["test"]["embedding/exact/mAP@all"] <= 1
    losses = [
        line["train/loss"]
        for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        if "train/loss" in line
    ]
    assert len(losses) == 2
    assert np.isfinite(losses).all()

    output = tmp_path / "metrics.json"
    run(evaluate, f"--checkpoint={tmp_path / 'run'}", f"--output={output}")
    measured = json.loads(output.read_text())
    assert measured["step"] == reading.step_of(tmp_path / "run")

    for number in range(5):
        photo(tmp_path / "album" / f"{number}.png", number)
    index.build([tmp_path / "album"], tmp_path / "index", tmp_path / "run")
    searcher = search.Searcher(index.open(tmp_path / "index"))
    found = searcher(drawing, k=3)
    assert len(found.hits) == 3
    explained = searcher.explain(found.sketch, found.hits[0])
    assert "Why photo 1" in explained.title

    zse_jax.save_pretrained(tmp_path / "run", tmp_path / "shared")
    assert fourth_system.ENTRY.paper in (tmp_path / "shared" / "README.md").read_text()
