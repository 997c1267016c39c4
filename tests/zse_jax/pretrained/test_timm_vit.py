"""timm's names for Vision Transformers: the same network as with Google's names, and strict."""

import jax
import numpy as np
import pytest
from flax import nnx

import configs.default
from tests.zse_jax.pretrained import test_google_vit
from tests.zse_jax.pretrained.test_google_vit import zse
from zse_jax.models.relation_network import default_anchors
from zse_jax.pretrained import google_vit, publishers, timm_vit
from zse_jax.retrievers import create

BLOCK = {
    "LayerNorm_0": "norm1",
    "LayerNorm_2": "norm2",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}


def named_by_timm(arrays):
    """Google's arrays as timm's `_load_weights` converts them."""
    named = {
        "cls_token": arrays["cls"],
        "pos_embed": arrays["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": arrays["embedding/kernel"].transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": arrays["embedding/bias"],
        "norm.weight": arrays["Transformer/encoder_norm/scale"],
        "norm.bias": arrays["Transformer/encoder_norm/bias"],
        "head.weight": arrays["head/kernel"].T,
        "head.bias": arrays["head/bias"],
        "pre_logits.fc.weight": arrays["pre_logits/kernel"].T,
        "pre_logits.fc.bias": arrays["pre_logits/bias"],
    }
    width = len(named["norm.weight"])
    for i in range(sum(name.endswith("LayerNorm_0/scale") for name in arrays)):
        block = f"Transformer/encoderblock_{i}"
        for google, timm in BLOCK.items():
            first = "scale" if "Norm" in google else "kernel"
            named[f"blocks.{i}.{timm}.weight"] = arrays[f"{block}/{google}/{first}"].T
            named[f"blocks.{i}.{timm}.bias"] = arrays[f"{block}/{google}/bias"]
        attention = f"{block}/MultiHeadDotProductAttention_1"
        parts = [f"{attention}/{part}" for part in ("query", "key", "value")]
        named |= {
            f"blocks.{i}.attn.qkv.weight": np.concatenate(
                [arrays[f"{part}/kernel"].reshape(width, -1).T for part in parts]
            ),
            f"blocks.{i}.attn.qkv.bias": np.concatenate(
                [arrays[f"{part}/bias"].reshape(-1) for part in parts]
            ),
            f"blocks.{i}.attn.proj.weight": arrays[f"{attention}/out/kernel"].reshape(-1, width).T,
            f"blocks.{i}.attn.proj.bias": arrays[f"{attention}/out/bias"],
        }
    return named


def published(**changes):
    return named_by_timm(test_google_vit.published(**changes))


@pytest.mark.parametrize("grid", [4, 6])
def test_the_network_is_that_of_googles_names(grid):
    ours, theirs = zse(), zse()
    google_vit.load(theirs, test_google_vit.published(grid=grid))
    assert publishers.fill(ours, published(grid=grid), "vit.bin", "zse") == "timm_vit"
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(ours, nnx.Param), nnx.state(theirs, nnx.Param)
    )


@pytest.mark.slow
def test_every_missing_and_every_other_name_is_an_error():
    model, arrays = zse(), published()
    for name in arrays:
        rest = {x: array for x, array in arrays.items() if x != name}
        if name.startswith(("head.", "pre_logits.")):
            timm_vit.load(model, rest)
            continue
        with pytest.raises(ValueError, match=rf"missing: .* \(expected as {name}\)"):
            timm_vit.load(model, rest)
    others = ("blocks.0.ls1.gamma", "blocks.2.norm1.weight", "fc_norm.weight", "head.w", "norm_pre")
    for other in others:
        with pytest.raises(ValueError, match=f"not used: {other}"):
            timm_vit.load(model, arrays | {other: np.zeros(12, np.float32)})


def shapes(width, depth, mlp, classes):
    """The state dict of timm's `vit_*_patch16_224`, without values."""
    layers = {
        "cls_token": (1, 1, width), "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
        "head.weight": (classes, width), "head.bias": (classes,),
    }  # fmt: skip
    for i in range(depth):
        for name, outputs, inputs in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", mlp, width),
            ("mlp.fc2", width, mlp),
        ):  # fmt: skip
            layers[f"blocks.{i}.{name}.weight"] = outputs, inputs
            layers[f"blocks.{i}.{name}.bias"] = (outputs,)
        for name in ("norm1", "norm2"):
            layers |= {f"blocks.{i}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in layers.items()}


@pytest.mark.parametrize(
    ("variant", "width", "classes"),
    [("B/16", 768, 21843), ("S/16", 384, 1000), ("Ti/16", 192, 1000)],
)
def test_the_published_sizes_are_those_of_the_configs(variant, width, classes):
    found = timm_vit.settings(shapes(width, 12, 4 * width, classes))
    model = configs.default.with_arg(configs.default.get_config(), variant).model
    model.anchors = default_anchors(14 * 14)
    assert found == {name: model[name] for name in found}
    arrays, model.depth = shapes(width, 1, 4 * width, classes), 1
    network = nnx.eval_shape(lambda: create(model, rngs=nnx.Rngs(0)))
    table = timm_vit.table(network)
    names = {source.name for source in table.values()}
    assert names == arrays.keys() - {"head.weight", "head.bias"}
    parameters = dict(nnx.to_flat_state(nnx.state(network, nnx.Param)))
    for path, (name, layout) in table.items():
        assert layout(arrays[name]).shape == parameters[path].shape
