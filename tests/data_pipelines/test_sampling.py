"""The samplers of training samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import sampling


def classes(sizes):
    """Positions of the items of each class, given the class sizes."""
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
def test_the_two_sketches_differ_if_the_class_has_two(sizes, seed):
    sketches, photos = map(classes, zip(*sizes, strict=True))
    first, second = sampling.quadruplet(np.random.default_rng(seed), sketches, photos).sketches
    several = len(sketches[class_of(first, sketches)]) > 1
    assert (first != second) == several


def test_all_combinations_are_equally_frequent():
    rng = np.random.default_rng(0)
    sketches = photos = np.split(np.arange(6), 3)
    counts = np.zeros((6, 6))
    for _ in range(2400):
        sample = sampling.quadruplet(rng, sketches, photos)
        counts[sample.sketches[0], sample.photos[1]] += 1
    expected = np.full((6, 6), 2400 / 24)
    for c in range(3):
        expected[2 * c : 2 * c + 2, 2 * c : 2 * c + 2] = 0
    np.testing.assert_allclose(counts, expected, atol=6 * np.sqrt(100))


def test_a_sample_is_a_function_of_the_generator():
    sketches = photos = np.split(np.arange(60), 3)
    a, b = (sampling.quadruplet(np.random.default_rng(5), sketches, photos) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_an_instance_quadruplet_has_two_instances_of_one_class():
    rng = np.random.default_rng(0)
    sketches = [[np.array([0, 1]), np.array([2])], [np.array([3]), np.array([4]), np.array([5])]]
    photos = [[np.array([0]), np.array([1])], [np.array([2]), np.array([3, 4]), np.array([5])]]
    owner_of_sketch = {
        p: (c, i) for c, k in enumerate(sketches) for i, a in enumerate(k) for p in a
    }
    owner_of_photo = {p: (c, i) for c, k in enumerate(photos) for i, a in enumerate(k) for p in a}
    seen = set()
    for _ in range(200):
        sample = sampling.instance_quadruplet(rng, sketches, photos)
        own, other = (owner_of_photo[p] for p in sample.photos)
        assert owner_of_sketch[sample.sketches[0]] == owner_of_sketch[sample.sketches[1]] == own
        assert other[0] == own[0]
        assert other != own
        seen.add((own, other))
    assert len(seen) == 2 + 6


def test_instances_are_grouped_if_a_class_has_two_pairs():
    one = np.array([0])
    sketches = {(0, "a"): one, (0, "b"): one, (1, "a"): one, (2, "x"): one}
    photos = {(0, "b"): one, (0, "a"): one, (0, "c"): one, (1, "a"): one, (3, "y"): one}
    by_sketch, by_photo, left_out = sampling.group_by_instance(sketches, photos)
    assert len(by_sketch) == len(by_photo) == 1
    assert len(by_sketch[0]) == len(by_photo[0]) == 2
    assert left_out == {1: 1, 2: 0, 3: 0}


@given(sizes, seeds, st.integers(1, 5))
def test_a_class_group_has_one_class_and_repeats_only_if_needed(sizes, seed, size):
    sketches, photos = map(classes, zip(*sizes, strict=True))
    sample = sampling.class_group(np.random.default_rng(seed), sketches, photos, size)
    (c,) = {class_of(p, sketches) for p in sample.sketches}
    assert {class_of(p, photos) for p in sample.photos} == {c}
    for positions, by_class in ((sample.sketches, sketches), (sample.photos, photos)):
        assert len(positions) == size
        assert len(set(positions)) == size or len(by_class[c]) < size


@given(st.integers(2, 8), st.integers(0, 8), seeds, st.integers(0, 50))
def test_the_classes_of_a_group_of_samples_all_differ(group, more, seed, batch):
    drawn = [
        sampling.distinct_class(seed, batch * group + i, group, group + more) for i in range(group)
    ]
    assert len(set(drawn)) == group
    assert max(drawn) < group + more


def test_all_classes_are_equally_frequent():
    drawn = [sampling.distinct_class(0, 3 * i, 3, 5) for i in range(2000)]
    np.testing.assert_allclose(np.bincount(drawn), 400, atol=6 * np.sqrt(400))


def test_the_size_of_a_group_follows_a_colon():
    sketches = photos = classes([9, 9])
    drawn = sampling.sampler("class_group:7").draw(np.random.default_rng(0), sketches, photos)
    assert len(drawn.sketches) == len(drawn.photos) == 7
    for kind in ("class_group:0", "class_group:x", "quadruplet:3"):
        with pytest.raises(ValueError, match="does not support this size"):
            sampling.sampler(kind)


def test_a_triplet_is_a_sketch_a_photo_of_its_class_and_one_of_another():
    rng = np.random.default_rng(0)
    sketches, photos = np.split(np.arange(12), 3), np.split(np.arange(30), 3)
    seen = set()
    for number in range(200):
        sample = sampling.triplet(rng, sketches, photos, number % 12)
        assert sample.sketches.tolist() == [number % 12]
        own, other = (int(p) // 10 for p in sample.photos)
        assert sample.sketches[0] // 4 == own != other
        seen.add((own, other))
    assert len(seen) == 6


def test_an_instance_group_has_different_instances_of_one_class_pair_by_pair():
    rng = np.random.default_rng(0)
    sketches = [[np.array([10 * c + 2 * i, 10 * c + 2 * i + 1]) for i in range(5)] for c in (0, 1)]
    photos = [[np.array([5 * c + i]) for i in range(5)] for c in (0, 1)]
    for _ in range(100):
        sample = sampling.sampler("instance_group:3").draw(rng, sketches, photos)
        np.testing.assert_array_equal(sample.sketches // 2, sample.photos)
        assert len(set(sample.photos.tolist())) == 3
        assert len(set((sample.photos // 5).tolist())) == 1


def test_samplers_are_found_by_name_and_size():
    assert sampling.sampler("instance_group").pairs == 4
    assert sampling.sampler("instance_group:8").pairs == 8


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("triple", "no sampler 'triple' .did you mean triplet.*quadruplet"),
        ("triplet:3", "'triplet:3' does not support this size"),
        ("instance_group:1", "'instance_group:1' does not support this size.*at least 2"),
        ("instance_group:many", "'instance_group:many' does not support this size"),
    ],
)
def test_a_wrong_name_or_size_of_a_sampler_is_an_error(kind, message):
    with pytest.raises(ValueError, match=message):
        sampling.sampler(kind)
