"""ZSE on the map of a CNN through the programs: trained, ranked in two stages, explained."""

import functools
import json

import jax
import numpy as np
import pytest

import zse_jax
from tests.zse_jax import tiny
from tests.zse_jax.gallery.conftest import photo
from tests.zse_jax.retrievers.test_zse_hybrid import HYBRID, narrow  # noqa: F401 (a fixture)
from tests.zse_jax.test_fourth_system import drawing, run  # noqa: F401 (a fixture)
from zse_jax import main
from zse_jax.explain import __main__ as explain
from zse_jax.runtime import sharding


@pytest.mark.slow
def test_the_recipe_trains_ranks_in_two_stages_and_explains(
    tmp_path,
    monkeypatch,
    drawing,  # noqa: F811 (the fixture)
):
    tiny.install(monkeypatch.setattr)
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)  # compiles faster than for eight devices
    settings = {f"model.{key}": value for key, value in HYBRID.items() if key != "system"} | {
        "data.name": "doodles", "data.split": "doodles", "init_from": "random",
        "train.steps": 2, "train.batch_size": 4, "optimizer.warmup_steps": 0,
        "evaluation.every": 0, "evaluation.batch_size": 8, "evaluation.expansion": 3,
        "evaluation.shortlists": "(5,)", "evaluation.test_sketch_stride": 2,
        "log.every": 1, "log.tensorboard": False,
    }  # fmt: skip
    run(
        main,
        "--config=configs/sketchy_split2.py:hybrid",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert zse_jax.load(tmp_path / "run").frozen_blocks == 2
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert {name.partition("/")[0] for name in measured} == {
        "token", "token+expansion", "relation", "relation@5", "relation@5+expansion"
    }  # fmt: skip

    for number in range(2):
        photo(tmp_path / "album" / f"{number}.png", number)
    photos, why = f"--photos={tmp_path / 'album'}", tmp_path / "why"
    checkpoint = f"--checkpoint={tmp_path / 'run'}"
    run(explain, checkpoint, f"--sketch={drawing}", photos, f"--output={why}", "--top=1")
    assert "relation network" in (why / "index.html").read_text()
