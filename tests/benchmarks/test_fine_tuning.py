"""Fine-tuning on an accelerator: changes of images, measures, the search, and all commands."""

import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zse_jax
from data_pipelines.loading import Items
from tests.benchmarks import fine_tuning
from tests.benchmarks.accelerator_measurements import CNN_FLOP
from tests.benchmarks.fine_tuning import Images, Run
from tests.benchmarks.test_accelerator import PROGRAM
from tests.source import ROOT
from tests.zse_jax.random_weights import drawn
from tests.zse_jax.small_systems import config
from zse_jax.evaluation import data_selection
from zse_jax.retrievers import create

SIDE = 16
CLASSES = ("bat", "cat", "cow", "dog", "fish", "frog")
NONE = {"crop": 1.0, "turn": 0.0, "colour": 0.0}

_changed = jax.jit(fine_tuning.changed, static_argnums=(2, 4))


def changed(images, size=SIDE, photo=False, **change):
    return np.asarray(_changed(images, jax.random.key(0), size, NONE | change, photo))


def noise(count=8):
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def test_without_changes_an_image_or_its_mirror_image_remains():
    images = noise()
    found = changed(images, photo=True)
    mirrored = [np.array_equal(x, y[:, ::-1]) for x, y in zip(found, images, strict=True)]
    same = [np.array_equal(x, y) for x, y in zip(found, images, strict=True)]
    assert np.all(np.logical_xor(mirrored, same))
    assert any(mirrored)
    assert any(same)


def test_crops_have_the_size_and_the_values_of_a_part_of_the_image():
    images = np.zeros((8, SIDE, SIDE, 3), np.uint8)
    images[..., 0] = np.arange(100, 100 + SIDE)[:, None]  # rows
    found = changed(images, size=24, crop=0.1)
    assert (found.shape, found.dtype) == ((8, 24, 24, 3), np.uint8)
    rows = found[..., 0].astype(int)
    assert np.all(np.diff(rows, axis=1) >= 0)
    assert np.all(rows == rows[:, :, :1])
    assert rows.min() >= 100
    assert rows.max() < 100 + SIDE
    assert np.any(rows.max(axis=(1, 2)) - rows.min(axis=(1, 2)) < 0.75 * SIDE)


def test_a_rotation_changes_rows_but_not_circles():
    place = np.arange(SIDE) - (SIDE - 1) / 2
    square = place**2 + place[:, None] ** 2
    inside = square < (SIDE / 2 - 1) ** 2
    circles, rows = 250 - square, np.broadcast_to(10.0 * np.arange(SIDE)[:, None], (SIDE, SIDE))
    images = np.stack([circles, rows])[..., None].repeat(3, axis=3).round().astype(np.uint8)
    found = changed(images, turn=90.0)
    away = np.abs(found.astype(int) - images)[:, inside].max(axis=(1, 2))
    assert away[0] <= 2
    assert away[1] > 10


def test_colours_change_in_photos_only():
    images = noise() // 2 + 64
    np.testing.assert_array_equal(changed(images, colour=0.3), changed(images))
    plain, photos = changed(images, photo=True), changed(images, photo=True, colour=0.3)
    away = np.abs(photos.astype(int) - plain).max(axis=(1, 2, 3))
    assert np.all(away > 2)
    assert len(set(away.tolist())) > 1


def test_ranked_is_average_precision_and_the_precision_of_the_first_ten():
    sketches = np.array([[1.0, 0.0], [0.0, 1.0]])
    photos = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    relevant = np.array([[True, False, True], [False, True, False]])
    found = fine_tuning.ranked(sketches, photos, relevant)
    first, second = (1 + 2 / 3) / 2, 1 / 2
    assert found["mAP@all"] == pytest.approx(100 * (first + second) / 2)
    assert found["P@10"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)


def test_the_learning_rate_warms_up_to_its_peak_and_decays_to_nearly_0():
    rates = fine_tuning.rates_of(Run("a", rate=2.0), 100)
    assert (rates.shape, rates[0], rates.argmax(), rates.max()) == ((100,), 0, 20, 2)
    assert np.all(np.diff(rates[:21]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)
    assert 0 < rates[-1] < 0.01
    assert fine_tuning.rates_of(Run("a", rate=2.0), 2).tolist() == [2, 1]


def images_of(counts, unseen=()):
    labels = [np.repeat(np.arange(len(x)), x) for x in counts]
    pixels = [jnp.zeros((len(x), 1, 1, 3), jnp.uint8) for x in labels]
    return Images(*pixels, *labels, CLASSES[: len(counts[0])], unseen)


def test_tables_list_as_many_images_of_each_class_as_the_smallest_has():
    sketches, photos, classes = fine_tuning.tables_of(
        images_of([(3, 1, 2), (2, 4, 2)]), np.array([0, 2])
    )
    assert sketches.tolist() == [[0, 1], [4, 5], [0, 0]]
    assert photos.tolist() == [[0, 1], [6, 7], [0, 0]]
    assert classes.tolist() == [0, 2, -1]


def test_the_flop_of_an_image_are_known_for_networks_of_the_usual_size():
    usual = {"model.depths": (3, 4, 6, 3), "model.width": 64, "model.backbone": "resnet50"}
    model = config("efficient_cnn", **usual, **{"model.image_size": 112}).model
    assert fine_tuning.image_flop(model) == CNN_FLOP["resnet50"] / 4
    assert fine_tuning.image_flop(config("efficient_cnn").model) == 0


def searched(axes, quality, runs=100):
    tried = []

    def measure(run):
        tried.append(run.name)
        return quality(run)

    best = fine_tuning.searched(
        Run("start", rate=1.0), axes, measure, in_time=lambda: len(tried) < runs
    )
    return best, tried


AXES = ({"rate": (2.0, 3.0)}, {"crop": (0.1, 0.2), "turn": (1.0, 2.0)}, {"rate": (3.0, 4.0)})


def test_the_search_chooses_the_best_values_of_each_axis():
    best, tried = searched(AXES, lambda run: -abs(run.rate - 3.2) + run.turn / 100 * (run.crop < 1))
    assert best == Run("start", rate=3.0)  # its turn, 10, is better than those tried
    # A run that is the best already is not tried again.
    assert tried == [
        *("start", "rate 2", "rate 3", "crop 0.1 turn 1", "crop 0.2 turn 2", "rate 4"),
    ]
    best, _ = searched(AXES, lambda run: -run.turn)
    assert best == Run("start", rate=1.0, crop=0.1, turn=1.0)


def test_the_search_keeps_its_start_when_nothing_is_better():
    assert searched(AXES, lambda run: 0.0)[0] == Run("start", rate=1.0)


def test_the_search_starts_no_run_when_time_is_over():
    best, tried = searched(AXES, lambda run: run.rate, runs=2)
    assert tried == ["start", "rate 2"]
    assert best == Run("start", rate=2.0)


def test_the_plan_in_the_file_has_settings_and_names_that_fit():
    start, axes, then = fine_tuning.PLAN
    for axis in axes:
        assert len({len(values) for values in axis.values()}) == 1
        assert set(axis) <= set(Run._fields)
    runs = [start._replace(**changes) for changes in then]
    assert [run.name for run in runs] == ["bench-0", "bench-1", "bench-2"]
    assert all(run.keep and not run.held_out for run in runs)


def test_a_plan_with_an_unknown_setting_is_rejected(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"start": {"name": "a"}, "axes": [{"rates": [1]}], "then": []}))
    with pytest.raises(ValueError, match="unknown settings: rates"):
        fine_tuning.read_plan(file)


