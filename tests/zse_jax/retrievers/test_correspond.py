"""Local evidence of every system: it is consistent with the similarity that the system ranks by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.compiled import compiled
from tests.zse_jax.retrieval.fakes import fake
from tests.zse_jax.retrievers import test_clip_prompt as clip
from tests.zse_jax.retrievers import test_efficient_cnn as cnn
from tests.zse_jax.retrievers import test_zse as zse
from zse_jax.models.relation_network import cosine_matrix
from zse_jax.retrievers.base import Explainable

SPATIAL = {"anchor_map": "spatial"}
EVERY_TOKEN = {"anchors": 16}
SELECTED = {"keep_rate": 0.5, "keep_blocks": (1,), "anchors": 8}


def correspond(model, sketches, photos):
    return compiled(model.correspond)(sketches, photos)


def zse_pair(**changes):
    model = zse.still(**changes)
    return model, correspond(model, zse.images(3), zse.images(3, 1))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, SPATIAL, EVERY_TOKEN, SELECTED], ids=str)
def test_zse_similarity_is_the_logit_of_its_score(changes):
    model, found = zse_pair(**changes)
    encode = compiled(model.encode)
    scores = compiled(model.score)(
        encode(zse.images(3), "sketch"), encode(zse.images(3, 1), "photo")
    )
    np.testing.assert_allclose(jax.nn.sigmoid(found.similarity), jnp.diag(scores), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [SPATIAL, EVERY_TOKEN, SELECTED], ids=str)
def test_zse_relation_network_maps_the_match_to_the_similarity(changes):
    model, found = zse_pair(**changes)
    np.testing.assert_allclose(model.similarity_of(found.match), found.similarity, rtol=1e-5)
    assert "anchors" in model.local_evidence


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"keep_rate": 0.25, "keep_blocks": (1,), "anchors": 1, **SPATIAL}],
    ids=["published", "merged after selection"],
)
def test_anchors_that_mix_the_image_are_replaced_by_tokens(changes):
    model, found = zse_pair(**changes)
    tokens = [compiled(model.encode)(x, "photo") for x in (zse.images(3), zse.images(3, 1))]
    out = compiled(model.pairs)(*tokens)
    expected = cosine_matrix(out.sketch_tokens[:, 1:], out.photo_tokens[:, 1:])
    np.testing.assert_allclose(found.match, expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity_of(found.match), expected.mean((1, 2)), rtol=1e-5)
    assert "mixes the whole image" in model.local_evidence


@pytest.mark.slow
def test_zse_attention_is_that_of_the_cross_layers_without_the_retrieval_token():
    model, found = zse_pair(**SPATIAL)
    tokens = [compiled(model.encode)(x, "photo") for x in (zse.images(3), zse.images(3, 1))]
    cross = model.cross_attention
    sketch = compiled(cross.project_sketches)(tokens[0])
    photo = compiled(cross.project_photos)(tokens[1])
    for query, key, attention in (
        (sketch.query, photo.key, found.sketch_attention),
        (photo.query, sketch.key, found.photo_attention),
    ):
        logits = jnp.einsum("bhtc,bhsc->bhts", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits, axis=-1).mean(axis=1)[:, 1:, 1:]
        np.testing.assert_allclose(attention, weights, atol=1e-5)
    assert (np.asarray(found.sketch_attention).sum(axis=2) < 1).all()


@pytest.mark.slow
def test_zse_importance_is_the_retrieval_tokens_attention_in_the_last_block():
    model, found = zse_pair(**SPATIAL)

    @nnx.jit
    def attention(model, images):
        first, last = model.encoder.blocks
        x = first(model.tokenizer(zse.normalise(images)), jnp.zeros((3, 16), jnp.int32)).tokens
        return last.attention(last.norm_attention(x))[1]

    weights = attention(model, zse.images(3)).mean(axis=1)[:, 0, 1:]
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.sketch_importance, expected, rtol=1e-4)


@pytest.mark.slow
def test_zse_reports_which_places_remain_after_token_selection():
    _, found = zse_pair(**SELECTED)
    assert found.match.shape == (3, 8, 8)
    assert found.sketch_attention.shape == found.photo_attention.shape == (3, 16, 16)
    kept = np.asarray(found.sketch_places)
    assert kept.shape == (3, 8)
    assert (np.diff(kept, axis=1) > 0).all()
    for row, weights, attention in zip(
        kept, found.sketch_importance, found.sketch_attention, strict=True
    ):
        dropped = np.setdiff1d(np.arange(16), row)
        assert (weights[dropped] == 0).all()
        assert (weights[row] > 0).all()
        assert (attention[dropped] == 0).all()
        assert (attention[row].sum(axis=1) > 0).all()
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["projection", "features", "root_features"])
def test_efficient_cnn_decomposes_the_cosine_of_its_embeddings_exactly(layer):
    model = nnx.view(cnn.build(retrieval_layer=layer), use_running_average=True)
    sketches, photos = cnn.pixels(3), cnn.pixels(3, seed=1)
    found = correspond(model, sketches, photos)
    encode = compiled(model.encode)
    cosine = (encode(sketches, "sketch") * encode(photos, "photo")).sum(axis=1)
    assert found.match.shape == (3, 4, 4)
    np.testing.assert_allclose(found.similarity, cosine, rtol=1e-4)
    np.testing.assert_allclose(model.similarity_of(found.match), cosine, rtol=1e-4)
    assert np.ptp(found.match, axis=(1, 2)).min() > 1e-3
    assert "each pair of places" in model.local_evidence


@pytest.mark.parametrize("changes", [{}, {"prompt_length": 0}, {"encoders": "separate"}], ids=str)
def test_clip_compares_patches_in_the_joint_space_and_keeps_its_similarity(changes):
    model = clip.build(**changes)
    sketches, photos = clip.images(2), clip.images(2, seed=1)
    found = correspond(model, sketches, photos)
    embeddings = (
        model.embedding(compiled(model.encode)(x, m))
        for x, m in ((sketches, "sketch"), (photos, "photo"))
    )
    cosine = jnp.einsum("be,be->b", *embeddings)
    np.testing.assert_allclose(found.similarity, cosine, rtol=1e-4, atol=1e-6)
    places = model.clip.visual.positions.shape[0] - 1
    assert found.match.shape == (2, places, places)
    assert np.abs(found.match).max() <= 1 + 1e-5
    np.testing.assert_allclose(found.sketch_importance.sum(axis=1), 1, rtol=1e-5)
    assert (np.asarray(found.photo_importance) >= 0).all()
    assert "never trained to match" in model.local_evidence


@pytest.mark.slow
def test_clips_rollout_of_one_block_is_half_that_blocks_attention():
    """With one block the other half stays on the class token, so the shares are the attention's."""
    model = clip.build(prompt_length=0)
    tower = model.clip.visual
    images = model._normalise(clip.images(2))

    @nnx.jit
    def attention(tower, images):
        tokens = tower._tokens(images, None)
        return tower.blocks[0].attention(tower.blocks[0].norm_attention(tokens))[1]

    weights = attention(tower, images)
    weights = weights.mean(axis=1)[:, 0, 1:]
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(compiled(tower.local)(images).rollout, expected, rtol=1e-5)


def test_a_system_without_local_evidence_is_not_explainable():
    assert not isinstance(fake(), Explainable)


def test_by_default_the_similarity_of_places_is_their_mean():
    match = jnp.arange(8.0).reshape(2, 2, 2)
    np.testing.assert_allclose(Explainable.similarity_of(zse.build(), match), [1.5, 5.5])
