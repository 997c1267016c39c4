"""ZSE on the map of a CNN: tokens, what trains, initial weights, checkpoints, explanations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import sketchy_split2
from tests.zse_jax import abstract, small_systems
from tests.zse_jax.compiled import compiled
from tests.zse_jax.pretrained import test_efficientnet_lite as lite
from tests.zse_jax.random_weights import drawn
from zse_jax.losses import unit
from zse_jax.models.backbone import BACKBONES, frozen_output
from zse_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, Variant
from zse_jax.models.layers import normalise_map
from zse_jax.pretrained import publishers
from zse_jax.retrievers import create, registry
from zse_jax.retrievers.base import evaluation_view

NARROW = Variant(0.1, 0.2, small_systems.SIZE)
HYBRID = small_systems.ZSE | {
    "system": "zse", "backbone": "efficientnet_narrow", "frozen_statistics": True,
    "frozen_blocks": 2, "width": 16, "mlp_width": 16, "anchor_map": "spatial",
    "contrastive_weight": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A backbone with one block a stage, as narrow as possible."""
    monkeypatch.setitem(VARIANTS, "narrow", NARROW)
    made = functools.partial(EfficientNetLite, "narrow")
    monkeypatch.setitem(BACKBONES, "efficientnet_narrow", made)


def build(**changes):
    return drawn(lambda: create(HYBRID | changes, rngs=nnx.Rngs(params=0, dropout=1)))


def shapes(**changes):
    return nnx.eval_shape(lambda: create(HYBRID | changes, rngs=nnx.Rngs(params=0, dropout=1)))


def batch():
    return {name: jnp.asarray(x) for name, x in small_systems.batch("zse", 4).items()}


@pytest.mark.parametrize(("size", "stride", "grid"), [(32, 8, 4), (36, 8, 5), (32, 16, 2)])
def test_tokens_are_the_places_of_the_map_of_the_stride(size, stride, grid):
    model = shapes(image_size=size, patch_size=stride, anchors=grid**2)
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)
    tokens = nnx.eval_shape(lambda m, x: m.encode(x, "photo"), evaluation_view(model), image)
    assert tokens.shape == (2, 1 + grid**2, 16)


def test_the_recipe_has_zses_grid_and_trains_what_follows_its_map():
    model = abstract.retriever(sketchy_split2.get_config("hybrid").model)
    assert (model.tokenizer.grid**2, model.backbone.depth, model.backbone.fine) == (196, 16, 11)
    assert model.anchors_are_places
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    groups = {(path[0], model.parameter_group(path)) for path in paths}
    assert groups == {
        ("backbone", None), ("backbone", "backbone"), ("tokenizer", "backbone"),
        ("encoder", "backbone"), ("cross_attention", "head"), ("anchors", "head"),
        ("relation_network", "head"),
    }  # fmt: skip


def test_a_pyramid_has_two_maps_and_every_token_starts_from_their_mean():
    model = evaluation_view(build(pyramid=True, patch_size=8, anchors=16))
    plain = evaluation_view(build(patch_size=8, anchors=16))
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)), jnp.uint8)
    pixels = model.backbone.mean[0] + jnp.zeros((2, 32, 32, 3))
    both, fine = (
        nnx.jit(lambda m, x: m.local_features(x))(m.backbone, pixels) for m in (model, plain)
    )
    channels = plain.backbone.features
    assert both.shape[:3] == fine.shape[:3] == (2, 4, 4)
    assert both.shape[3] == model.backbone.features == channels + 1280
    coarse = both[..., channels:]
    np.testing.assert_allclose(coarse[:, 0, 0], coarse[:, 3, 3], atol=1e-6)  # its map is 1 x 1
    np.testing.assert_allclose(coarse.mean(axis=-1), 0, atol=1e-5)
    tokens = nnx.jit(lambda m, x: m(x))(model.tokenizer, both)
    local = model.tokenizer.projection(jax.nn.standardize(both)).reshape(2, 16, -1)
    retrieval = jnp.broadcast_to(model.tokenizer.retrieval_token[...], (2, 1, 16))
    own = jnp.concatenate([retrieval, local], axis=1) + model.tokenizer.positions[...]
    np.testing.assert_allclose(tokens, own + local.mean(axis=1, keepdims=True), atol=1e-4)
    assert compiled(model.encode)(image, "photo").shape == (2, 17, 16)