def start_model(folder):
    """A small model with random weights, as `save_pretrained` writes it."""
    values = {
        "centred": True, "frozen_statistics": True, "knowledge_weight": 1.0,
        "contrastive_weight": 1.0, "quadruplet_weight": 0.0, "seen_classes": len(CLASSES),
    }  # fmt: skip
    made = config("efficient_cnn", **{f"model.{name}": value for name, value in values.items()})
    model = drawn(lambda: create(made.model, rngs=nnx.Rngs(params=0, dropout=1)))
    model.knowledge[...] = jax.nn.softmax(model.knowledge[...])
    return zse_jax.save_pretrained(model, folder, config=made)


def items_of(modality):
    """Three images of each class: photos of one colour, sketches of a line."""
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.int32), 3)
    source = []
    for label in labels:
        pixels = np.full((64, 64, 3), 255, np.uint8)
        if modality == "photo":
            pixels[:] = (40 * label, 255 - 40 * label, 100)
        else:
            pixels[10 : 20 + 5 * label, 30:33] = 0
        with io.BytesIO() as stream:
            Image.fromarray(pixels).save(stream, "PNG")
            source.append(stream.getvalue())
    names = tuple(map(str, range(len(labels))))
    return Items(modality, source, np.arange(len(labels)), labels, CLASSES, names, names)


@pytest.mark.slow
def test_a_small_network_is_packed_trained_and_unpacked(tmp_path, monkeypatch):
    start = start_model(tmp_path / "start")
    monkeypatch.setattr(
        data_selection, "training_items", lambda _: [items_of(x) for x in ("sketch", "photo")]
    )
    images, tuned, model = (str(tmp_path / name) for name in ("images.npz", "tuned", "model"))
    fine_tuning.main(["pack", f"--model={start}", f"--output={images}"])
    packed = fine_tuning.unpacked(tmp_path / "images.npz")
    assert packed.sketches.shape == packed.photos.shape == (18, 256, 256, 3)
    assert packed.unseen == ("bat", "cow")

    plan = {
        "start": {"name": "start", "image_size": 32, "classes": 2, "epochs": 0.5, "held_out": 2},
        "axes": [{"rate": [1e-3]}],
        "then": [{"name": "last", "held_out": 0, "keep": True}],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    program = PROGRAM.replace("accelerator", "fine_tuning")  # without TensorFlow and others
    done = subprocess.run(
        [sys.executable, "-c", program, "train", f"--model={start}", f"--images={images}",
         f"--output={tuned}", f"--plan={tmp_path / 'plan.json'}", "--chunk=2", "--minutes=30",
         "--search=30"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout, done.stdout
    rows = json.loads((tmp_path / "tuned" / "runs.json").read_text())
    assert [row["run"]["name"] for row in rows] == ["start", "rate 0.001", "last"]
    assert [row["steps"] for row in rows] == [2, 2, 4]
    for row in rows:
        assert np.all(np.isfinite(row["loss"]))
        assert row["images_per_s"] > 0
        assert row["share"] is None  # the network is smaller than those of `CNN_FLOP`
    assert all(0 < row["expanded"]["mAP@all"] <= 100 for row in rows[:2])
    assert "embedding" not in rows[2]

    weights = f"--weights={tuned}/last.safetensors"
    fine_tuning.main(["unpack", f"--model={start}", weights, f"--output={model}"])
    before, after = zse_jax.load(start), zse_jax.load(model)
    assert np.any(after.projection.kernel[...] != before.projection.kernel[...])
    assert np.any(after.means[...] != 0)
    np.testing.assert_array_equal(after.knowledge[...], before.knowledge[...])
    pictures = jnp.asarray(np.asarray(packed.photos)[::6, ::8, ::8])
    vectors = after.embed(after.encode(pictures, "photo"), "photo")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
