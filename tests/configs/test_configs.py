"""Every config builds, has the published values, and reads its argument."""

import contextlib
import functools
import importlib
import inspect
import json
import pkgutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

import configs
from configs import default, demo, sketchy
from data_pipelines import loading, sampling, splits
from tests import layouts
from tests.zse_jax import abstract, shared_steps, tiny
from zse_jax.evaluation import data_selection, evaluator
from zse_jax.retrievers import zse
from zse_jax.runtime import config_io, sharding
from zse_jax.training import loop, optimizers, step

NOT_IN_CONFIG = ("self", "dtype", "rngs")

FOUND = {found.name for found in pkgutil.iter_modules(configs.__path__)}
NAMES = sorted(name for name in FOUND if not name.endswith("default"))


def config_of(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_describes_a_run(name):
    config = config_of(name)
    if config.data.split is None:
        config.model.seen_classes = 3  # counted when training starts
        config.data.split = None if config.data.name == "folder" else "sketchy_split1"
    model = abstract.retriever(config.model)
    optimizers.create(config.optimizer, config.train.steps, {}, model.parameter_groups)
    for data in (config.data, config.target):
        assert data.split is None or splits.get(data.split).dataset == data.name
    assert sampling.sampler(config.train.sampler or model.batch_kind)
    assert config.evaluation.protocol in data_selection.PROTOCOLS
    assert config.evaluation.seen_gallery in data_selection.SEEN_GALLERY
    evaluator.check_select(config, model.rankings)
    assert config_io.to_plain(config)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_gives_its_launch_command(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python -m zse_jax.main --config=configs/{name}.py" in text


SMALL = {
    "zse": {
        "image_size": 16, "patch_size": 4, "scale_channels": 4, "width": 8, "depth": 1, "heads": 2,
        "mlp_width": 8, "cross_heads": 2, "cross_mlp_width": 8, "anchors": 4, "anchor_width": 4,
        "keep_blocks": (),
    },
    "clip_prompt": {
        "image_size": 16, "patch_size": 8, "width": 8, "depth": 1, "heads": 2, "embed_dim": 8,
        "text_width": 8, "text_depth": 1, "text_heads": 2,
    },
    "efficient_cnn": {"image_size": 16, "depths": (1,), "width": 4, "embedding_width": 8},
    "cmca": {"image_size": 16, "backbone": "dinov2_tiny", "rank": 2},
}  # fmt: skip
"""For each system, the settings of a small network."""


def small(name):
    """The config with a small network, one step, and all of a small data set."""
    config = config_of(name, {"folder": "cnn-tiny", "default_model": "tiny"}.get(name, ""))
    config.model.update(SMALL[config.model.system])
    if name == "default_model":
        config.model.backbone = "resnet50"  # of which SMALL is
    config.init_from = "random"
    config.data.workers = 0
    config.train.update(steps=1, batch_size=8)
    if config.data.name == "folder":
        config.data.unseen = "bee,dog"
        config.train.batch_size = None  # follows from the number of classes
    elif config.data.split is None:
        config.data.split = "sketchy_split1"  # its classes are read from the files of the user
    sampler, group, _ = (config.train.sampler or "").partition(":")
    if group:
        config.train.sampler = f"{sampler}:2"  # the data sets here have two images of a class
    config.optimizer.warmup_steps = 0
    config.evaluation.update(batch_size=64, every=1, sketch_stride=1, photo_stride=1)
    config.log.tensorboard = False
    return config


load_items = functools.cache(tiny.load_items)

ONE_OF_EACH = {"sketchy", "clip_sketchy_fine_grained", "efficient_tuberlin", "cmca_tuberlin"}
"""A config of each system, for the fast tests."""


@pytest.mark.parametrize(
    "name",
    [name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_every_config_traces_a_step_and_selects_what_to_evaluate(name, monkeypatch):
    monkeypatch.setattr(loading, "load_items", load_items)
    config, mesh = small(name), sharding.make_mesh(devices=jax.devices()[:1])
    if config.data.name == "folder":
        config.data.split = "doodles"  # the classes of a user's folder are read from its files
        config.data.name = "doodles"
    config = step.complete(config)
    setup = shared_steps.set_up(config, mesh)
    with contextlib.closing(loop.training_batches(config, setup.model, mesh)) as batches:
        state, metrics = shared_steps.shapes(setup, next(batches))
    assert metrics["loss"].shape == ()
    assert jax.tree.structure(state) == jax.tree.structure(setup.abstract)
    evaluated = data_selection.evaluated_items(config, 1, 1)
    assert len(evaluated.sketches) > 0
    assert len(evaluated.photos) > 0


def trained_configs():
    """Few configs that together have every combination of system and protocol, every kind of
    gallery and every data set.
    """
    parts = {}
    for name in NAMES:
        if name == "demo":  # test_demo.py trains it
            continue
        config = config_of(name)
        parts[name] = {
            (config.model.system, config.evaluation.protocol), config.evaluation.seen_gallery,
            config.data.name, config.target.name is not None,
        }  # fmt: skip
    names, missing = [], set().union(*parts.values())
    while missing:
        names.append(max(reversed(parts), key=lambda name: len(parts[name] & missing)))
        missing -= parts[names[-1]]
    return names


@pytest.fixture(scope="module")
def prepared_data(tmp_path_factory):
    """A folder for prepared data sets, and a function that writes what they are prepared from."""
    root = tmp_path_factory.mktemp("data")
    patch = pytest.MonkeyPatch()

    def of(name):
        if name == "domainnet" and not (root / name).exists():
            (root / name).mkdir()
            classes = splits.get(name).classes
            picture = lambda c, number: layouts.image(c + number, "JPEG")  # noqa: E731
            layouts.serve_domainnet(root / name, patch.setattr, classes, picture)
            # TFDS reads the lists with TensorFlow, whose import takes longer than the rest here.
            files = SimpleNamespace(io=SimpleNamespace(gfile=SimpleNamespace(GFile=open)))
            patch.setattr("tensorflow_datasets.image_classification.domainnet.domainnet.tf", files)
        if name not in layouts.WRITE:
            return None
        folder = root / name
        if not folder.exists():
            layouts.WRITE[name](folder)
        return str(folder)

    yield root / "prepared", of
    patch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("name", trained_configs())
def test_a_config_trains_a_step_on_data_of_its_layout(name, prepared_data, tmp_path, monkeypatch):
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)  # compiles faster than for eight devices
    shared_steps.install(monkeypatch.setattr)
    config = small(name)
    data_dir, folder_of = prepared_data
    config.data.update(data_dir=str(data_dir), manual_dir=folder_of(config.data.name))
    if config.target.name is not None:
        config.target.manual_dir = folder_of(config.target.name)
    results = loop.train(config, tmp_path / "run")
    values = np.array(list(results["test"].values()))
    assert ((values >= 0) & (values <= 1)).all()
    assert config.evaluation.select in results["test"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == results


def test_the_default_is_as_published():
    config = sketchy.get_config()
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-5, 1e-2)
    assert config.train.batch_size * config.train.steps == 30 * 10_000
    assert (config.evaluation.sketch_stride, config.evaluation.photo_stride) == (20, 10)


def test_the_model_has_every_setting_of_its_class_at_the_published_value():
    signature = inspect.signature(zse.ZSE.__init__).parameters
    published = {name: p.default for name, p in signature.items() if name not in NOT_IN_CONFIG}
    model = default.get_config().model.to_dict()
    assert model == {"system": "zse", "centred": False, **published}


@pytest.mark.parametrize(("arg", "millions"), [("B/16", 100), ("S/16", 30), ("Ti/16", 10)])
def test_variants_have_their_sizes(arg, millions):
    config = sketchy.get_config(arg)
    model = abstract.retriever(config.model)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert 0.6 * millions < count / 1e6 < 1.1 * millions


def test_shorthands_follow_the_variant():
    config = sketchy.get_config("Ti/16,steps=7,batch_size=4,evaluation.batch_size=2,seed=3")
    assert config.model.width == 192
    assert (config.train.steps, config.train.batch_size, config.evaluation.batch_size) == (7, 4, 2)
    assert config.seed == 3


def test_shorthands_alone_keep_the_usual_variant():
    assert demo.get_config("steps=7").model == demo.get_config().model
    assert sketchy.get_config("steps=7").model == sketchy.get_config().model


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("L/16", "no variant 'L/16'.*B/16"),
        ("B/16,step=3", "no key 'step': did you mean 'train.steps'"),
        ("every=3", "'every' is ambiguous: write .*every or .*every or .*every"),
    ],
)
def test_a_wrong_argument_is_an_error_with_the_nearest_valid_name(arg, message):
    with pytest.raises(ValueError, match=message):
        default.with_arg(default.get_config(), arg)
