"""Every config builds, holds what was published, and reads its argument."""

import inspect

import jax
import pytest
from flax import nnx

from configs import default, doodles, sketchy, sketchy_split2
from data_pipelines import splits
from zse_jax import configuration, optimizers, retrievers
from zse_jax.retrievers import zse

NOT_IN_CONFIG = ("self", "dtype", "rngs")

CONFIGS = [
    (sketchy, "B/16"), (sketchy, "S/16"), (sketchy, "Ti/16"), (sketchy_split2, "B/16"),
    (doodles, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "arg"), CONFIGS, ids=lambda value: getattr(value, "__name__", value)
)
def test_every_config_describes_a_run(module, arg):
    config = module.get_config(arg)
    model = nnx.eval_shape(lambda: retrievers.create(config.model, rngs=nnx.Rngs(0)))
    optimizers.create(config.optimizer, config.train.steps)
    assert splits.get(config.data.split).dataset == config.data.name
    assert config.evaluation.select.partition("/")[0] in model.rankings
    assert configuration.to_plain(config)
    assert f"configs/{module.__name__.rpartition('.')[2]}.py" in module.__doc__


def test_the_default_is_as_published():
    config = sketchy.get_config()
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-5, 1e-2)
    assert config.train.batch_size * config.train.steps == 30 * 10_000
    assert (config.evaluation.sketch_stride, config.evaluation.photo_stride) == (20, 10)


def test_the_model_has_every_setting_of_its_class_at_the_published_value():
    signature = inspect.signature(zse.ZSE.__init__).parameters
    published = {name: p.default for name, p in signature.items() if name not in NOT_IN_CONFIG}
    assert default.get_config().model.to_dict() == {"system": "zse", **published}


@pytest.mark.parametrize(("arg", "millions"), [("B/16", 100), ("S/16", 30), ("Ti/16", 10)])
def test_variants_have_their_sizes(arg, millions):
    config = sketchy.get_config(arg)
    model = nnx.eval_shape(lambda: retrievers.create(config.model, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert 0.6 * millions < count / 1e6 < 1.1 * millions


def test_shorthands_follow_the_variant():
    config = sketchy.get_config("Ti/16,steps=7,batch_size=4,evaluation.batch_size=2,seed=3")
    assert config.model.width == 192
    assert (config.train.steps, config.train.batch_size, config.evaluation.batch_size) == (7, 4, 2)
    assert config.seed == 3


def test_shorthands_alone_keep_the_usual_variant():
    assert doodles.get_config("steps=7").model == doodles.get_config().model
    assert sketchy.get_config("steps=7").model == sketchy.get_config().model


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("L/16", "no variant 'L/16'.*Known are B/16"),
        ("B/16,step=3", "no key 'step': did you mean 'train.steps'"),
        ("every=3", "'every' could be .*every or .*every or .*every: write it in full"),
    ],
)
def test_a_wrong_argument_says_what_would_be_right(arg, message):
    with pytest.raises(ValueError, match=message):
        default.with_arg(default.get_config(), arg)
