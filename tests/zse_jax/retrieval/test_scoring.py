"""Similarities by tiles: equal to numpy, one compilation, bounded, one device or eight."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.zse_jax.retrieval.fakes import Fake, cosines, distances, fake, features
from zse_jax.retrieval import scoring, tiles
from zse_jax.retrieval.scoring import similarity, similarity_blocks
from zse_jax.retrieval.tiles import default_tile

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
def test_eight_devices_return_what_one_returns(sharding, ranking, queries, gallery):
    sketches, photos = features(queries, 1), features(gallery, 2)
    one = similarity(fake(), sketches, photos, ranking, tile=(4, 8))
    eight = similarity(fake(), sketches, photos, ranking, tile=(4, 8), sharding=sharding)
    np.testing.assert_allclose(eight, one, atol=1e-5)


def test_features_may_be_on_devices(sharding):
    sketches, photos = features(4, 1), features(16, 2)
    placed = jax.device_put(photos, sharding)
    result = similarity(fake(), jax.device_put(sketches), placed, "distance", sharding=sharding)
    np.testing.assert_allclose(result, distances(sketches, photos), atol=1e-5)


@pytest.mark.parametrize("ranking", ORACLES)
def test_features_on_the_mesh_on_a_device_or_mapped_from_disk_give_the_same(
    ranking, sharding, tmp_path
):
    sketches, photos = features(5, 1), features(19, 2)
    expected = ORACLES[ranking](sketches, photos)
    mapped = {name: np.lib.format.open_memmap(
        tmp_path / f"{name}.npy", "w+", leaf.dtype if name == "vector" else np.uint16, leaf.shape
    ) for name, leaf in photos.items()}  # fmt: skip
    mapped["vector"][:] = photos["vector"]
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    for place in (photos, mapped, jax.device_put(photos), jax.device_put(photos, everywhere)):
        for mesh in (None, sharding) if place is not photos else (sharding,):
            if mesh is None and isinstance(place["vector"], jax.Array):
                place = jax.device_get(place)
            found = similarity(fake(), sketches, place, ranking, tile=(2, 4), sharding=mesh)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_of_arrays_on_the_device_do_not_pass_through_the_host(monkeypatch, sharding):
    monkeypatch.setattr(tiles, "read", None)
    photos = features(9)
    for everywhere in (None, NamedSharding(sharding.mesh, PartitionSpec())):
        rows = tiles.rows_from(4, 8, 9)
        tile = tiles.on_device(jax.device_put(photos, everywhere), rows, everywhere and sharding)
        np.testing.assert_array_equal(tile["vector"][:5], photos["vector"][4:])
        np.testing.assert_array_equal(tile["vector"][5:], photos["vector"][[8, 8, 8]])
        assert everywhere is None or tile["vector"].sharding.is_equivalent_to(sharding, 2)


def test_a_tile_of_photos_moves_once_for_each_block_of_sketches(monkeypatch):
    moves = []
    monkeypatch.setattr(
        tiles,
        "read",
        lambda x, rows, old=tiles.read: (moves.append(rows[0]), old(x, rows))[1],
    )
    vectors = {"vector": features(8)["vector"]}, {"vector": features(12)["vector"]}
    similarity(fake(), *vectors, "distance", tile=(4, 4))
    assert moves == [0, 0, 4, 8, 4, 0, 4, 8]


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4), (1, 8)])
def test_sketches_and_photos_are_spread_over_both_axes_of_the_mesh(data, fsdp):
    mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    sketches, photos = features(21, 1), features(37, 2)
    Fake.tiles.clear()
    result = similarity(fake(), sketches, photos, "distance", tile=(2, 4), sharding=sharding)
    assert Fake.tiles == [(2, 4)]  # On each of the eight devices.
    np.testing.assert_allclose(result, distances(sketches, photos), atol=1e-5)
    assert tiles.layout(sharding)[2:] == (fsdp, data)


@pytest.mark.parametrize("ranking", ORACLES)
def test_large_embeddings_are_ranked_in_blocks(monkeypatch, ranking):
    monkeypatch.setattr(scoring, "_VECTOR_BYTES", 1000)
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", 4 * 29 * 5)
    sketches, photos = features(13, 1), features(29, 2)
    blocks = list(similarity_blocks(fake(), sketches, photos, ranking, tile=(5, 7)))
    assert [(rows.start, rows.stop) for rows, _ in blocks] == [(0, 5), (5, 10), (10, 13)]
    expected = ORACLES[ranking](sketches, photos)
    np.testing.assert_allclose(np.concatenate([b for _, b in blocks]), expected, atol=1e-5)


def test_blocks_of_embeddings_stay_on_the_device(sharding):
    for mesh in (None, sharding):
        blocks = similarity_blocks(fake(), features(3), features(5), "cosine", sharding=mesh)
        [(_, block)] = blocks
        assert isinstance(block, jax.Array) and block.is_fully_replicated


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
    light = {name: np.ones((80, 1), np.float32) for name in ("vector", "tokens")}
    heavy = light | {"tokens": np.ones((80, 2**18 - 1), np.float32)}
    assert default_tile(light, light) == (64, 64)
    assert default_tile(heavy, heavy) == (32, 32)  # Of 1 MiB an item: 8 x 64 MiB.


def test_tiles_grow_with_the_memory_of_the_device(monkeypatch):
    item = {"tokens": np.ones((1, 2**18), np.float32)}
    monkeypatch.setattr(tiles, "free_device_memory", lambda _: 2**33)
    assert default_tile(item, item) == (64, 64)
    monkeypatch.setattr(tiles, "free_device_memory", lambda _: 2**37)
    assert default_tile(item, item) == (256, 256)


def out_of_memory(monkeypatch, fits):
    """Scoring fails as on a full device, after compilation, for tiles that do not fit."""
    real = scoring.score

    def score(graphdef, state, sketches, photos, **options):
        if not fits(len(sketches["vector"]), len(photos["vector"])):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nDetails")
        return real(graphdef, state, sketches, photos, **options)

    monkeypatch.setattr(scoring, "score", score)


def test_a_tile_that_does_not_fit_is_halved_with_a_warning(monkeypatch, caplog):
    out_of_memory(monkeypatch, lambda sketches, photos: sketches * photos <= 12)
    sketches, photos = features(21, 1), features(37, 2)
    with caplog.at_level("WARNING"):
        found = similarity(fake(), sketches, photos, "distance", tile=(8, 16), progress="it")
    np.testing.assert_allclose(found, distances(sketches, photos), atol=1e-5)
    assert "A tile of 8 sketches x 16 photos does not fit the device: RESOURCE" in caplog.text
    assert caplog.messages[-1] == "Continuing with tiles of 4 sketches x 2 photos."


def test_a_device_too_small_for_a_pair_is_an_error(monkeypatch):
    out_of_memory(monkeypatch, lambda *_: False)
    with pytest.raises(MemoryError, match="Not even one sketch and one photo"):
        similarity(fake(), features(3), features(5), "distance")


def test_other_failures_of_the_device_are_not_hidden(monkeypatch):
    def score(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(scoring, "score", score)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        similarity(fake(), features(3), features(5), "distance")


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

    with pytest.raises(ValueError, match=r"Broken.embedding returned shape \(1, 16\) for 5"):
        similarity(Broken(rngs=nnx.Rngs(0)), features(3), features(5), "cosine")


@pytest.mark.parametrize(
    ("queries", "gallery"), [(200, 400), (65, 129), (7, 64), (15_229, 17_101), (1, 1)]
)
def test_even_tiles_waste_little(queries, gallery):
    height, width = tiles.even((64, 64), (queries, gallery), None)
    assert height <= 64
    assert width <= 64
    for count, side in ((queries, height), (gallery, width)):
        assert -(-count // side) * side <= 1.03 * count
