"""What one training sample consists of."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import sampling


def classes(sizes):
    """Positions of the items of as many classes as there are sizes."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def class_of(position, by_class):
    return next(c for c, positions in enumerate(by_class) if position in positions)


sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=6)
seeds = st.integers(0, 2**32)


@given(sizes, seeds)
def test_the_first_pair_matches_and_the_second_does_not(sizes, seed):
    sketches, photos = map(classes, zip(*sizes, strict=True))
    sample = sampling.quadruplet(np.random.default_rng(seed), sketches, photos)
    c = class_of(sample.sketches[0], sketches)
    assert class_of(sample.photos[0], photos) == c
    assert class_of(sample.sketches[1], sketches) == c
    assert class_of(sample.photos[1], photos) != c


@given(sizes, seeds)
def test_the_two_sketches_differ_where_the_class_has_two(sizes, seed):
    sketches, photos = map(classes, zip(*sizes, strict=True))
    first, second = sampling.quadruplet(np.random.default_rng(seed), sketches, photos).sketches
    several = len(sketches[class_of(first, sketches)]) > 1
    assert (first != second) == several


def test_every_combination_comes_up_equally_often():
    rng = np.random.default_rng(0)
    sketches = photos = np.split(np.arange(6), 3)
    counts = np.zeros((6, 6))
    for _ in range(6000):
        sample = sampling.quadruplet(rng, sketches, photos)
        counts[sample.sketches[0], sample.photos[1]] += 1
    expected = np.full((6, 6), 6000 / 24)
    for c in range(3):
        expected[2 * c : 2 * c + 2, 2 * c : 2 * c + 2] = 0
    np.testing.assert_allclose(counts, expected, atol=6 * np.sqrt(250))


def test_a_sample_is_a_function_of_the_generator_alone():
    sketches = photos = np.split(np.arange(60), 3)
    a, b = (sampling.quadruplet(np.random.default_rng(5), sketches, photos) for _ in range(2))
    np.testing.assert_array_equal(a, b)
