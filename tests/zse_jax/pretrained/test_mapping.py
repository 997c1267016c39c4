"""Filling a model is strict in both directions, and changes nothing on an error."""

import numpy as np
import pytest
from flax import nnx

from zse_jax.pretrained.mapping import Source, fill, transpose


class Net(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))


TABLE = {("layer", "kernel"): Source("fc.weight", transpose), ("layer", "bias"): Source("fc.bias")}


def arrays():
    return {
        "fc.weight": np.arange(6, dtype=np.float64).reshape(3, 2),
        "fc.bias": np.ones(3),
    }


def test_layout_and_dtype_are_changed():
    net = Net()
    fill(net, arrays(), TABLE)
    np.testing.assert_array_equal(net.layer.kernel[...], np.arange(6.0).reshape(3, 2).T)
    assert net.layer.kernel.dtype == np.float32


def test_an_unused_name_is_an_error_unless_ignored():
    extra = {**arrays(), "counter": np.zeros(())}
    with pytest.raises(ValueError, match="not used: counter"):
        fill(Net(), extra, TABLE)
    fill(Net(), extra, TABLE, ignored=lambda name: name == "counter")


def test_a_missing_name_is_an_error_with_the_parameter_path():
    given = arrays()
    del given["fc.bias"]
    with pytest.raises(ValueError, match=r"missing: layer.bias \(expected as fc.bias\)"):
        fill(Net(), given, TABLE)


def test_a_wrong_shape_is_an_error_and_does_not_change_the_model():
    net = Net()
    before = np.asarray(net.layer.kernel[...])
    with pytest.raises(ValueError, match=r"shape differs: layer.bias is \(3,\).*is \(4,\)"):
        fill(net, {**arrays(), "fc.bias": np.ones(4)}, TABLE)
    np.testing.assert_array_equal(net.layer.kernel[...], before)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ValueError) as error:
        fill(Net(), {"a": np.zeros(1), "fc.weight": np.zeros((3, 3))}, TABLE)
    for part in ("not used: a", "missing: layer.bias", "shape differs"):
        assert part in str(error.value)


def test_long_lists_are_cut():
    many = {f"extra{i:03}": np.zeros(1) for i in range(99)}
    with pytest.raises(ValueError, match="not used: 79 others") as error:
        fill(Net(), {**arrays(), **many}, TABLE)
    assert "extra019" in str(error.value) and "extra020" not in str(error.value)


def test_integers_are_not_taken_for_weights():
    quantized = {**arrays(), "fc.bias": np.array([1, 0, 127], np.int8)}
    with pytest.raises(ValueError, match=r"integers: fc.bias \(int8\); quantized"):
        fill(Net(), quantized, TABLE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_an_error_and_do_not_change_the_model(value):
    net = Net()
    before = np.asarray(net.layer.kernel[...])
    with pytest.raises(ValueError, match=r"NaN or infinite in fc.bias; nothing was loaded"):
        fill(net, {**arrays(), "fc.bias": np.array([0, value, 0])}, TABLE)
    np.testing.assert_array_equal(net.layer.kernel[...], before)
