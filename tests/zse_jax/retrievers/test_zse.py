"""The ZSE retriever at a small size: its interface, loss and variants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax import abstract
from tests.zse_jax.compiled import compiled
from tests.zse_jax.random_weights import drawn
from zse_jax.losses import euclidean_triplet, relation_mse
from zse_jax.retrievers import create
from zse_jax.retrievers.zse import normalise

TINY = {
    "system": "zse",
    "image_size": 32,
    "patch_size": 8,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp_width": 32,
    "cross_heads": 2,
    "cross_mlp_width": 24,
    "anchors": 4,
    "anchor_width": 8,
}


def build(seed=0, dtype="float32", **changes):
    rngs = {"params": seed, "dropout": seed + 1}
    return drawn(lambda: create({**TINY, **changes}, dtype=dtype, rngs=nnx.Rngs(**rngs)), seed)


def still(**arguments):
    return nnx.view(build(**arguments), deterministic=True)


def images(count, seed=0):
    return jnp.asarray(
        np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    )


def quadruplets(count):
    return {
        "sketches": images(2 * count, 1).reshape(count, 2, 32, 32, 3),
        "photos": images(2 * count, 2).reshape(count, 2, 32, 32, 3),
    }


def test_pixels_are_normalised_to_mean_and_std_of_one_half():
    pixels = jnp.asarray([0, 51, 255], jnp.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(normalise(pixels).ravel(), [-1, (0.2 - 0.5) / 0.5, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "atol"),
    [
        ({}, 1e-5),
        pytest.param({"cross_value": "other"}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"anchor_map": "spatial"}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"anchors": 16}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"anchors": 16, "cross_value": "other"}, 1e-5, marks=pytest.mark.slow),
        pytest.param(
            {"keep_rate": 0.9, "keep_blocks": (1, 2), "anchors": 14}, 1e-5, marks=pytest.mark.slow
        ),
        pytest.param({"dtype": "bfloat16"}, 1e-2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_score_of_every_pair_is_the_score_of_that_pair(changes, atol):
    model = still(**changes)
    n = jax.eval_shape(lambda pixels: model.encode(pixels, "photo"), images(1)).shape[1]
    sketches, photos = (
        jax.random.normal(jax.random.key(i), (count, n, 16), changes.get("dtype", "float32"))
        for i, count in enumerate((3, 11))
    )
    every = jnp.repeat(sketches, 11, axis=0), jnp.tile(photos, (3, 1, 1))
    logits = nnx.jit(lambda model, *pairs: model.pairs(*pairs).logit)(model, *every)
    if "dtype" not in changes:  # Spread scores out, so that an exchange of two pairs shows.
        final, gain, mean = model.relation_network.layers[-1], 0.5 / logits.std(), logits.mean()
        final.kernel[...] *= gain
        final.bias[...] = gain * (final.bias[...] - mean)
        logits = gain * (logits - mean)
    expected = jax.nn.sigmoid(logits).reshape(3, 11)
    matrix = nnx.jit(type(model).score)(model, sketches, photos)
    paired = nnx.jit(type(model).score_pairs)(model, sketches, photos[: len(sketches)])
    np.testing.assert_allclose(paired, jnp.diagonal(matrix), atol=atol)
    assert matrix.shape == (3, 11)  # Two groups of photos, the last one filled up.
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=atol)
    assert "dtype" in changes or np.diff(np.sort(expected, axis=None)).mean() > 100 * atol


@pytest.mark.slow
def test_a_single_photo_is_scored():
    model = still()
    encode = compiled(model.encode)
    sketches, photos = encode(images(2), "sketch"), encode(images(1, 1), "photo")
    expected = compiled(model.pairs)(sketches, jnp.broadcast_to(photos, sketches.shape)).score
    score = compiled(model.score)(sketches, photos)
    np.testing.assert_allclose(score[:, 0], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooled_tokens_score_as_means_in_the_place_of_their_tokens(dtype):
    model = still(anchor_map="spatial", dtype=dtype)
    pooled = model.with_pooled_tokens()
    pixels = images(3), images(5, 1)
    whole = [compiled(model.encode)(some, "photo") for some in pixels]
    means = [compiled(pooled.encode)(some, "photo") for some in pixels]
    for tokens, pooling in zip(whole, means, strict=True):
        grid = np.asarray(tokens[:, 1:], np.float32).reshape(-1, 2, 2, 2, 2, 16)
        expected = grid.mean(axis=(2, 4)).reshape(-1, 4, 16)
        np.testing.assert_allclose(pooling[:, 1:].astype("float32"), expected, atol=2e-2)
        np.testing.assert_array_equal(pooling[:, 0], tokens[:, 0])
        np.testing.assert_array_equal(pooled.embedding(pooling), model.embedding(tokens))
    # Each mean in the place of all four tokens, whose anchors the whole convolution makes.
    sketch, photo = pooled.cross_attention(means[0], means[1][:3])
    repeated = [
        jnp.repeat(jnp.repeat(x[:, 1:].reshape(3, 2, 2, 16), 2, 1), 2, 2) for x in (sketch, photo)
    ]
    _, logit = model._relate(*(x.reshape(3, 16, 16) for x in repeated))
    scores = compiled(pooled.score)(*means)
    assert scores.shape == (3, 5)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(jnp.diagonal(scores), jax.nn.sigmoid(logit), atol=tolerance)
    assert jax.tree.leaves(nnx.state(pooled))[0] is jax.tree.leaves(nnx.state(model))[0]
    assert not model.pooled_tokens


@pytest.mark.parametrize("changes", [{}, {"anchor_map": "spatial", "anchors": 16}], ids=str)
def test_anchors_that_do_not_merge_places_cannot_be_pooled(changes):
    with pytest.raises(ValueError, match="needs anchors that each merge 2 x 2 places"):
        abstract.retriever(TINY | changes).with_pooled_tokens()


def test_pair_output_has_the_documented_shapes():
    model = still()
    tokens = compiled(model.encode)(images(3), "sketch")
    out = compiled(model.pairs)(tokens, tokens)
    assert out.sketch_tokens.shape == out.photo_tokens.shape == (3, 17, 16)
    assert out.cosine.shape == (3, 4, 4)
    assert out.logit.shape == out.score.shape == (3,)
    np.testing.assert_allclose(out.score, jax.nn.sigmoid(out.logit), rtol=1e-6)


@pytest.mark.slow
def test_embedding_is_the_normalised_retrieval_token():
    model = still()
    tokens = compiled(model.encode)(images(3), "photo")
    embedding = model.embedding(tokens)
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    cosine = (embedding * tokens[:, 0]).sum(1) / jnp.linalg.norm(tokens[:, 0], axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


@pytest.mark.slow
def test_loss_is_the_weighted_sum_of_its_terms_over_the_right_pairs():
    model, batch = still(), quadruplets(3)
    loss, terms = compiled(model.loss)(batch)
    encode = compiled(model.encode)
    out = [
        compiled(model.pairs)(
            encode(batch["sketches"][:, i], "sketch"),
            encode(batch["photos"][:, i], "photo"),
        )
        for i in range(2)
    ]
    triplet = euclidean_triplet(
        out[0].sketch_tokens[:, 0], out[0].photo_tokens[:, 0], out[1].photo_tokens[:, 0]
    )
    score = jnp.concatenate([out[0].score, out[1].score])
    relation = relation_mse(score, jnp.asarray([1.0] * 3 + [0.0] * 3))
    np.testing.assert_allclose(terms["triplet"], triplet, rtol=1e-5)
    np.testing.assert_allclose(terms["relation"], relation, rtol=1e-5)
    np.testing.assert_allclose(loss, 2 * triplet + 4 * relation, rtol=1e-5)


@pytest.mark.slow
def test_every_parameter_receives_a_gradient():
    model = still()
    batch = quadruplets(2)
    gradients = nnx.jit(nnx.grad(lambda m: m.loss(batch)[0]))(model)
    flat = nnx.to_flat_state(gradients)
    assert not [path for path, leaf in flat if not np.abs(leaf[...]).max() > 0]


@pytest.mark.slow
def test_dropout_is_random_and_off_in_a_deterministic_view():
    model, batch = build(), quadruplets(2)
    assert compiled(model.loss)(batch)[0] != compiled(model.loss)(batch)[0]
    quiet = nnx.view(model, deterministic=True)
    assert compiled(quiet.loss)(batch)[0] == compiled(quiet.loss)(batch)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"cross_value": "other"}, 17),
        ({"anchor_map": "spatial"}, 17),
        ({"anchors": 16}, 17),
        ({"keep_rate": 0.9, "keep_blocks": (1, 2), "anchors": 14}, 15),
    ],
    ids=["textbook cross-attention", "spatial anchors", "all tokens", "token selection"],
)
def test_variants_train_and_score(changes, tokens):
    model = still(**changes)
    features = compiled(model.encode)(images(2), "sketch")
    assert features.shape == (2, tokens, 16)
    assert np.isfinite(compiled(model.score)(features, features)).all()
    assert np.isfinite(compiled(model.loss)(quadruplets(2))[0])


@pytest.mark.slow
def test_published_network_has_the_published_number_of_parameters():
    shapes = abstract.retriever({"system": "zse"})
    count = sum(x.size for x in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
    assert count == 98_240_536


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_scores():
    model = still(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}
    tokens = compiled(model.encode)(images(2), "sketch")
    assert tokens.dtype == jnp.bfloat16
    assert jax.eval_shape(model.score, tokens, tokens).dtype == jnp.float32
    reference = compiled(still().encode)(images(2), "sketch")
    error = jnp.linalg.norm(tokens.astype(jnp.float32) - reference) / jnp.linalg.norm(reference)
    assert error < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "zsee"}, "did you mean 'zse'"),
        ({"widht": 3}, "config.model.widht.*did you mean 'width'"),
        ({"patch_size": 7}, "image_size=32 is not a multiple of patch_size=7"),
        ({"heads": 3}, "3 attention heads cannot share a width of 16"),
        ({"anchors": 5}, "5 anchors cannot be made from 16 local tokens: choose 16 or 4"),
        ({"keep_rate": 0.5}, "rate 0.5 in block 4 is impossible"),
    ],
)
def test_incompatible_settings_are_errors_with_valid_alternatives(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
