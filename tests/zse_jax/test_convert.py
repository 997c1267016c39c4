"""Conversion of every publisher's weights to a checkpoint and back, and `config.init_from`."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx
from safetensors.numpy import load_file, save_file

import zse_jax
from tests.source import ROOT
from tests.zse_jax import shared_steps, small_systems, tiny
from tests.zse_jax.pretrained import test_google_vit, test_openai_clip
from tests.zse_jax.pretrained.weights import GOLDEN
from tests.zse_jax.random_weights import drawn, drawn_state
from zse_jax import convert
from zse_jax.checkpoints import conversion, reading, writing
from zse_jax.models.relation_network import default_anchors
from zse_jax.models.resnet import ResNet50
from zse_jax.pretrained import files, openai_clip, publishers, torchvision_resnet, zse_sbir
from zse_jax.pretrained.mapping import convolution, transpose
from zse_jax.retrievers import create, registry
from zse_jax.runtime import cli, sharding
from zse_jax.training import initialization, loop, step

pytestmark = pytest.mark.slow

HEADS = {"heads": 3, "cross_heads": 2, "scale_channels": 4}


GOOGLE = {name: test_google_vit.SIZES[name] for name in (
    "scale_channels", "cross_heads", "cross_mlp_width", "anchors", "anchor_width",
)}  # fmt: skip
"""The settings of ZSE that are not in Google's files."""


def resnet_arrays(seed=0):
    """A small ResNet with torchvision's names and layout."""
    model = drawn(lambda: ResNet50(depths=(1, 1), width=8, classes=12, rngs=nnx.Rngs(0)), seed)
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    parameters = dict(nnx.to_flat_state(state))
    arrays = {}
    for path, source in torchvision_resnet.table(model).items():
        array = np.asarray(parameters[path][...])
        if source.layout is convolution:
            array = array.transpose(3, 2, 0, 1)
        arrays[source.name] = array.T if source.layout is transpose else array
    return arrays


def clip_arrays():
    return test_openai_clip.published(test_openai_clip.tiny(3))


def written(file, arrays):
    contents = {name: np.array(array, order="C") for name, array in arrays.items()}
    if file.suffix == ".npz":
        np.savez(file, **contents)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(contents, file)
    return file


PUBLISHED = {
    "zse_sbir": (".safetensors", lambda: zse_sbir.export(test_google_vit.zse(3)), HEADS),
    "google_vit": (".npz", test_google_vit.published, GOOGLE),
    "openai_clip": (
        ".safetensors",
        clip_arrays,
        {"heads": 2, "text_heads": 2, "activation": "gelu"},
    ),
    "huggingface_clip": (
        ".safetensors",
        lambda: test_openai_clip.hugging_face(clip_arrays()),
        {"heads": 2, "text_heads": 2, "activation": "quick_gelu"},
    ),
    "torchvision_resnet": (".safetensors", resnet_arrays, {"image_size": 32}),
}


def run(*arguments):
    options = flags.FlagValues()
    argv = ["convert", *map(str, arguments)]
    convert.define_flags(options, argv)
    given = cli.parse(options, argv)
    convert.main(options, *given[1:])


def built(settings, seed=0):
    """A system with random weights."""
    return drawn(lambda: create(dict(settings), rngs=nnx.Rngs(params=0, dropout=1)), seed)


@pytest.fixture
def drawn_systems(monkeypatch):
    """A conversion starts from drawn values, which need no compilation."""
    monkeypatch.setattr(
        conversion, "created", lambda config: built(config.model.to_dict(), config.seed)
    )


def overrides(settings):
    return [f"--config.model.{key}={value}" for key, value in settings.items()]


def same(left, right):
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    jax.tree.map(np.testing.assert_array_equal, *(nnx.state(x, kinds) for x in (left, right)))


@pytest.mark.parametrize("publisher", PUBLISHED)
def test_a_publishers_file_becomes_a_checkpoint_that_loads(publisher, request, tmp_path, capsys):
    suffix, arrays, given = PUBLISHED[publisher]
    file = written(tmp_path / f"weights{suffix}", arrays())
    if publisher != "torchvision_resnet":  # one of them starts as programs do
        request.getfixturevalue("drawn_systems")
    run(f"--from={publisher}", file, tmp_path / "out", *overrides(given))
    said = capsys.readouterr().out
    assert "million parameters" in said
    config = reading.read_config(tmp_path / "out")
    assert config.init_from == str(file)
    [system] = publishers.systems_of(publisher)
    for name in registry.SYSTEMS[system].pretrained[publisher].uninferred:
        assert f"{name}={config.model[name]}" in said
    for part in registry.SYSTEMS[system].pretrained[publisher].random:
        assert part in said
    retriever = zse_jax.load(tmp_path / "out")
    assert config.model.system == system
    fresh = conversion.created(config)
    publishers.start(fresh, file, config.model.system)
    same(retriever, fresh)


