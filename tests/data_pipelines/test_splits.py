"""Seen and unseen classes against the published lists, and the errors that name them."""

import json
from pathlib import Path

import pytest

from data_pipelines import splits

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "splits.json"


@pytest.mark.parametrize(
    ("name", "seen", "unseen"),
    [
        ("sketchy_split1", 100, 25),
        ("sketchy_split2", 104, 21),
        ("tuberlin", 220, 30),
        ("quickdraw", 80, 30),
        ("doodles", 24, 8),
    ],
)
def test_every_split_has_the_published_size_and_no_class_on_both_sides(name, seen, unseen):
    split = splits.get(name)
    assert (len(split.seen), len(split.unseen)) == (seen, unseen)
    assert len(set(split.classes)) == seen + unseen


@pytest.mark.parametrize("name", ["sketchy_split1", "sketchy_split2", "tuberlin", "quickdraw"])
def test_every_split_is_the_published_one_with_unseen_classes_in_order(name):
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published splits, and {PUBLISHED} is not there")
    published = json.loads(PUBLISHED.read_text())[name]
    assert splits.get(name).unseen == tuple(published["unseen"])
    assert set(splits.get(name).seen) == set(published["seen"])


def test_both_divisions_of_sketchy_cover_the_same_classes():
    assert splits.get("sketchy_split1").classes == splits.get("sketchy_split2").classes


def test_an_unknown_split_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean sketchy_split1\?"):
        splits.get("sketchy_split_1")


def test_classes_that_differ_are_all_listed_with_the_nearest_name():
    with pytest.raises(ValueError, match="in /data") as error:
        splits.check_classes(
            ["cat", "wine-bottle", "yak"], ["cat", "wine_bottle", "zebra"], "/data"
        )
    message = str(error.value)
    assert "2 of 3 are missing: wine_bottle, zebra" in message
    assert "wine-bottle (did you mean wine_bottle?), yak" in message


def test_classes_nobody_asked_for_can_be_allowed():
    splits.check_classes(["cat", "dog"], ["cat"], "here", allow_more=True)
    with pytest.raises(ValueError, match=r"catt \(did you mean cat\?\)"):
        splits.check_classes(["cat", "dog"], ["catt"], "here", allow_more=True)