def test_a_pyramid_freezes_no_block_behind_its_map():
    model = build(pyramid=True, patch_size=8, anchors=16)
    with pytest.raises(ValueError, match=r"cannot be frozen: set config.model.frozen_blocks"):
        model.backbone.upper_local(jnp.zeros((1, 4, 4, 8)), model.backbone.fine + 1)
    with pytest.raises(ValueError, match="needs the stride"):
        EfficientNetLite("narrow", pyramid=True, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_gradients_reach_all_that_trains_and_no_frozen_block():
    model = nnx.view(build(), deterministic=True)
    gradients = nnx.jit(nnx.grad(lambda m: m.loss(batch())[0]))(model)
    reached = {path: np.abs(leaf[...]).max() > 0 for path, leaf in nnx.to_flat_state(gradients)}
    wanted = {path: model.parameter_group(path) is not None for path in reached}
    assert reached == wanted
    assert {model.parameter_group(path) for path in reached} == {None, "backbone", "head"}


def test_the_output_of_frozen_blocks_replaces_images():
    model, given = nnx.view(build(), deterministic=True), batch()
    loss, terms = compiled(model.loss)(given)
    backbone, blocks = model.frozen_layers
    outputs = {
        name: nnx.jit(lambda m, x: frozen_output(m, x, blocks))(
            backbone, given[name].reshape(-1, *given[name].shape[2:])
        )
        for name in ("sketches", "photos")
    }
    assert outputs["sketches"].shape == (8, 8, 8, 8)
    given |= {name: x.reshape(4, 2, *x.shape[1:]) for name, x in outputs.items()}
    again, same = compiled(model.loss)(given)
    np.testing.assert_allclose(again, loss, rtol=1e-4)
    np.testing.assert_allclose(same["contrastive"], terms["contrastive"], rtol=1e-4)
    parts = 2 * terms["triplet"] + 4 * terms["relation"] + terms["contrastive"]
    np.testing.assert_allclose(loss, parts, rtol=1e-5)


def test_parts_of_the_loss_that_relate_samples_are_named():
    assert shapes().across_samples == ("contrastive",)
    moving = {"contrastive_weight": 0.0, "frozen_statistics": False, "frozen_blocks": 0}
    assert shapes(**moving).across_samples == ("batch statistics",)
    assert shapes(contrastive_weight=0.0).across_samples == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "efficientnet_lite9"}, "is unknown: choose one of"),
        ({"backbone": "resnet50"}, "cannot end with a map.*choose one of efficientnet_lite0"),
        ({"patch_size": 12}, "no map of stride 12: choose one of 2, 4, 8, 16, 32"),
        ({"frozen_blocks": 9}, "has 3 blocks"),
        ({"frozen_statistics": False}, "needs config.model.frozen_statistics=true"),
        ({"backbone": None}, "frozen_blocks=2 needs config.model.backbone"),
        ({"image_size": 40, "anchors": 16}, "16 anchors cannot be made from 25 local tokens"),
    ],
)
def test_impossible_settings_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        shapes(**changes)


def test_weights_of_the_whole_network_fill_the_backbone_strictly():
    whole = nnx.eval_shape(lambda: EfficientNetLite("narrow", rngs=nnx.Rngs(0)))
    arrays = lite.arrays_of(whole)
    model = build()
    assert publishers.fill(model, arrays, "x.pth", "zse") == "efficientnet_lite"
    assert {float(np.abs(x).max()) for x in jax.tree.leaves(nnx.state(model.backbone))} == {0.0}
    assert float(jnp.abs(model.tokenizer.projection.kernel[...]).max()) > 0
    for changed, message in (
        (arrays | {"_blocks.0.extra": arrays["_bn0.bias"]}, "_blocks.0.extra"),
        ({k: x for k, x in arrays.items() if k != "_blocks.2._bn1.bias"}, "_blocks.2._bn1.bias"),
    ):
        with pytest.raises(ValueError, match=message):
            publishers.fill(build(), changed, "x.pth", "zse")


