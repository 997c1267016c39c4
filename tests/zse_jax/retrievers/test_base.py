"""The three interfaces: what each requires, and what it provides by default."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax import small_systems
from tests.zse_jax.retrieval.fakes import fake, features
from tests.zse_jax.retrievers import test_clip_prompt as clip
from tests.zse_jax.retrievers import test_zse as zse
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import (
    Correspondence,
    Encoder,
    Explainable,
    Retriever,
    TextQueries,
)


class Pixels(Encoder):
    """The smallest encoder: the pixels of an image."""

    def encode(self, images, modality):
        return images.reshape(len(images), -1) / 255

    def embedding(self, features):
        return features / jnp.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("model", [Pixels(), fake()], ids=["cosine", "own score"])
def test_pairs_are_scored_as_in_the_matrix_of_all_pairs(model):
    sketches, photos = features(4, 1), features(4, 2)
    if isinstance(model, Pixels):
        sketches, photos = sketches["vector"], photos["vector"]
    expected = jnp.diagonal(model.score(sketches, photos))
    np.testing.assert_allclose(model.score_pairs(sketches, photos), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("base", "missing"), [(Encoder, "encode"), (Retriever, "loss"), (Explainable, "correspond")]
)
def test_a_system_without_a_required_method_cannot_be_created(base, missing):
    methods = {"encode", "embedding", "loss", "correspond", "local_evidence"} - {missing}
    incomplete = type("Incomplete", (base,), dict.fromkeys(methods, lambda self: None))
    with pytest.raises(TypeError, match=f"abstract.*{missing}"):
        incomplete()


class Small(Pixels, Explainable):
    """A system of 4 pixels that explains, whose methods trust their arguments."""

    image_size = 4
    local_evidence = ""

    def correspond(self, sketches, photos):
        return Correspondence(jnp.zeros(len(sketches)), jnp.zeros((len(sketches), 1, 1)))


GOOD = np.zeros((2, 4, 4, 3), np.uint8)
WRONG = {
    "floats": (GOOD.astype(np.float32), "float32 of shape .*prepare_photo.x, size=retriever.image"),
    "floats of jax": (jnp.zeros((2, 4, 4, 3)), "float32"),
    "int32": (GOOD.astype(np.int32), "int32"),
    "another size": (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\]: prepare each image"),
    "channels first": (GOOD.transpose(0, 3, 1, 2), r"\[2, 3, 4, 4\]"),
    "grey": (GOOD[..., :1], r"\[2, 4, 4, 1\]"),
    "one image": (GOOD[0], r"add the axis of the batch: images\[None\]"),
    "a list": ([1, 2], "a list"),
}


@pytest.mark.parametrize(("images", "message"), WRONG.values(), ids=WRONG)
def test_images_that_would_be_encoded_wrongly_are_errors(images, message):
    with pytest.raises(ValueError, match=message):
        Small().encode(images, "photo")
    with pytest.raises(ValueError, match=message):
        Small().correspond(GOOD, images)
    with pytest.raises(ValueError, match="prepare_sketch|images"):
        Small().correspond(images, GOOD)


@pytest.mark.parametrize("modality", ["sketches", "Photo", "", None, 1])
def test_an_unknown_modality_is_an_error(modality):
    with pytest.raises(ValueError, match=f"modality={modality!r} must be 'sketch' or 'photo'"):
        Small().encode(GOOD, modality)


def test_right_images_are_encoded_also_under_jit():
    for images in (GOOD, jnp.asarray(GOOD)):
        assert Small().encode(images, "photo").shape == (2, 48)
        assert Small().encode(images=images, modality="sketch").shape == (2, 48)
    assert nnx.jit(lambda m, x: m.encode(x, "photo"))(Small(), GOOD).shape == (2, 48)
    with pytest.raises(ValueError, match="float32"):
        nnx.jit(lambda m, x: m.encode(x, "photo"))(Small(), GOOD.astype(np.float32))


@pytest.mark.parametrize("name", registry.SYSTEMS)
def test_every_system_checks_what_it_encodes(name):
    size = small_systems.SIZE
    model = nnx.eval_shape(lambda: small_systems.built(name))
    with pytest.raises(ValueError, match="uint8 arrays of shape"):
        model.encode(np.zeros((1, size, size, 3), np.float32), "photo")
    with pytest.raises(ValueError, match="'sketch' or 'photo'"):
        model.encode(np.zeros((1, size, size, 3), np.uint8), "sketches")


def test_what_a_system_can_do_shows_in_its_type():
    made = zse.build()
    assert isinstance(made, Retriever)
    assert isinstance(made, Explainable)
    assert not isinstance(fake(), Retriever | Explainable)
    assert isinstance(clip.build(), TextQueries)
    assert not isinstance(made, TextQueries)
