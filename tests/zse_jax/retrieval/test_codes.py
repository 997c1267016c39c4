"""Binary codes: what ITQ learns, how codes are packed, and that search is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from tests.zse_jax.retrieval.fakes import batches, fake, images
from zse_jax.retrieval import codes
from zse_jax.retrieval.encoding import encode
from zse_jax.retrieval.protocols import zero_shot
from zse_jax.retrieval.scoring import similarity
from zse_jax.retrievers.base import Encoder


def embeddings(count=300, width=96, seed=0):
    """Unit vectors around ten centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((10, width))
    x = centres[rng.integers(0, 10, count)] + 0.3 * rng.standard_normal((count, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def packed(x, projection):
    return np.asarray(codes.pack(*map(jnp.asarray, (x, *projection))))


def random_codes(count, words, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (count, words), dtype=np.uint32)


def bits_of(words):
    return (words[:, :, None] >> np.arange(32, dtype=np.uint32) & 1).reshape(len(words), -1)


@pytest.mark.slow
def test_the_projection_is_centred_and_its_columns_are_orthonormal():
    x = embeddings()
    projection = codes.learn(x, 64)
    np.testing.assert_allclose(projection.mean, x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(projection.matrix.T @ projection.matrix, np.eye(64), atol=1e-5)
    assert projection.bits == 64


def test_iterations_lower_the_quantisation_error():
    x = embeddings()
    errors = [codes.quantisation_error(codes.learn(x, 32, iterations=n), x) for n in (0, 1, 5, 50)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_a_projection_depends_only_on_embeddings_and_seed():
    one, two = (codes.learn(embeddings(), 32, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.matrix, two.matrix)


def test_codes_are_the_signs_of_the_projected_embeddings():
    x = embeddings(20)
    projection = codes.learn(embeddings(), 64)
    signs = (x - projection.mean) @ projection.matrix >= 0
    words = packed(x, projection)
    assert words.shape == (20, 2)
    np.testing.assert_array_equal(bits_of(words), signs)


def test_a_projection_can_be_saved_and_loaded(tmp_path):
    projection = codes.learn(embeddings(), 32)
    codes.save(projection, tmp_path / "codes.npz")
    for ours, read in zip(projection, codes.load(tmp_path / "codes.npz"), strict=True):
        np.testing.assert_array_equal(ours, read)


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_hamming_counts_the_bits_that_differ(words, seed):
    queries, gallery = random_codes(3, words, seed), random_codes(5, words, seed + 1)
    want = (bits_of(queries)[:, None] != bits_of(gallery)[None]).sum(axis=-1)
    np.testing.assert_array_equal(codes.hamming(queries, gallery), want)


@given(st.integers(1, 3), st.integers(1, 60), st.integers(0, 10**6))
def test_search_is_a_stable_sort_of_all_distances(words, k, seed):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(0, 4, (60, words), dtype=np.uint32)  # so that many distances are equal
    queries = rng.integers(0, 4, (4, words), dtype=np.uint32)
    distances, positions = codes.search(queries, gallery, k)
    all_distances = codes.hamming(queries, gallery)
    want = np.argsort(all_distances, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(positions, want)
    np.testing.assert_array_equal(distances, np.take_along_axis(all_distances, want, axis=1))


def coded(bits=32):
    x = embeddings(width=16 * 4, seed=1)

    class Wide(Encoder):
        """A vector of 64 numbers for each image."""

        def __init__(self):
            self.image_size = 4
            self.projection = nnx.Linear(48, 64, rngs=nnx.Rngs(0))

        def encode(self, images, modality):
            return self.projection(images.reshape(len(images), -1).astype(jnp.float32) / 255)

        def embedding(self, features):
            return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    wide = Wide()
    return wide, codes.BinaryCodes(wide, codes.learn(x, bits))


def test_any_system_ranks_by_hamming_in_the_same_protocol():
    _, retriever = coded()
    labels = np.arange(6) % 3
    found = zero_shot(
        retriever, batches(images(6, 1), labels), batches(images(9, 2), np.arange(9) % 3)
    )
    assert {key.partition("/")[0] for key in found.flat()} == {"hamming"}


@pytest.mark.slow
def test_the_hamming_ranking_is_minus_the_distance_of_the_codes_on_one_device_and_eight(sharding):
    wide, retriever = coded()
    labels = np.zeros(16, np.int32)
    sketches, _ = encode(retriever, batches(images(16, 1), labels), "sketch")
    photos, _ = encode(retriever, batches(images(16, 2), labels), "photo")
    distances = codes.hamming(np.asarray(sketches), np.asarray(photos))
    for where in (None, sharding):
        scores = similarity(retriever, sketches, photos, "hamming", sharding=where)
        np.testing.assert_array_equal(scores, -distances)
    still = nnx.view(wide, raise_if_not_found=False)
    embedding = still.embedding(still.encode(jnp.asarray(images(16, 1)), "sketch"))
    projection = codes.Projection(retriever.mean[...], retriever.matrix[...])
    np.testing.assert_array_equal(sketches, codes.pack(embedding, *projection))


@pytest.mark.slow
def test_the_cosine_of_embeddings_of_codes_follows_from_their_distance():
    _, retriever = coded(64)
    words = jnp.asarray(random_codes(5, 2))
    unit = retriever.embedding(words)
    distance = codes.hamming(np.asarray(words), np.asarray(words))
    np.testing.assert_allclose(unit @ unit.T, 1 - 2 * distance / 64, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "bits", "message"),
    [
        ((300, 96), 60, "60 bits cannot be learned .* a multiple of 32 of at most 96"),
        ((300, 96), 128, "128 bits cannot be learned from 300 embeddings of width 96"),
        ((60, 96), 64, "more embeddings than bits"),
    ],
)
def test_bits_that_cannot_be_learned_are_an_error(shape, bits, message):
    with pytest.raises(ValueError, match=message):
        codes.learn(embeddings(*shape), bits)


def test_embeddings_that_vary_in_too_few_directions_are_an_error():
    flat = np.zeros((100, 64), np.float32)
    flat[:, :8] = embeddings(100, 8)
    with pytest.raises(ValueError, match=r"vary in \d+ directions only, fewer than 32 bits"):
        codes.learn(flat, 32)


def test_impossible_searches_are_errors():
    with pytest.raises(ValueError, match="codes have 64 bits, the gallery's 32"):
        codes.search(random_codes(1, 2), random_codes(5, 1), 1)
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k={k} must be between 1 and the gallery's 5"):
            codes.search(random_codes(1, 2), random_codes(5, 2), k)


def test_codes_of_another_system_are_an_error():
    still = nnx.view(fake(), deterministic=True)
    retriever = codes.BinaryCodes(still, codes.learn(embeddings(), 32))
    with pytest.raises(ValueError, match="for embeddings of width 96, and these have width 16"):
        jax.eval_shape(lambda x: retriever.encode(x, "photo"), jnp.asarray(images(2)))
