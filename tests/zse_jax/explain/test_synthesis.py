"""Universal replacement: the source of each patch, blank places, and seams."""

import numpy as np
import pytest

from zse_jax.explain.synthesis import synthesise, synthesise_from_gallery

SIZE, SIDE = 16, 4
PLACES, CELL = SIDE * SIDE, SIZE // SIDE
ALL = np.ones(PLACES, np.float32)


def paper():
    return np.full((SIZE, SIZE, 3), 255, np.uint8)


def photo(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def matching(places, value=1.0):
    """Sketch place i matches photo place places[i]."""
    match = np.zeros((PLACES, PLACES), np.float32)
    match[np.arange(PLACES), places] = value
    return match


def patch(image, place):
    row, column = divmod(place, SIDE)
    return image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


@pytest.mark.parametrize("blend", [False, True])
def test_a_photo_that_matches_place_by_place_is_itself(blend):
    smooth = np.linspace(40, 200, SIZE).astype(np.uint8)
    smooth = np.repeat(np.add.outer(smooth // 2, smooth // 2)[..., None], 3, axis=2)
    rebuilt = synthesise(paper(), smooth, matching(np.arange(PLACES)), ALL, blend=blend)
    inside = np.s_[CELL:-CELL, CELL:-CELL]  # when blended, the border fades into paper
    np.testing.assert_allclose(rebuilt[inside].astype(int), smooth[inside], atol=1)
    assert blend or (rebuilt == smooth).all()


def test_each_place_gets_the_patch_that_it_matches_best():
    order = np.random.default_rng(1).permutation(PLACES)
    rebuilt = synthesise(paper(), photo(), matching(order), ALL)
    for place in range(PLACES):
        np.testing.assert_array_equal(patch(rebuilt, place), patch(photo(), order[place]))


@pytest.mark.parametrize("blend", [False, True])
def test_blank_places_stay_paper(blend):
    ink = np.zeros(PLACES, np.float32)
    ink[5] = 0.3
    rebuilt = synthesise(paper(), photo(), matching(np.arange(PLACES)), ink, blend=blend)
    changed = (rebuilt != 255).any(axis=2)
    assert changed[CELL : 2 * CELL, CELL : 2 * CELL].all()
    reach = 1 if blend else 0
    changed[CELL - reach : 2 * CELL + reach, CELL - reach : 2 * CELL + reach] = False
    assert not changed.any()


def test_a_sketch_without_strokes_stays_paper():
    rebuilt = synthesise(paper(), photo(), matching(np.arange(PLACES)), 0 * ALL)
    np.testing.assert_array_equal(rebuilt, paper())


def test_of_a_gallery_every_place_gets_the_best_patch_of_any_photo():
    rng = np.random.default_rng(2)
    matches = rng.random((5, PLACES, PLACES)).astype(np.float32)
    photos = [photo(seed) for seed in range(5)]
    found = synthesise_from_gallery(paper(), zip(photos, matches, strict=True), ALL)
    for place in range(PLACES):
        number, source = np.unravel_index(matches[:, place].argmax(), (5, PLACES))
        assert (found.photo[place], found.place[place]) == (number, source)
        assert found.match[place] == matches[number, place, source]
        np.testing.assert_array_equal(patch(found.image, place), patch(photos[number], source))


def test_the_gallery_is_read_once_and_the_first_of_equals_counts():
    read = []

    def gallery():
        for number in range(3):
            read.append(number)
            yield photo(number), matching(np.arange(PLACES))

    found = synthesise_from_gallery(paper(), gallery(), ALL)
    assert read == [0, 1, 2]
    assert (found.photo == 0).all()


def test_blank_places_have_no_source():
    ink = np.where(np.arange(PLACES) < 3, 0.0, 1.0)
    gallery = [(photo(), matching(np.arange(PLACES)))]
    found = synthesise_from_gallery(paper(), gallery, ink)
    assert (found.photo[:3] == -1).all()
    assert (found.place[:3] == -1).all()
    assert (found.match[:3] == -np.inf).all()
    assert (found.photo[3:] == 0).all()


def test_blending_softens_the_seams():
    """Two grey levels side by side: the step between them gets smaller."""
    source = np.zeros((SIZE, SIZE, 3), np.uint8)
    source[:, SIZE // 2 :] = 200
    places = np.where(np.arange(PLACES) % 2, 0, SIDE - 1)  # alternating dark and light
    steps = [
        np.abs(np.diff(synthesise(paper(), source, matching(places), ALL, blend=b).astype(int),
                       axis=1)).max()
        for b in (False, True)
    ]  # fmt: skip
    assert steps[0] == 200
    assert steps[1] < 150


def test_the_photo_grid_can_be_coarser():
    match = np.zeros((PLACES, 4), np.float32)
    match[:, 3] = 1
    image = photo()
    image[SIZE // 2 :, SIZE // 2 :] = 77
    assert (synthesise(paper(), image, match, ALL) == 77).all()


@pytest.mark.parametrize(
    ("image", "match", "ink", "message"),
    [
        (photo()[:8, :8], matching(np.arange(PLACES)), ALL, r"\(8, 8, 3\) .* cannot replace"),
        (photo(), matching(np.arange(PLACES))[:4], ALL, "with 16 places: prepare both"),
        (photo(), np.zeros((PLACES, 5), np.float32), ALL, "5 places do not form a square grid"),
        (photo(), matching(np.arange(PLACES))[:5], ALL[:5], "5 places do not form a square grid"),
    ],
)
def test_incompatible_shapes_are_errors(image, match, ink, message):
    with pytest.raises(ValueError, match=message):
        synthesise(paper(), image, match, ink)


def test_an_empty_gallery_is_an_error():
    with pytest.raises(ValueError, match="gallery contains no photos"):
        synthesise_from_gallery(paper(), [], ALL)
