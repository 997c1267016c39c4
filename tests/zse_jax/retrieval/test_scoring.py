"""Similarities by tiles: equal to numpy, one compilation, bounded, one device or eight."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.retrieval.fakes import Fake, cosines, distances, fake, features
from zse_jax.retrieval.scoring import similarity

ORACLES = {"distance": distances, "cosine": cosines}


@pytest.mark.parametrize("ranking", ORACLES)
@pytest.mark.parametrize(("queries", "gallery"), [(1, 1), (13, 29), (8, 32)])
def test_equals_every_pair_on_its_own(ranking, queries, gallery):
    sketches, photos = features(queries, 1), features(gallery, 2)
    result = similarity(fake(), sketches, photos, ranking, tile=(4, 8))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, ORACLES[ranking](sketches, photos), atol=1e-5)


@pytest.mark.parametrize("ranking", ORACLES)
@pytest.mark.parametrize(("queries", "gallery"), [(3, 5), (13, 100)])
def test_eight_devices_give_what_one_gives(sharding, ranking, queries, gallery):
    sketches, photos = features(queries, 1), features(gallery, 2)
    one = similarity(fake(), sketches, photos, ranking, tile=(4, 8))
    eight = similarity(fake(), sketches, photos, ranking, tile=(4, 8), sharding=sharding)
    np.testing.assert_allclose(eight, one, atol=1e-5)


def test_features_may_lie_on_devices(sharding):
    sketches, photos = features(4, 1), features(16, 2)
    placed = jax.device_put(photos, sharding)
    result = similarity(fake(), jax.device_put(sketches), placed, "distance", sharding=sharding)
    np.testing.assert_allclose(result, distances(sketches, photos), atol=1e-5)


@pytest.mark.parametrize("ranking", ORACLES)
def test_large_embeddings_are_ranked_in_blocks(monkeypatch, ranking):
    monkeypatch.setattr("zse_jax.retrieval.scoring._EMBEDDING_TILE", (5, 7))
    monkeypatch.setattr("zse_jax.retrieval.scoring._TILE_BYTES", 1000)
    sketches, photos = features(13, 1), features(29, 2)
    result = similarity(fake(), sketches, photos, ranking)
    np.testing.assert_allclose(result, ORACLES[ranking](sketches, photos), atol=1e-5)


def test_compiles_once_whatever_the_sizes():
    retriever = fake()
    for queries, gallery in ((13, 29), (4, 8), (50, 60)):
        similarity(retriever, features(queries), features(gallery), "distance", tile=(4, 8))
    assert retriever.compilations("score") == 1


def test_no_tile_is_larger_than_asked(sharding):
    Fake.tiles.clear()
    similarity(fake(), features(13), features(100), "distance", tile=(4, 8))
    similarity(fake(), features(13), features(100), "distance", tile=(4, 8), sharding=sharding)
    assert Fake.tiles == [(4, 8), (4, 8)]  # Per device.


def test_tiles_shrink_as_features_grow():
    light = {name: np.ones((40, 1), np.float32) for name in ("vector", "tokens")}
    heavy = light | {"tokens": np.ones((40, 2**18 - 1), np.float32)}
    Fake.tiles.clear()
    for photos in (light, heavy):
        similarity(fake(), photos, photos, "distance")
    assert Fake.tiles == [(8, 32), (8, 16)]  # 8 x 16 pairs of 2 x 1 MiB: 256 MiB.


def test_a_small_task_has_a_small_tile():
    Fake.tiles.clear()
    similarity(fake(), features(2), features(10), "distance")
    assert Fake.tiles == [(2, 10)]


def test_progress_counts_pairs(capsys):
    similarity(fake(), features(3), features(5), "distance")
    assert capsys.readouterr().err == ""
    similarity(fake(), features(3), features(5), "distance", progress="distance")
    assert "15/15" in capsys.readouterr().err


@pytest.mark.parametrize("ranking", ORACLES)
def test_nan_is_an_error_that_names_the_pair(ranking):
    sketches, photos = features(6), features(20)
    photos["vector"][17] = np.nan
    message = f"The {ranking} similarity of sketch 0 with photo 17, .* is NaN"
    with pytest.raises(FloatingPointError, match=message):
        similarity(fake(), sketches, photos, ranking, tile=(4, 8))


def test_an_unknown_ranking_names_the_nearest():
    with pytest.raises(ValueError, match="no ranking 'distnace': did you mean 'distance'"):
        similarity(fake(), features(1), features(1), "distnace")


def test_features_of_different_lengths_are_an_error():
    photos = features(5)
    photos["tokens"] = photos["tokens"][:4]
    with pytest.raises(ValueError, match=r"photo features .*\['tokens'\] \(4, 3, 16\)"):
        similarity(fake(), features(2), photos, "distance")


def test_no_features_are_an_error():
    with pytest.raises(ValueError, match="sketch features must"):
        similarity(fake(), features(0), features(2), "distance")


def test_an_empty_tile_is_an_error():
    with pytest.raises(ValueError, match=r"tile=\(0, 4\)"):
        similarity(fake(), features(1), features(1), "distance", tile=(0, 4))


def test_scores_of_another_shape_are_an_error():
    class Broken(Fake):
        def score(self, sketches, photos):
            return super().score(photos, sketches)

    with pytest.raises(ValueError, match=r"Broken.score returned shape \(5, 3\) for 3 sketches"):
        similarity(Broken(rngs=nnx.Rngs(0)), features(3), features(5), "distance")


def test_embeddings_of_another_shape_are_an_error():
    class Broken(Fake):
        def embedding(self, features):
            return features["vector"][:1]

    with pytest.raises(ValueError, match=r"Broken.embedding returned shape \(1, 16\) for 3"):
        similarity(Broken(rngs=nnx.Rngs(0)), features(3), features(5), "cosine")
