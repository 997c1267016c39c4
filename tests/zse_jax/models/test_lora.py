"""Low-rank adapters: beside any transformer's layers, neutral at first, merged exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.random_weights import drawn
from zse_jax.models import clip, dinov2, lora, vit
from zse_jax.models.layers import linear

DTYPE = jnp.dtype("float32")
MODALITIES = ("sketch", "photo")


def zse_block(rngs):
    return vit.Block(8, 2, 16, dropout=0.0, dtype=DTYPE, rngs=rngs)


BLOCKS = {
    "DINOv2": lambda rngs: dinov2.Block(8, 2, dtype=DTYPE, rngs=rngs),
    "CLIP": lambda rngs: clip.Block(8, 2, dtype=DTYPE, rngs=rngs),
    "ZSE": zse_block,
}


def tokens(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, 5, 8)), jnp.float32)


@nnx.jit
def run(block):
    kept = jnp.zeros((2, 4), jnp.int32)
    return block(tokens(), kept)[0] if isinstance(block, vit.Block) else block(tokens())[0]


def adapted(make, zero=False):
    """A block of random weights with a pair of adapters for each modality."""

    def build():
        block = make(nnx.Rngs(0))
        lora.adapt(block, 3, modalities=MODALITIES, rngs=nnx.Rngs(1))
        return block

    block = drawn(build)
    for path, value in nnx.to_flat_state(nnx.state(block, nnx.Param)):
        if zero and path[-1] == "up":
            value[...] = jnp.zeros(value.shape)
    return block


@pytest.mark.parametrize("name", BLOCKS)
def test_zero_adapters_beside_every_transformer_change_nothing(name):
    block = adapted(BLOCKS[name], zero=True)
    plain = run(lora.merged(block, "photo"))
    np.testing.assert_allclose(run(lora.for_modality(block, "photo")), plain, atol=1e-6)


@pytest.mark.parametrize("name", BLOCKS)
def test_merged_layers_compute_what_layers_and_adapters_do(name):
    block = adapted(BLOCKS[name])
    results = {}
    for modality in MODALITIES:
        plain = lora.merged(block, modality)
        results[modality] = run(lora.for_modality(block, modality))
        difference = jnp.linalg.norm(run(plain) - results[modality])
        assert difference <= 1e-5 * jnp.linalg.norm(results[modality])
        assert not any(isinstance(x, lora.AdaptedLinear) for _, x in nnx.iter_modules(plain))
    assert jnp.linalg.norm(results["sketch"] - results["photo"]) > 0.01


def test_merging_and_choosing_a_modality_leave_the_network_as_it_was():
    block = adapted(BLOCKS["DINOv2"])
    before = jax.tree.map(np.asarray, nnx.state(block))
    lora.merged(block, "sketch")
    assert lora.for_modality(block, "sketch").query.modality == "sketch"
    assert block.query.modality is None
    assert isinstance(block.query, lora.AdaptedLinear)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(block), before)


def test_a_pair_for_all_images_needs_no_modality_and_starts_as_published():
    layer = linear(400, 3, dtype=DTYPE, rngs=nnx.Rngs(0))
    parent = nnx.Dict(out=layer)
    lora.adapt(parent, 2, rngs=nnx.Rngs(1))
    pair = parent["out"].adapters["shared"]
    assert parent["out"].kernel is layer.kernel
    assert (pair.down.shape, pair.up.shape) == ((400, 2), (2, 3))
    assert not pair.up[...].any()
    # Kaiming-uniform with a = sqrt(5): bound 1/sqrt(fan in), deviation bound/sqrt(3).
    assert jnp.abs(pair.down[...]).max() <= 400**-0.5
    assert float(pair.down[...].std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.1)
    x = jnp.ones((2, 400))
    np.testing.assert_allclose(parent["out"](x), layer(x), atol=1e-6)


def test_the_towers_of_clip_and_zse_take_adapters_as_a_whole():
    sizes = clip.CLIPSizes(image_size=16, patch_size=8, width=8, depth=2, heads=2, embed_dim=4)

    def count(make):
        def build():
            tower = make(nnx.Rngs(0))
            lora.adapt(tower, 2, rngs=nnx.Rngs(1))
            return tower

        modules = nnx.iter_modules(nnx.eval_shape(build))
        return sum(isinstance(module, lora.AdaptedLinear) for _, module in modules)

    assert count(lambda rngs: clip.VisionTower(sizes, dtype=DTYPE, rngs=rngs)) == 2 * 4
    options = {"depth": 3, "heads": 2, "mlp_width": 16, "dropout": 0.0, "dtype": DTYPE}
    assert count(lambda rngs: vit.Encoder(width=8, **options, rngs=rngs)) == 3 * 4


def test_wrong_ranks_layers_and_modalities_are_errors():
    block = adapted(BLOCKS["CLIP"])
    with pytest.raises(ValueError, match="modality=None: .*adapters for photo and sketch. Choose"):
        block.mlp_in(tokens())
    with pytest.raises(ValueError, match="modality='text'"):
        lora.merged(block, "text")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        lora.adapt(block, 0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Dict has no linear layers called query"):
        lora.adapt(nnx.Dict(), 1, rngs=nnx.Rngs(0))
