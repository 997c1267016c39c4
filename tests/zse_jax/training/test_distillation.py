"""How EfficientCNN starts: the teacher's weights and knowledge, and errors at the start."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder
from safetensors.numpy import save_file

import zse_jax
from tests.zse_jax import shared_steps, tiny
from tests.zse_jax.compiled import compiled
from tests.zse_jax.random_weights import drawn
from zse_jax.evaluation import data_selection
from zse_jax.models.resnet import ResNet50
from zse_jax.pretrained import torchvision_resnet
from zse_jax.runtime import sharding
from zse_jax.training import distillation, initialization
from zse_jax.training.loop import train, training_batches
from zse_jax.training.step import merge_model

BACKBONE = {"depths": (1, 1), "width": 4}
SEEN = 24


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    tiny.install(monkeypatch.setattr)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The workdir of a run of `config()` that has begun. Copy it before changing it."""
    workdir = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch.setattr)
        begin(config(), workdir)
    return workdir


def config(**flat):
    made = tiny.config().unlock()
    made.model = ConfigDict(
        {
            "system": "efficient_cnn",
            "image_size": tiny.SIZE,
            "imagenet_classes": 7,
            "embedding_width": 8,
            "seen_classes": SEEN,
            "knowledge_weight": 1.0,
            **BACKBONE,
        }
    )
    made.teacher = ConfigDict({"weights": placeholder(str), "knowledge": placeholder(str)})
    made.train.update(steps=4, batch_size=8, sampler="class_group:2")
    made.evaluation.update(every=2, select="embedding/exact/mAP@all")
    made.checkpoint.every = 2
    made.update_from_flattened_dict(flat)
    return made.lock()


def begin(settings, workdir, mesh=None):
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    setup = shared_steps.set_up(settings, mesh)
    state = initialization.first_state(settings, mesh, setup, workdir)
    return merge_model(setup.definition, state), state, setup


def torchvision_file(path, seed=5):
    """Writes a file of weights with torchvision's names; returns the network."""
    network = drawn(lambda: ResNet50(**BACKBONE, classes=7, rngs=nnx.Rngs(seed)), seed)
    network.stem_norm.mean[...] = jnp.full(4, 0.25)
    state = dict(nnx.to_flat_state(nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))))
    arrays = {}
    for where, source in torchvision_resnet.table(network).items():
        array = np.asarray(state[where][...])
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        arrays[source.name] = np.ascontiguousarray(array)
    save_file(arrays, path)
    return network


@pytest.mark.slow
def test_knowledge_is_the_mean_prediction_of_the_teacher_for_each_seen_class(tmp_path):
    network = torchvision_file(tmp_path / "w.safetensors")
    settings = config(init_from=str(tmp_path / "w.safetensors"))
    model, _, _ = begin(settings, tmp_path)
    photos = data_selection.training_items(settings)[1]
    images = np.stack([photos.image(i, tiny.SIZE) for i in range(len(photos))])
    teacher = distillation.Teacher(nnx.view(network, use_running_average=True), tiny.SIZE)
    predictions = np.asarray(
        nnx.jit(lambda t, x: t.encode(x, "photo"))(teacher, jnp.asarray(images))
    )
    want = [predictions[photos.labels == c].mean(axis=0) for c in range(SEEN)]
    np.testing.assert_allclose(model.knowledge[...], want, rtol=1e-4)
    np.testing.assert_allclose(model.knowledge[...].sum(axis=1), 1, rtol=1e-4)


