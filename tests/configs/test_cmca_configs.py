"""The CMCA settings: every config builds, with every field of its class."""

import inspect

import pytest

from configs import cmca_default, cmca_quickdraw, cmca_sketchy_split2, cmca_tuberlin
from data_pipelines import sampling, splits
from tests.zse_jax import abstract
from zse_jax.evaluation import evaluator
from zse_jax.retrievers.cmca import CMCA
from zse_jax.runtime import config_io
from zse_jax.training import optimizers

MODULES = [cmca_quickdraw, cmca_sketchy_split2, cmca_tuberlin]


@pytest.mark.parametrize("arg", ["tiny", "S/14", "mcc,tiny"])
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_config_describes_a_run(module, arg):
    config = module.get_config(arg)
    model = abstract.retriever(config.model)
    assert splits.get(config.data.split).dataset == config.data.name
    evaluator.check_select(config, model.rankings)
    assert sampling.sampler(model.batch_kind).level == "class"
    assert config_io.to_plain(config)


def test_the_model_has_every_setting_of_its_class_at_its_default():
    signature = inspect.signature(CMCA.__init__).parameters
    defaults = {
        name: p.default for name, p in signature.items() if name not in ("self", "dtype", "rngs")
    }
    model = cmca_default.get_config().model.to_dict()
    every_system = {"system": "cmca", "centred": False, "preprocessing": "pad"}
    assert model == every_system | defaults


def test_margins_are_those_of_the_published_code():
    margins = [module.get_config().model.triplet_margin for module in MODULES]
    assert margins == [0.04, 0.2, 0.04]


@pytest.mark.parametrize(
    ("module", "sketches", "epochs"),
    [(cmca_sketchy_split2, 75_471 - 12_694, 20), (cmca_tuberlin, 220 * 80, 65),
     (cmca_quickdraw, 330_000 - 92_291, 40)],
)  # fmt: skip
def test_training_takes_the_epochs_of_the_published_code(module, sketches, epochs):
    train = module.get_config().train
    assert train.steps * train.batch_size / sketches == pytest.approx(epochs, rel=1e-3)


@pytest.mark.parametrize(("size", "name"), [("S/14", "small"), ("B/14", "base"), ("L/14", "large")])
def test_training_starts_from_facebooks_network_of_the_size(size, name):
    config = cmca_sketchy_split2.get_config(size)
    assert config.init_from == f"hf://facebook/dinov2-{name}"
    assert config.model.backbone == f"dinov2_vit{size[0].lower()}14"


def test_the_baseline_does_not_train():
    config = cmca_sketchy_split2.get_config("tiny,raw")
    assert config.train.steps == 0
    optimizers.create(config.optimizer, 0, {}, CMCA.parameter_groups)


def test_an_unknown_variant_is_an_error_that_lists_the_variants():
    with pytest.raises(ValueError, match="no variant 'G/14'.*B/14, S/14, L/14, raw, mcc, tiny"):
        cmca_sketchy_split2.get_config("G/14")
