"""Golden parity of DINOv2, Facebook's and Hugging Face's names, and errors for other weights."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.pretrained.test_torchvision_resnet import relative_error
from tests.zse_jax.pretrained.weights import GOLDEN, draw
from tests.zse_jax.random_weights import drawn
from zse_jax.models.dinov2 import VARIANTS, DINOv2, Variant
from zse_jax.pretrained import dinov2, publishers


@pytest.fixture(params=[0, 4])
def tiny(monkeypatch, request):
    """A network with two narrow blocks, without and with registers."""
    monkeypatch.setitem(VARIANTS, "tiny", Variant(8, 2, 2, registers=request.param))
    return drawn(lambda: DINOv2("tiny", rngs=nnx.Rngs(0)))


def published():
    """DINOv2's part of the golden weights, which also contain CMCA's adapters."""
    return {name: x for name, x in draw("cmca").items() if ".w_" not in name}


def facebook(model, seed=0):
    """Arrays with Facebook's names for a small network."""
    shapes = {}
    state = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for path, source in dinov2.facebook(model).items():
        shape = state[path].shape
        if ".qkv." in source.name:
            shape = (*shape[:-1], 3 * shape[-1])
        if path[0] == "patch_embedding" and len(shape) == 2:
            shapes[source.name] = (shape[1], 3, model.patch, model.patch)
        else:
            shapes[source.name] = shape[::-1] if path[-1] == "kernel" else shape
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def hugging_face(arrays):
    """The same arrays with Hugging Face's names."""
    renamed = {}
    for name, array in arrays.items():
        name = re.sub(r"^norm\.", "layernorm.", name)
        name = re.sub(r"^(cls_token|register_tokens|mask_token)", r"embeddings.\1", name)
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("blocks.", "encoder.layer.").replace(
            "attn.proj", "attention.output.dense"
        )
        name = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", name)
        if "attn.qkv" not in name:
            renamed[name] = array
            continue
        for part, third in zip(("query", "key", "value"), np.split(array, 3), strict=True):
            renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = third
    return renamed


@pytest.mark.slow
def test_golden_class_tokens(golden):
    model, rng = drawn(lambda: DINOv2(rngs=nnx.Rngs(0))), np.random.default_rng(17)
    _, photos = (rng.standard_normal((2, 3, 224, 224), dtype=np.float32) for _ in range(2))
    dinov2.load(model, published())
    found = nnx.jit(lambda model, x: model(x)[0])(model, jnp.asarray(photos.transpose(0, 2, 3, 1)))
    assert relative_error(found, golden("cmca")["plain"]) < 1e-4


def test_facebooks_names_and_the_parameters_correspond_one_to_one():
    model = nnx.eval_shape(lambda: DINOv2(rngs=nnx.Rngs(0)))
    names = json.loads((GOLDEN / "cmca_manifest.json").read_text())
    table = dinov2.facebook(model)
    used = {source.name for source in table.values()}
    assert {name for name in names if ".w_" not in name} - used == {"mask_token"}
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert {path for path, _ in parameters} == table.keys() == dinov2.hugging_face(model).keys()


def test_both_publishers_fill_every_parameter_with_the_same_values(tiny):
    arrays = facebook(tiny) | {"mask_token": np.zeros((1, 8), np.float32)}
    other = drawn(lambda: DINOv2("tiny", rngs=nnx.Rngs(0)), seed=1)
    dinov2.load(tiny, arrays)
    dinov2.load(other, hugging_face(arrays))
    states = [nnx.state(model, nnx.Param) for model in (tiny, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    block, qkv = tiny.blocks[1], arrays["blocks.1.attn.qkv.weight"]
    np.testing.assert_array_equal(block.key.kernel[...], qkv[8:16].T)
    np.testing.assert_array_equal(block.scale_mlp[...], arrays["blocks.1.ls2.gamma"])
    assert publishers.publisher_of(arrays) == "dinov2"
    assert publishers.publisher_of(hugging_face(arrays)) == "huggingface_dinov2"


@pytest.mark.parametrize("variant", ["vits14", "vitl14_reg"])
@pytest.mark.parametrize("rename", [dict, hugging_face], ids=["facebook", "hugging_face"])
def test_the_shapes_determine_the_variant(variant, rename):
    width, depth, _, registers, *_ = VARIANTS[variant]
    arrays = {"cls_token": np.zeros((1, 1, width))}
    arrays |= {f"blocks.{i}.ls1.gamma": np.zeros(1) for i in range(depth)}
    arrays |= {"register_tokens": np.zeros((1, 4, width))} if registers else {}
    assert dinov2.settings(rename(arrays)) == {"backbone": f"dinov2_{variant}"}
    with pytest.raises(ValueError, match=rf"width 99 with {depth} blocks .*known are vits14"):
        dinov2.settings(rename(arrays | {"cls_token": np.zeros((1, 1, 99))}))


@pytest.mark.slow
def test_weights_of_another_network_are_an_error_that_lists_them(tiny):
    arrays = facebook(tiny)
    before = np.asarray(tiny.class_token[...])
    with pytest.raises(ValueError, match="not used: head.weight"):
        dinov2.load(tiny, arrays | {"head.weight": np.zeros((3, 8), np.float32)})
    with pytest.raises(ValueError, match=r"shape differs: positions is \(1, 1370, 8\)"):
        dinov2.load(tiny, arrays | {"pos_embed": np.zeros((1, 257, 8), np.float32)})
    del arrays["blocks.0.ls1.gamma"]
    with pytest.raises(ValueError, match=r"scale_attention \(expected as blocks.0.ls1.gamma"):
        dinov2.load(tiny, arrays)
    np.testing.assert_array_equal(tiny.class_token[...], before)
