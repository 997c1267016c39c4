"""Encoding a data set: nothing dropped, nothing padded, one compilation, one device or eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tests.zse_jax.retrieval.fakes import SIZE, WIDTH, Fake, batches, fake, images
from zse_jax.retrieval import encoding
from zse_jax.retrieval.encoding import encode, evaluation_state, fetched, in_chunks


@pytest.mark.parametrize("count", [8, 21])
def test_returns_every_image_once_in_order_without_padding(count):
    retriever, pixels = fake(), images(count)
    labels = np.arange(count) * 10
    features, found = encode(retriever, batches(pixels, labels), "photo")
    still = nnx.view(retriever, deterministic=True)
    expected = still.encode(jnp.asarray(pixels), "photo")
    assert found.dtype == np.int32 and found.tolist() == labels.tolist()
    np.testing.assert_allclose(features["vector"], expected["vector"], atol=1e-5)
    assert features["tokens"].shape == (count, *expected["tokens"].shape[1:])


def test_features_are_numpy_in_the_precision_of_the_model():
    features, _ = encode(fake(), batches(images(3), np.zeros(3, int)), "photo")
    assert {type(leaf) for leaf in jax.tree.leaves(features)} == {np.ndarray}
    assert features["vector"].dtype == np.float32
    assert features["tokens"].dtype == jnp.bfloat16


def test_masked_images_within_a_batch_are_excluded():
    pixels = images(8)
    [batch] = batches(pixels, np.arange(8))
    batch["mask"] = np.arange(8) % 3 == 0
    features, labels = encode(fake(), [batch], "photo")
    whole, _ = encode(fake(), batches(pixels, np.arange(8)), "photo")
    assert labels.tolist() == [0, 3, 6]
    np.testing.assert_array_equal(features["vector"], whole["vector"][::3])


def test_dropout_is_off_and_the_retriever_stays_in_training():
    retriever = fake()
    data = batches(images(8), np.zeros(8, int))
    first, _ = encode(retriever, data, "sketch")
    second, _ = encode(retriever, data, "sketch")
    np.testing.assert_array_equal(first["vector"], second["vector"])
    assert (first["vector"] != 0).all()
    assert retriever.dropout.deterministic is False


def test_the_modality_reaches_the_retriever():
    retriever, data = fake(), batches(images(2), np.zeros(2, int))
    sketch, photo = (encode(retriever, data, name)[0]["vector"] for name in ("sketch", "photo"))
    np.testing.assert_allclose(sketch, 2 * photo, rtol=1e-6)


def test_compiles_once_for_all_batches_and_evaluations():
    retriever = fake()
    data = batches(images(30), np.zeros(30, int))
    before, _ = encode(retriever, data, "photo")
    retriever.projection.bias[...] = jnp.ones(WIDTH)  # Training continued.
    after, _ = encode(retriever, data, "photo")
    assert retriever.compilations("encode") == 1
    np.testing.assert_allclose(after["vector"] - before["vector"], 1, atol=1e-5)


def committed_elsewhere(retriever, sharding):
    nnx.update(retriever, jax.device_put(nnx.state(retriever), jax.devices()[3]))


def split_over_fsdp(retriever, sharding):
    kernel = NamedSharding(sharding.mesh, PartitionSpec("fsdp"))
    nnx.update(
        retriever, jax.device_put(nnx.state(retriever), NamedSharding(kernel.mesh, PartitionSpec()))
    )
    retriever.projection.kernel.set_value(
        jax.device_put(retriever.projection.kernel.get_value(), kernel)
    )


@pytest.mark.parametrize("place", [lambda *_: None, committed_elsewhere, split_over_fsdp])
def test_eight_devices_return_what_one_returns(sharding, place):
    data = batches(images(21), np.arange(21))
    expected, labels = encode(fake(), data, "photo")
    retriever = fake()
    place(retriever, sharding)
    features, found = encode(retriever, data, "photo", sharding=sharding)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(features["vector"], expected["vector"], atol=1e-5)
    np.testing.assert_array_equal(features["tokens"].shape, expected["tokens"].shape)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_on_one_cpu_device_a_few_images_at_a_time_give_the_same_features(monkeypatch, count):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(encoding, "_CHUNK_PIXELS", 2 * 16)
    seen = []

    def features(images):
        seen.append(len(images))
        return {"sum": images.sum(axis=(1, 2, 3)), "rows": images[:, 0]}

    batch = jnp.asarray(np.random.default_rng(0).random((count, 4, 4, 3), np.float32))
    jax.tree.map(np.testing.assert_array_equal, in_chunks(features, batch), features(batch))
    assert set(seen[:-1]) == {1: {1}, 2: {2}, 3: {3}, 6: {2}, 7: {2, 1}}[count]


def test_batches_may_already_be_on_the_mesh(sharding):
    data = batches(images(21), np.arange(21))
    expected, labels = encode(fake(), data, "photo", sharding=sharding)
    features, found = encode(fake(), jax.device_put(data, sharding), "photo", sharding=sharding)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(features["vector"], expected["vector"])


def test_split_parameters_stay_split_unless_asked(sharding):
    retriever = fake()
    split_over_fsdp(retriever, sharding)
    for replicate in (False, True):
        _, state = evaluation_state(retriever, sharding, replicate=replicate)
        assert state["projection"]["kernel"].get_value().is_fully_replicated is replicate


def test_the_next_batch_is_dispatched_before_the_last_is_fetched():
    log = []

    def dispatched():
        for number in range(3):
            log.append(f"dispatch {number}")
            yield jnp.asarray(number)

    log.extend(f"fetch {value}" for value in fetched(dispatched()))
    assert log == [
        "dispatch 0",
        "dispatch 1",
        "fetch 0",
        "dispatch 2",
        "fetch 1",
        "fetch 2",
    ]


def test_progress_is_silent_unless_named(capsys):
    data = batches(images(9), np.zeros(9, int))
    encode(fake(), data, "photo")
    assert capsys.readouterr().err == ""
    encode(fake(), data, "photo", progress="the gallery")
    assert "the gallery: 100%" in capsys.readouterr().err


def test_no_images_is_an_error():
    [batch] = batches(images(1), np.zeros(1, int))
    for data in ([], [{**batch, "mask": np.zeros(8, bool)}]):
        with pytest.raises(ValueError, match="There is no sketch to encode"):
            encode(fake(), data, "sketch")


def test_a_batch_without_mask_is_an_error():
    with pytest.raises(ValueError, match="batch 0 has no mask; its entries are image, label"):
        encode(fake(), [{"image": images(2), "label": np.zeros(2, np.int32)}], "photo")


def test_a_batch_that_does_not_divide_over_the_mesh_is_an_error(sharding):
    data = batches(images(6), np.zeros(6, int), size=6)
    with pytest.raises(ValueError, match="6 images does not divide over the 8 devices"):
        encode(fake(), data, "photo", sharding=sharding)


def test_features_that_are_not_finite_are_an_error_that_names_the_image():
    class Broken(Fake):
        def encode(self, images, modality):
            features = super().encode(images, modality)
            vector = jnp.where(images[:, :1, 0, 0] == 7, jnp.nan, features["vector"])
            return features | {"vector": vector}

    pixels = np.full((13, SIZE, SIZE, 3), 100, np.uint8)
    pixels[[10, 12]] = 7
    with pytest.raises(FloatingPointError, match=r"sketch 10, .* 2 of the 5 images"):
        encode(Broken(rngs=nnx.Rngs(0)), batches(pixels, np.zeros(13, int)), "sketch")


def test_padding_may_contain_anything():
    class Broken(Fake):
        def encode(self, images, modality):
            features = super().encode(images, modality)
            return features | {"vector": features["vector"] / images.max(axis=(1, 2, 3))[:, None]}

    features, _ = encode(
        Broken(rngs=nnx.Rngs(0)), batches(images(3) | 1, np.zeros(3, int)), "photo"
    )
    assert np.isfinite(features["vector"]).all()


def test_features_that_do_not_lead_with_the_image_are_an_error():
    class Broken(Fake):
        def encode(self, images, modality):
            return {"mean": images.astype(jnp.float32).mean(axis=0)}

    with pytest.raises(ValueError, match=r"Broken.encode returned features\['mean'\] of shape"):
        encode(Broken(rngs=nnx.Rngs(0)), batches(images(8), np.zeros(8, int)), "photo")
