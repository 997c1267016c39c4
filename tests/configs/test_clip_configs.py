"""The CLIP-AT settings: every config builds, with every field of its class."""

import inspect

import jax
import pytest
from flax import nnx

from configs import (
    clip_default,
    clip_quickdraw,
    clip_sketchy_fine_grained,
    clip_sketchy_generalized,
    clip_sketchy_split2,
    clip_tuberlin,
)
from data_pipelines import sampling, splits
from tests.zse_jax import abstract
from zse_jax.evaluation import evaluator
from zse_jax.retrievers.clip_prompt import ClipPrompt
from zse_jax.runtime import config_io
from zse_jax.training import optimizers, step

MODULES = [
    clip_quickdraw, clip_sketchy_fine_grained, clip_sketchy_generalized, clip_sketchy_split2,
    clip_tuberlin,
]  # fmt: skip


def shapes(config):
    return abstract.retriever(config.model)


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("arg", ["tiny", "published,tiny"])
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_config_describes_a_run(module, arg):
    config = module.get_config(arg)
    model = shapes(config)
    _, groups = step.trainable(model)
    assert set(config.optimizer.learning_rates) <= set(groups.values())
    assert splits.get(config.data.split).dataset == config.data.name
    evaluator.check_select(config, model.rankings)
    level = sampling.sampler(config.train.sampler or model.batch_kind).level
    assert level == ("instance" if config.model.recipe == "fine_grained" else "class")
    assert config_io.to_plain(config)


def test_the_model_has_every_setting_of_its_class_at_its_default():
    signature = inspect.signature(ClipPrompt.__init__).parameters
    defaults = {
        name: p.default for name, p in signature.items() if name not in ("self", "dtype", "rngs")
    }
    model = clip_default.get_config().model.to_dict()
    every_system = {"system": "clip_prompt", "centred": False, "preprocessing": "pad"}
    assert model == every_system | defaults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arg", "millions"), [("B/32", 87.8), ("B/16", 86.2), ("L/14", 304), ("L/14@336", 304.3)]
)
def test_sizes_are_those_of_the_published_image_towers(arg, millions):
    assert count(shapes(clip_sketchy_split2.get_config(arg))) / 1e6 == pytest.approx(
        millions, rel=2e-3
    )


def test_baselines_do_not_train():
    raw, text = (clip_sketchy_split2.get_config(arg) for arg in ("raw", "tiny,text"))
    assert (raw.train.steps, raw.model.prompt_length, raw.evaluation.queries) == (0, 0, "sketch")
    assert (text.train.steps, text.model.prompt_length, text.evaluation.queries) == (0, 0, "text")
    assert text.model.text_tower
    for config in (text, clip_sketchy_split2.get_config("tiny,raw")):
        optimizers.create(config.optimizer, 0, {}, ClipPrompt.parameter_groups)


@pytest.mark.parametrize(
    ("module", "sketches"),
    [(clip_sketchy_split2, 75_471 - 12_694), (clip_tuberlin, 220 * 80),
     (clip_quickdraw, 330_000 - 92_291), (clip_sketchy_fine_grained, 75_471 - 12_694)],
)  # fmt: skip
def test_training_takes_sixty_epochs_in_batches_of_64(module, sketches):
    config = module.get_config()
    sampler = sampling.sampler(config.train.sampler or ClipPrompt.batch_kind)
    assert config.train.batch_size * (sampler.pairs or 1) == 64
    assert config.train.steps * 64 / sketches == pytest.approx(60, rel=1e-3)


def test_ablations_are_variants_that_change_one_thing():
    changed = {
        "frozen_norms": {"model.trainable", "model.encoders"},
        "deep": {"model.trainable", "model.encoders", "model.prompt_depth"},
        "single_prompt": {"model.prompts"},
        "one_token": {"model.prompt_length"},
        "no_classification": {"model.classification_weight"},
        "no_delta": {"model.delta_weight"},
        "no_shuffle": {"model.shuffle_weight"},
    }
    paper = clip_sketchy_split2.get_config()
    for variant, keys in changed.items():
        config = clip_sketchy_split2.get_config(variant)
        assert config_io.differences(paper, config).keys() == keys, variant


def test_class_names_are_filled_in_from_the_data_in_the_order_of_the_labels():
    config = clip_sketchy_split2.get_config().lock()
    full = step.complete(config)
    assert tuple(full.model.class_names) == splits.get("sketchy_split2").seen
    assert config.model.class_names is None
    assert step.complete(full) is full
    again = config_io.from_plain(config_io.to_plain(full))
    assert config_io.differences(again, step.complete(config)) == {}


def test_an_unknown_variant_is_an_error_that_lists_the_variants():
    with pytest.raises(ValueError, match="no variant 'S/16'.*B/32, B/16, L/14"):
        clip_sketchy_split2.get_config("S/16")