@pytest.mark.slow
def test_publishers_weights_on_the_hub_are_loaded_without_a_conversion(fake_hub, caplog):
    """Everything that takes a checkpoint takes them, with the settings that can be inferred."""
    arrays = resnet_arrays()
    written(fake_hub.folder / "timm/net/model.safetensors", arrays)
    name = "hf://timm/net"
    step, retriever = reading.load_step(name)
    assert "embedding, classifier of the seen classes: they are random until" in caplog.text
    config = reading.read_config(name)
    assert (step, reading.step_of(name), reading.read_record(name)) == (0, 0, None)
    assert config == reading.config_of(retriever)
    assert config.init_from == name
    np.testing.assert_array_equal(retriever.backbone.head.kernel[...].T, arrays["fc.weight"])


def test_published_sizes_are_those_of_the_configs():
    def shapes(name):
        manifest = json.loads((GOLDEN / f"{name}_manifest.json").read_text())
        return {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest.items()}

    for publisher, manifest in (
        ("zse_sbir", "zse"), ("openai_clip", "clip"), ("torchvision_resnet", "resnet50"),
    ):  # fmt: skip
        arrays = shapes(manifest)
        config = conversion.config_of(publisher, arrays)
        default = conversion.default_config(config.model.system)
        if "anchors" in default.model:
            default.model.anchors = default_anchors(14 * 14)
        differing = {k for k, v in config.model.items() if v != default.model[k]}
        assert differing <= {
            "prompt_length",
            "pixels",
            "text_tower",
            "knowledge_weight",
            "encoders",
        }, publisher


def test_exported_zse_weights_convert_back_exactly(drawn_systems, tmp_path, capsys):
    config = small_systems.config("zse")
    source = built(config.model.to_dict(), seed=5)
    writing.write(tmp_path / "run", 7, source, config)
    assert reading.step_of(tmp_path / "run") == 7
    run("--to=zse_sbir", tmp_path / "run", tmp_path / "best.safetensors")
    told = f"heads={config.model.heads}, cross_heads={config.model.cross_heads}"
    assert f"keep them with it: {told}" in capsys.readouterr().out
    assert "sa.model.cls" in load_file(tmp_path / "best.safetensors")
    heads = {key: config.model[key] for key in ("heads", "cross_heads")}
    run(tmp_path / "best.safetensors", tmp_path / "back", *overrides(heads))
    same(zse_jax.load(tmp_path / "back"), source)
    with pytest.raises(FileExistsError, match=r"best.safetensors exists and is not overwritten"):
        run("--to=zse_sbir", tmp_path / "run", tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match=r"name a file that ends with .safetensors"):
        run("--to=zse_sbir", tmp_path / "run", tmp_path / "best.pth")


def test_positions_are_interpolated_for_another_size(drawn_systems, tmp_path):
    file = written(tmp_path / "vit.npz", test_google_vit.published())
    run(file, tmp_path / "out", *overrides(GOOGLE | {"image_size": 64, "anchors": 16}))
    assert zse_jax.load(tmp_path / "out").tokenizer.positions.shape[1] == 65