@pytest.mark.slow
def test_training_starts_with_the_teachers_weights_and_statistics(tmp_path):
    network = torchvision_file(tmp_path / "w.safetensors")
    model, _, _ = begin(config(init_from=str(tmp_path / "w.safetensors")), tmp_path)
    for mine, theirs in zip(
        jax.tree.leaves(nnx.state(model.backbone)), jax.tree.leaves(nnx.state(network)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_another_teacher_gives_the_knowledge_and_training_starts_from_init_from(tmp_path):
    torchvision_file(tmp_path / "teacher.safetensors")
    teacher, student = str(tmp_path / "teacher.safetensors"), str(tmp_path / "student.safetensors")
    network = torchvision_file(tmp_path / "student.safetensors", seed=6)
    plain, _, _ = begin(config(init_from=teacher), tmp_path / "plain")
    settings = config(**{"teacher.weights": teacher, "init_from": student})
    model, _, _ = begin(settings, tmp_path / "other")
    np.testing.assert_array_equal(model.knowledge[...], plain.knowledge[...])
    np.testing.assert_array_equal(model.backbone.head.kernel[...], network.head.kernel[...])


def test_a_checkpoint_is_not_a_teacher(tmp_path, fake_hub):
    model = {"model.safetensors": b"", "config.json": b'{"library": "zse_jax"}'}
    fake_hub.add("ann/model", model)
    with pytest.raises(ValueError, match=r"--config.teacher.weights=FILE.*knowledge_weight=0"):
        begin(config(init_from="hf://ann/model"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config.teacher.weights=.*There is no file"):
        begin(config(**{"teacher.weights": str(tmp_path / "none.npz")}), tmp_path)


@pytest.mark.slow
def test_the_first_state_is_sharded_as_the_mesh_requires(tmp_path):
    mesh = sharding.make_mesh(2, 4)
    torchvision_file(tmp_path / "w.safetensors")
    settings = config(init_from=str(tmp_path / "w.safetensors"))
    _, state, setup = begin(settings, tmp_path, mesh)
    for leaf, like in zip(
        jax.tree.leaves(state["model"]), jax.tree.leaves(setup.abstract["model"]), strict=True
    ):
        assert leaf.sharding == like.sharding


@pytest.mark.slow
def test_knowledge_of_weight_0_is_not_computed(tmp_path):
    model, _, _ = begin(config(**{"model.knowledge_weight": 0.0}), tmp_path)
    assert model.knowledge is None
    assert not (tmp_path / distillation.FILE).exists()


@pytest.mark.slow
def test_knowledge_is_computed_once_and_then_read(tmp_path, monkeypatch):
    first, _, _ = begin(config(), tmp_path)
    monkeypatch.setattr(distillation, "prepare", None)  # a second pass would fail
    second, _, _ = begin(config(), tmp_path)
    np.testing.assert_array_equal(first.knowledge[...], second.knowledge[...])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ("weights", "weights"),
        ("photos", "photos"),
        ("pixels", "photos"),
        ("classes", "photos, classes"),
        ("code", "code"),
    ],
)
def test_stale_knowledge_is_an_error(begun, tmp_path, monkeypatch, change, differing):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    flat = {}
    if change == "weights":
        flat["seed"] = 1
    if change == "photos":
        monkeypatch.setattr(tiny, "CLASSES_PER_ITEM", 2)
    if change == "pixels":  # the last photo of all, under its old name
        original = tiny.load_items

        def repainted(*args, **options):
            items = original(*args, **options)
            items.source[-1] += b"\0"
            return items

        monkeypatch.setattr(distillation.loading, "load_items", repainted)
    if change == "code":
        monkeypatch.setattr(distillation.consistency, "code_digest", lambda *_: "other")
    if change == "classes":
        original = tiny.load_items

        def renamed(name, modality, classes, **options):
            return original(name, modality, [f"{c}-" for c in classes], **options)

        monkeypatch.setattr(distillation.loading, "load_items", renamed)
    with pytest.raises(
        ValueError, match=f"{distillation.FILE} is stale: it was made from other {differing}"
    ):
        begin(config(**flat), tmp_path)


@pytest.mark.slow
def test_a_damaged_knowledge_file_is_made_again_unless_the_user_named_it(tmp_path, caplog):
    (tmp_path / distillation.FILE).write_bytes(b"nothing")
    begin(config(), tmp_path)
    assert "knowledge.npz is damaged" in caplog.text
    named = tmp_path / "named.npz"
    named.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read .*delete it, or make it again"):
        begin(config(**{"teacher.knowledge": str(named)}), tmp_path)
    assert named.read_bytes() == b"nothing"


@pytest.mark.slow
def test_another_number_of_seen_classes_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="seen_classes=23, but the split has 24"):
        begin(config(**{"model.seen_classes": 23}), tmp_path)


@pytest.mark.slow
def test_weights_of_another_network_are_an_error_that_names_the_file(tmp_path):
    torchvision_file(tmp_path / "w.safetensors")
    settings = config(**{"init_from": str(tmp_path / "w.safetensors"), "model.depths": (1, 2)})
    with pytest.raises(ValueError, match=r"w.safetensors: (.|\n)*missing: stages.1.1"):
        begin(settings, tmp_path)


def prepare(settings, workdir=None, asked=True):
    """`--prepare --config=... --workdir=...` in this process."""
    options = flags.FlagValues()
    flags.DEFINE_bool("prepare", asked, "", options)
    flags.DEFINE_string("workdir", workdir, "", options)
    config_flags.DEFINE_config_dict("config", settings, flag_values=options)
    options(["efficient_cnn"])
    distillation.main(options)


@pytest.mark.slow
def test_prepare_writes_the_file_that_training_reads(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "doodles.npz"
    settings = config(**{"teacher.knowledge": str(file)})
    prepare(settings)
    monkeypatch.setattr(distillation, "prepare", None)
    model, _, _ = begin(settings, tmp_path)
    assert np.isfinite(model.knowledge[...]).all()


def test_prepare_names_missing_flags():
    with pytest.raises(ValueError, match="--config.teacher.knowledge=FILE, or --workdir"):
        prepare(config())
    with pytest.raises(ValueError, match="Use --prepare and --config"):
        prepare(config(), asked=False)
    with pytest.raises(ValueError, match="system 'tiny' has no teacher to prepare"):
        prepare(tiny.config(**{"model.dropout": 0.0}), "nowhere")


@pytest.mark.slow
def test_training_resumes_to_the_bit_and_a_checkpoint_needs_nothing_else(tmp_path, monkeypatch):
    single = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", single)  # compiles faster than for eight devices
    train(config(), tmp_path / "straight")
    resumed = shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints/4")
    (resumed / "metrics.json").unlink()
    (resumed / distillation.FILE).unlink()  # the checkpoint contains it
    train(config(), resumed)
    one, other = (
        zse_jax.load(tmp_path / name / "checkpoints" / "4") for name in ("straight", "resumed")
    )
    for mine, theirs in zip(
        jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert np.isfinite(one.knowledge[...]).all()
    assert np.abs(one.backbone.stem_norm.mean[...]).max() > 0  # it starts at 0
    photo = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8))
    encode = compiled(one.encode)
    np.testing.assert_allclose(
        encode(photo[:1], "photo"), encode(photo, "photo")[:1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_losses_and_running_averages_do_not_depend_on_the_mesh(tmp_path):
    found = []
    for mesh in (sharding.make_mesh(2, 4), sharding.make_mesh(devices=jax.devices()[:1])):
        _, state, setup = begin(config(), tmp_path, mesh)
        batches = training_batches(config(), setup.model, mesh)
        losses = []
        for _ in range(3):
            state, metrics = setup.step(state, next(batches))
            losses.append(float(metrics["loss"]))
        model = merge_model(setup.definition, state)
        found.append((losses, jax.device_get(nnx.state(model, nnx.BatchStat))))
    (many, averages), (one, averages_of_one) = found
    np.testing.assert_allclose(many, one, rtol=1e-4)
    for ours, theirs in zip(
        jax.tree.leaves(averages), jax.tree.leaves(averages_of_one), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