def test_weights_for_another_kind_of_network_are_refused():
    arrays = lite.arrays_of(nnx.eval_shape(lambda: EfficientNetLite("narrow", rngs=nnx.Rngs(0))))
    published = small_systems.ZSE | {"system": "zse"}
    plain = nnx.eval_shape(lambda: create(published, rngs=nnx.Rngs(params=0, dropout=1)))
    with pytest.raises(ValueError, match="set config.model.backbone"):
        publishers.fill(plain, arrays, "x.pth", "zse")
    names = {"Transformer/encoder_norm/scale": np.zeros(1)}
    with pytest.raises(ValueError, match="choose weights of its backbone"):
        publishers.fill(shapes(), names, "x.npz", "zse")
    with pytest.raises(ValueError, match=r"needs a ZSE with config.model.backbone=None"):
        publishers.export("zse_sbir", shapes(), "runs/x")


def test_pixels_are_normalised_as_the_backbone_was_trained(monkeypatch):
    seen = []

    def local_features(self, images):
        seen.append(np.asarray(images))
        return jnp.zeros((len(images), 4, 4, self.features))

    monkeypatch.setattr(EfficientNetLite, "local_features", local_features)
    pixels = small_systems.batch("zse", 1)["photos"][0]
    build(frozen_blocks=0)._tokenized(jnp.asarray(pixels))
    np.testing.assert_allclose(seen[0], (pixels.astype(np.float32) - 127) / 128, atol=1e-6)


@pytest.fixture
def other():
    settings = {
        "system": "efficient_cnn", "backbone": "efficientnet_narrow", "image_size": 32,
        "frozen_statistics": True, "seen_classes": 3, "embedding_width": 8,
    }  # fmt: skip
    return drawn(lambda: create(settings, rngs=nnx.Rngs(5)))


def test_the_backbone_of_another_system_can_be_taken_over(other):
    """Without what only the other network has, and without the rest of the system."""
    model = build(pyramid=True, patch_size=8, anchors=16)
    before = nnx.to_flat_state(nnx.state(model, nnx.Param))
    before = {path: np.asarray(value[...]) for path, value in before}
    registry.copy_parameters("zse", model, other)
    given = dict(nnx.to_flat_state(nnx.state(other.backbone, nnx.Param)))
    for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[:2] != ("tokenizer", "projection"):
            expected = given[path[1:]][...] if path[0] == "backbone" else before[path]
            np.testing.assert_array_equal(value[...], expected, err_msg=str(path))
    assert any(path[0] == "backbone" and (before[path] != given[path[1:]][...]).any()
               for path in before)  # fmt: skip


def test_tokens_start_at_the_directions_that_the_classifier_reads(other):
    """Orthonormal ones, which keep as much of its kernel as 16 dimensions can."""
    model = build(pyramid=True, patch_size=8, anchors=16)
    random = np.asarray(model.tokenizer.projection.kernel[...])
    registry.copy_parameters("zse", model, other)
    kernel = np.asarray(model.tokenizer.projection.kernel[...])
    head = np.asarray(other.backbone.head.kernel[...])
    detail = len(kernel) - len(head)
    np.testing.assert_allclose(kernel[detail:].T @ kernel[detail:], np.eye(16), atol=1e-4)
    largest = np.linalg.svd(head, compute_uv=False)[:16]
    found = np.linalg.svd(kernel[detail:].T @ head, compute_uv=False)
    np.testing.assert_allclose(found, largest, rtol=1e-3)
    np.testing.assert_array_equal(kernel[:detail], random[:detail])
    assert not model.tokenizer.projection.bias[...].any()


