"""The tests check types and shapes at each call of the packages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation

from data_pipelines import images
from tests import checking
from zse_jax import losses


def matrix(width: int) -> jax.Array:
    return jnp.zeros((2, width))


def test_a_dimension_has_one_size_within_a_call_and_any_in_the_next():
    for width in (3, 4):
        losses.euclidean_distances(matrix(width), matrix(width))
    with pytest.raises(BeartypeCallHintViolation, match="euclidean_distances"):
        losses.euclidean_distances(matrix(3), matrix(4))


def test_a_wrong_type_is_an_error_and_a_size_may_come_from_an_argument():
    with pytest.raises(BeartypeCallHintViolation):
        losses.unit(matrix(3).astype(int))
    with pytest.raises(TypeError, match="Type-check error"):
        images.prepare_photo(np.zeros((4, 4, 3), np.float32), 8)
    assert images.prepare_photo(np.zeros((4, 4, 3), np.uint8), 8).shape == (8, 8, 3)


def test_names_that_do_not_exist_at_run_time_are_not_checked():
    def function(value: "Missing") -> "int":  # as after `if TYPE_CHECKING: import`
        return value

    check = checking.checked(function)
    assert check.__annotations__["value"] is Any
    assert check(3) == 3
    with pytest.raises(BeartypeCallHintViolation):
        check("3")