def test_unusable_arguments_are_errors(tmp_path):
    vit = written(tmp_path / "vit.npz", test_google_vit.published())
    with pytest.raises(ValueError, match=r"vit.npz contains weights of google_vit, not of zse_"):
        run("--from=zse_sbir", vit, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"There is no file of weights .*nothing.npz"):
        run(tmp_path / "nothing.npz", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(FileExistsError, match="is not empty: give a new or an empty folder"):
        run(vit, tmp_path / "full")
    with pytest.raises(ValueError, match="Did you mean --config.model.heads"):
        run(vit, tmp_path / "out", "--config.model.head=3")
    with pytest.raises(ValueError, match=r"takes no --config: the weights determine"):
        run(vit, tmp_path / "out", "--config=configs/sketchy.py")
    arrays = test_google_vit.published()
    del arrays["embedding/kernel"]
    with pytest.raises(ValueError, match=r"cannot be inferred .* of google_vit: 'embedding/k"):
        publishers.settings("google_vit", arrays)
    other = written(tmp_path / "other.npz", {"params/img/embedding/kernel": np.zeros(3)})
    with pytest.raises(ValueError, match=r"other.npz: .* big_vision's names are not known"):
        run(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    config = small_systems.config("clip_prompt")
    writing.write(tmp_path / "clip", 0, built(config.model), config)
    with pytest.raises(ValueError, match="a ClipPrompt, but zse_sbir has names only for ZSE"):
        run("--to=zse_sbir", tmp_path / "clip", tmp_path / "x.safetensors")


def test_the_program_runs_and_reports_a_missing_argument(tmp_path):
    file = written(tmp_path / "vit.npz", test_google_vit.published())
    command = [sys.executable, "-m", "zse_jax.convert", "--from=google_vit", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: OUTPUT is missing. See --help.\n"
    command += [tmp_path / "out", *overrides(GOOGLE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote ")
    assert zse_jax.load(tmp_path / "out").image_size == 32


# --- config.init_from


def begun(config):
    """The model that training starts with, on a mesh that splits large parameters."""
    mesh = sharding.make_mesh(data=-1, fsdp=2)
    setup = shared_steps.set_up(config, mesh)
    setup = setup._replace(init=lambda: drawn_state(setup))  # without a compilation
    state = initialization.first_state(config, mesh, setup, "")
    for leaf, like in zip(*map(jax.tree.leaves, (state, setup.abstract)), strict=True):
        assert leaf.sharding == like.sharding
    return step.merge_model(setup.definition, state)


def test_training_starts_from_a_publishers_file_or_a_checkpoint(tmp_path):
    config = small_systems.config("zse")
    source = built(config.model.to_dict(), seed=5)
    writing.write(tmp_path / "run", 0, source, config)
    file = written(tmp_path / "best.safetensors", zse_sbir.export(source))
    for path in (tmp_path / "run", file):
        same(begun(small_systems.config("zse", init_from=str(path))), source)


def test_clip_at_starts_from_a_converted_clip_and_keeps_its_own_prompts(drawn_systems, tmp_path):
    file = written(tmp_path / "clip.safetensors", clip_arrays())
    sizes = {"heads": 2, "text_heads": 2, "activation": "gelu"}
    run(file, tmp_path / "clip", *overrides(sizes))
    config = small_systems.config("clip_prompt", init_from=str(tmp_path / "clip"))
    plain = reading.read_config(tmp_path / "clip").model.to_dict()
    kept = ("class_names", "trainable", "prompt_length", "text_tower")
    with config.unlocked():
        own = small_systems.config("clip_prompt").model
        config.model.update(plain | {key: own[key] for key in kept})
    model = begun(config)
    test_openai_clip.assert_equal(model.clip.visual, test_openai_clip.tiny(3).visual)
    by_hand = built(config.model.to_dict())
    openai_clip.load(by_hand, files.read(file))
    np.testing.assert_allclose(model.class_text[...], by_hand.class_text[...], atol=1e-5)
    assert model.photo_prompt is not None
    by_hand.clip.sizes = dataclasses.replace(by_hand.clip.sizes, activation=None)
    with pytest.raises(ValueError, match=r"another kind: it needs --config.model.activation=gelu"):
        registry.copy_parameters("clip_prompt", by_hand, model)


def test_a_run_records_what_it_started_from_and_resumes_without_it(tmp_path, monkeypatch):
    tiny.install(monkeypatch.setattr)
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)  # compiles faster than for eight devices
    loop.train(tiny.config(**{"train.steps": 2, "evaluation.every": 0}), tmp_path / "first")
    again = tiny.config(**{
        "train.steps": 2, "evaluation.every": 0, "init_from": str(tmp_path / "first"), "seed": 9,
        "optimizer.learning_rate": 0.0,
    })  # fmt: skip
    loop.train(again, tmp_path / "second")
    same(*(zse_jax.load(tmp_path / name) for name in ("first", "second")))
    assert reading.read_config(tmp_path / "second").init_from == str(tmp_path / "first")
    with again.unlocked():
        again.train.steps = 3
    (tmp_path / "first").rename(tmp_path / "gone")
    loop.train(again, tmp_path / "second")
    assert reading.step_of(tmp_path / "second") == 3


def test_a_converted_checkpoint_cannot_be_resumed(tmp_path, monkeypatch):
    tiny.install(monkeypatch.setattr)
    config = tiny.config()
    writing.write(tmp_path / "run", 0, built(config.model.to_dict()), config)
    with pytest.raises(ValueError, match="without a train state, .* --config.init_from="):
        loop.train(config, tmp_path / "run")
    assert reading.step_of(tmp_path / "run") == 0


def test_an_unusable_init_from_is_an_error_that_names_it(tmp_path):
    config = small_systems.config("zse")
    source = built(config.model.to_dict(), seed=5)
    writing.write(tmp_path / "run", 0, source, config)

    def start(system, path, **changes):
        config = small_systems.config(system, init_from=str(path), **changes)
        initialization.fill(built(config.model), config)

    with pytest.raises(ValueError, match=r"init_from=.*run: its parameters .* anchors.merge"):
        start("zse", tmp_path / "run", **{"model.anchors": 16})
    with pytest.raises(ValueError, match="contains a ZSE, but this config trains a ClipPrompt"):
        start("clip_prompt", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"init_from=.*nothing.*contains no checkpoint"):
        start("zse", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        start("zse", tmp_path / "best.safetensors")
