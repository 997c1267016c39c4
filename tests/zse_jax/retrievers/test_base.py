"""The three interfaces: what each requires, and what it provides by default."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.retrieval.fakes import fake, features
from tests.zse_jax.retrievers import test_clip_prompt as clip
from tests.zse_jax.retrievers import test_zse as zse
from zse_jax.retrievers.base import Encoder, Explainable, Retriever, TextQueries


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


def test_what_a_system_can_do_shows_in_its_type():
    assert isinstance(zse.build(), Retriever)
    assert isinstance(zse.build(), Explainable)
    assert not isinstance(fake(), Retriever | Explainable)
    assert isinstance(nnx.eval_shape(clip.build), TextQueries)
    assert not isinstance(zse.build(), TextQueries)
