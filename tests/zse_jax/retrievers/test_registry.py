"""The registry: complete entries, and no other file that names a system."""

import ast

import pytest
from flax import nnx

from tests.source import files, syntax
from tests.zse_jax import small_systems
from zse_jax.checkpoints import conversion
from zse_jax.pretrained import publishers
from zse_jax.retrievers import create, registry
from zse_jax.retrievers.base import Retriever

REGISTRY = "zse_jax/retrievers/registry.py"


@pytest.mark.parametrize("name", registry.SYSTEMS)
def test_every_entry_is_complete(name):
    system = registry.SYSTEMS[name]
    assert issubclass(registry.imported(system.implementation), Retriever)
    assert callable(registry.imported(system.copy_parameters))
    model = conversion.default_config(name).model
    assert model.system == name
    assert system.pretrained.keys() <= publishers.PUBLISHERS.keys()
    retriever = nnx.eval_shape(lambda: small_systems.built(name))
    for pretrained in system.pretrained.values():
        assert {*pretrained.uninferred, *pretrained.settings} <= {*model}
        assert not pretrained.part or hasattr(retriever, pretrained.part)


def test_every_publisher_is_accepted_by_a_system():
    assert all(publishers.systems_of(name) for name in publishers.PUBLISHERS)


def test_a_system_that_does_not_accept_the_weights_is_an_error():
    with pytest.raises(ValueError, match="zse: weights of torchvision_resnet are for efficient_c"):
        conversion.config_of("torchvision_resnet", {}, "zse")


def _strings(tree):
    """Every string of a file but docstrings, bare strings, and the modules of publishers."""
    nodes = [*ast.walk(tree)]
    others = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    others |= {
        id(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Publisher"
    }
    for node in nodes:
        string = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if string and id(node) not in others:
            yield node


def test_no_other_file_names_a_system_or_refers_to_code_by_a_string():
    names = {*registry.SYSTEMS}
    found = [
        f"{file}:{node.lineno}: {node.value!r} belongs in {REGISTRY}"
        for file in files("zse_jax", "data_pipelines")
        if str(file) != REGISTRY
        for node in _strings(syntax(file))
        if node.value in names or node.value.startswith("zse_jax.retrievers.")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system": "zsee"}, "did you mean 'zse'"),
        ({}, "config.model.system=None is unknown. Known: clip_prompt, cmca, efficient_cnn, zse"),
        ({"system": "zse", "depht": 2}, "config.model.depht is not a setting .* mean 'depth'"),
        ({"system": "zse", "preprocessing": "cut"}, "preprocessing='cut': choose one of crop, pad"),
    ],
)
def test_unknown_names_give_the_nearest(settings, message):
    with pytest.raises(ValueError, match=message):
        create(settings, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_rematerialisation_is_an_argument_of_create():
    settings = small_systems.config("zse").model
    model = create(settings, remat="blocks", rngs=nnx.Rngs(0))
    assert model.encoder.blocks[0].rematerialised
    with pytest.raises(ValueError, match="remat='block': choose one of none, blocks"):
        create(settings, remat="block", rngs=nnx.Rngs(0))
