"""Golden parity of ResNet-50 with torchvision's names, and errors for other weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.pretrained.weights import GOLDEN, draw
from tests.zse_jax.random_weights import drawn
from zse_jax.models.resnet import ResNet50
from zse_jax.pretrained import torchvision_resnet

SMALL = {"depths": (1, 1), "width": 4, "classes": 5}


def relative_error(got, want) -> float:
    got, want = (np.asarray(x, np.float64).ravel() for x in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def small(**changes):
    return drawn(lambda: ResNet50(**{**SMALL, **changes}, rngs=nnx.Rngs(0)))


def small_arrays(model):
    """Arrays in torchvision's layout for a small network."""
    state = dict(nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    rng = np.random.default_rng(0)
    arrays = {}
    for path, source in torchvision_resnet.table(model).items():
        shape = state[path].shape
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        arrays[source.name] = rng.standard_normal(shape, dtype=np.float32)
    return arrays


@pytest.mark.slow
def test_golden_features_and_logits(golden):
    model = drawn(lambda: ResNet50(rngs=nnx.Rngs(0)))
    torchvision_resnet.load(model, draw("resnet50"))
    rng = np.random.default_rng(13)
    images = rng.standard_normal((2, 3, 224, 224), dtype=np.float32).transpose(0, 2, 3, 1)
    still = nnx.view(model, use_running_average=True)
    features, logits = nnx.jit(lambda model, x: model(x))(still, jnp.asarray(images))
    expected = golden("resnet50")
    assert relative_error(features, expected["pooled"]) < 1e-4
    assert relative_error(logits, expected["logits"]) < 1e-4


def test_torchvisions_names_and_the_variables_correspond_one_to_one():
    model = nnx.eval_shape(lambda: ResNet50(rngs=nnx.Rngs(0)))
    names = set(json.loads((GOLDEN / "resnet50_manifest.json").read_text()))
    table = torchvision_resnet.table(model)
    used = {source.name for source in table.values()}
    assert names - used == {name for name in names if name.endswith("num_batches_tracked")}
    assert used <= names
    variables = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    assert {path for path, _ in nnx.to_flat_state(variables)} == table.keys()


def test_parameters_and_running_averages_are_filled():
    model = small()
    arrays = small_arrays(model)
    arrays["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    torchvision_resnet.load(model, arrays)
    np.testing.assert_array_equal(model.stem_norm.var[...], arrays["bn1.running_var"])
    np.testing.assert_array_equal(model.head.kernel[...], arrays["fc.weight"].T)
    np.testing.assert_array_equal(
        model.stages[1][0].convolutions[1].kernel[0, 2],
        arrays["layer2.0.conv2.weight"][..., 0, 2].T,
    )


def test_weights_of_another_resnet_are_an_error_that_lists_them():
    model = small()
    before = np.asarray(model.head.kernel[...])
    deeper = small(depths=(1, 2))
    with pytest.raises(ValueError, match="not used: layer2.1.conv1.weight"):
        torchvision_resnet.load(model, small_arrays(deeper))
    wider = small(width=8)
    with pytest.raises(ValueError, match=r"shape differs: stages\S+ is \(3, 3, 4, 4\), layer1"):
        torchvision_resnet.load(model, small_arrays(wider))
    missing = small_arrays(model)
    del missing["layer1.0.bn3.running_mean"]
    with pytest.raises(ValueError, match=r"stages.0.0.norms.2.mean \(expected as layer1.0.bn3"):
        torchvision_resnet.load(model, missing)
    np.testing.assert_array_equal(model.head.kernel[...], before)
