"""The configs of EfficientCNN build, name every setting, and fit the number of seen classes."""

import inspect

import pytest

from configs import (
    efficient_default,
    efficient_quickdraw,
    efficient_sketchy,
    efficient_sketchy_split2,
    efficient_tuberlin,
)
from data_pipelines import sampling, splits
from tests.zse_jax import abstract
from zse_jax.retrievers.efficient_cnn import EfficientCNN
from zse_jax.runtime import config_io
from zse_jax.training import optimizers

CONFIGS = (efficient_sketchy, efficient_sketchy_split2, efficient_tuberlin, efficient_quickdraw)


@pytest.mark.parametrize("arg", ["", "tiny"])
@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__)
def test_every_config_describes_a_run(module, arg):
    config = module.get_config(arg)
    split = splits.get(config.data.split)
    model = abstract.retriever(config.model)
    assert split.dataset == config.data.name
    assert config.model.seen_classes == len(split.seen) >= config.train.batch_size
    assert config.evaluation.select.partition("/")[0] in model.rankings
    assert sampling.sampler(config.train.sampler).distinct
    optimizers.create(config.optimizer, config.train.steps)
    assert config_io.to_plain(config)


def test_the_model_has_every_setting_of_its_class_at_its_default():
    signature = inspect.signature(EfficientCNN.__init__).parameters
    defaults = {
        name: p.default for name, p in signature.items() if name not in ("self", "dtype", "rngs")
    }
    model = efficient_default.get_config().model.to_dict()
    assert model == {"system": "efficient_cnn", "centred": False, **defaults}


def test_tiny_needs_no_download():
    config = efficient_sketchy.get_config("tiny,steps=3")
    assert config.data.name == "doodles"
    assert config.teacher.weights is None
    assert config.train.steps == 3