def test_a_map_that_is_normalised_as_a_whole_keeps_places_where_nothing_is():
    maps = 0.1 + np.random.default_rng(0).random((2, 3, 3, 4), np.float32)
    maps[:, 0, 0] *= 0.1
    whole, places = (np.asarray(normalise_map(jnp.asarray(maps), n)) for n in ("map", "place"))
    np.testing.assert_allclose((whole**2).mean(axis=(1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(
        whole / maps, (whole / maps)[:, :1, :1, :1] * np.ones_like(maps), rtol=1e-4
    )
    np.testing.assert_allclose(places.std(axis=-1), 1, rtol=0.05)
    np.testing.assert_allclose(normalise_map(jnp.asarray(whole), "map"), whole, rtol=1e-5)
    assert not np.isnan(normalise_map(jnp.zeros((1, 2, 2, 3)), "map")).any()


def test_the_recipe_normalises_maps_as_a_whole():
    model = abstract.retriever(sketchy_split2.get_config("hybrid").model)
    assert model.backbone.map_norm == model.tokenizer.map_norm == "map"
    with pytest.raises(ValueError, match="map_norm='none': choose one of place, map"):
        shapes(map_norm="none")


def test_without_the_last_map_nothing_but_the_backbone_is_taken_over(other):
    model = build(patch_size=32, anchors=1)
    before = np.asarray(model.tokenizer.projection.kernel[...])
    model.start_from(other)
    np.testing.assert_array_equal(model.tokenizer.projection.kernel[...], before)


def test_attention_and_mlps_change_nothing_before_the_first_step():
    """The tokens are those of the map, normalised, and those of a pair those of each image."""
    model = evaluation_view(nnx.jit(lambda: create(HYBRID, rngs=nnx.Rngs(0)))())
    images = batch()["photos"][:, 0]
    tokens = model.tokens(images)
    expected = model.encoder.norm(model._tokenized(images))
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    paired = model.cross_attention(tokens, tokens[::-1])[0]
    alone = model.cross_attention(tokens, tokens)[0]
    np.testing.assert_allclose(paired, alone, atol=1e-5)


def test_the_relation_starts_at_the_mean_cosine_of_centred_anchors():
    """It ranks by it before any training, for cosines of every sign; a trained one is kept."""
    sizes = {"image_size": 32, "patch_size": 8, "anchors": 4}
    model = nnx.jit(lambda: create(HYBRID | sizes, rngs=nnx.Rngs(0)))()
    plain = evaluation_view(model)
    draw = np.random.default_rng(0).integers
    sketches, photos = (
        plain.tokens(jnp.asarray(draw(0, 256, (6, 32, 32, 3)), jnp.uint8)) for _ in range(2)
    )
    asked = []

    def mean(function):
        asked.append(function)
        return tuple(function(tokens).mean(axis=0) for tokens in (sketches, photos))

    model.start_from_training(mean)
    groups = [
        unit((x - x[:, 1:].mean(axis=(0, 1)))[:, 1:].reshape(6, 2, 2, 2, 2, 16).mean(axis=(2, 4)))
        for x in map(jax.nn.standardize, (sketches, photos))
    ]
    cosine = jnp.einsum("suvc,pxyc->sp", *groups) / 16
    scores = plain.score(sketches, photos)
    logits = jnp.log(scores / (1 - scores))
    np.testing.assert_allclose(np.corrcoef(cosine.ravel(), logits.ravel())[0, 1], 1, atol=0.1)
    assert (cosine < 0).any()
    out = model.cross_attention.sketch_layer.mlp_out
    out.kernel[...] += 1e-3
    model.start_from_training(mean)
    assert len(asked) == 1


def test_the_published_network_starts_at_random():
    model = nnx.eval_shape(lambda: create(small_systems.ZSE | {"system": "zse"}, rngs=nnx.Rngs(0)))
    model.start_from_training(lambda function: pytest.fail("it asks for the training images"))
