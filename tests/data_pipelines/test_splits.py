"""Seen and unseen classes of every split, class names, and errors about them."""

import importlib
import json
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from data_pipelines import class_names, splits

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "splits.json"


@pytest.mark.parametrize(
    ("name", "seen", "unseen"),
    [
        ("sketchy_split1", 100, 25),
        ("sketchy_split2", 104, 21),
        ("tuberlin", 220, 30),
        ("quickdraw", 80, 30),
        ("domainnet", 245, 45),
        ("doodles", 24, 8),
    ],
)
def test_every_split_has_the_published_size_and_disjoint_classes(name, seen, unseen):
    split = splits.get(name)
    assert (len(split.seen), len(split.unseen)) == (seen, unseen)
    validation = 55 if name == "domainnet" else 0
    assert len(split.validation) == validation
    assert len(set(split.classes)) == seen + unseen + validation


@pytest.mark.parametrize("name", ["sketchy_split1", "sketchy_split2", "tuberlin", "quickdraw"])
def test_every_split_is_the_published_one_with_unseen_classes_in_order(name):
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published splits in {PUBLISHED}")
    published = json.loads(PUBLISHED.read_text())[name]
    assert splits.get(name).unseen == tuple(published["unseen"])
    assert set(splits.get(name).seen) == set(published["seen"])


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("sketchy_split1", class_names.SKETCHY),
        ("sketchy_split2", class_names.SKETCHY),
        ("tuberlin", class_names.TUBERLIN),
        ("quickdraw", class_names.QUICKDRAW),
        ("domainnet", class_names.DOMAINNET),
    ],
)
def test_seen_and_unseen_classes_together_are_those_of_the_data_set(name, table):
    assert sorted(splits.get(name).classes) == sorted(table)


@pytest.mark.parametrize("name", splits.SPLITS)
def test_no_class_is_seen_under_one_name_and_unseen_under_another(name):
    classes = splits.get(name).classes
    assert len({splits.canonical(c) for c in classes}) == len(classes)


@pytest.mark.parametrize("name", splits.SPLITS)
def test_every_class_name_can_be_a_folder(name):
    for class_name in splits.get(name).classes:
        assert class_name.isascii()
        assert class_name == class_name.strip(" .")
        assert not set(class_name) & set('/\\:*?"<>|,')


@pytest.mark.parametrize("dataset", ["sketchy", "tuberlin", "quickdraw"])
def test_every_layout_expects_the_classes_of_its_splits(dataset):
    layout = importlib.import_module(f"data_pipelines.builders.{dataset}")
    for split in splits.SPLITS.values():
        if split.dataset == dataset:
            assert set(layout.CLASSES) == set(split.classes)


def test_the_folders_of_the_real_images_match_the_splits(sketchy_folder):
    for modality in ("sketch", "photo"):
        folder = sketchy_folder / "256x256" / modality / "tx_000000000000_ready"
        found = {entry.name for entry in folder.iterdir() if entry.is_dir()}
        assert found == set(splits.get("sketchy_split1").classes)


def test_domainnet_class_names_match_the_catalogue(tmp_path):
    import tensorflow_datasets as tfds

    for domain in ("sketch", "real"):
        builder = tfds.builder(f"domainnet/{domain}", data_dir=tmp_path)
        assert tuple(builder.info.features["label"].names) == class_names.DOMAINNET


def test_both_splits_of_sketchy_have_the_same_classes():
    assert splits.get("sketchy_split1").classes == splits.get("sketchy_split2").classes


def test_an_unknown_split_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean sketchy_split1\?"):
        splits.get("sketchy_split_1")


def test_all_mismatched_classes_are_listed_with_suggestions():
    with pytest.raises(ValueError, match="in /data") as error:
        splits.check_classes(
            ["cat", "wine-bottle", "yak"], ["cat", "wine_bottle", "zebra"], "/data"
        )
    message = str(error.value)
    assert "2 of 3 are missing: wine_bottle, zebra" in message
    assert "wine-bottle (did you mean wine_bottle?), yak" in message


def test_additional_classes_can_be_allowed():
    splits.check_classes(["cat", "dog"], ["cat"], "here", allow_more=True)
    with pytest.raises(ValueError, match=r"catt \(did you mean cat\?\)"):
        splits.check_classes(["cat", "dog"], ["catt"], "here", allow_more=True)


def test_errors_about_classes_can_be_collected():
    with splits.collecting_errors() as errors:
        splits.check_classes(["catt"], ["cat"], "here")
        splits.check_classes(["cat"], ["cat", "dog"], "there")
    assert [(error.where, error.missing, error.unknown) for error in errors] == [
        ("here", ["cat"], {"catt": "cat"}),
        ("there", ["dog"], {}),
    ]
    with pytest.raises(splits.ClassNamesError):
        splits.check_classes(["catt"], ["cat"], "here")


@pytest.mark.parametrize(
    "spellings",
    [
        ("hot-air_balloon", "hot air balloon", "Hot_Air_Balloon"),
        ("hotdog", "hot-dog", "hot_dog"),
        ("teddy_bear", "teddy-bear"),
        ("t-shirt", "tshirt", "T-Shirt"),
        ("car_(sedan)", "car (sedan)", "car"),
        ("bear (animal)", "bear"),
        ("speed-boat", "speedboat"),
    ],
)
def test_spellings_of_a_class_have_one_normalised_name(spellings):
    assert len({splits.normalised(name) for name in spellings}) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("motorbike", "motorcycle"),
        ("crocodile", "crocodilian"),
        ("racket", "tennis-racket", "tennis_racquet"),
        ("The_Eiffel_Tower", "eiffel tower"),
    ],
)
def test_synonyms_are_the_same_class(names):
    assert len({splits.canonical(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mouse (animal)", "computer-mouse"),
        ("bat", "baseball bat"),
        ("armchair", "chair"),
        ("turtle", "sea_turtle"),
        ("fan", "ceiling_fan"),
        ("tree", "palm tree"),
    ],
)
def test_similar_classes_are_not_the_same_class(one, other):
    assert splits.canonical(one) != splits.canonical(other)


@hypothesis.given(st.text() | st.text(alphabet="aB _-()"))
def test_normalisation_is_idempotent(name):
    once = splits.normalised(name)
    assert splits.normalised(once) == once
    assert splits.canonical(splits.canonical(name)) == splits.canonical(name)


CROSSINGS = [(a, b) for a in splits.SPLITS for b in splits.SPLITS]


@pytest.mark.parametrize(("source", "target"), CROSSINGS)
def test_no_kept_class_of_a_target_is_seen_in_the_source(source, target):
    seen = {splits.canonical(name) for name in splits.get(source).seen}
    kept, excluded = splits.cross_dataset(splits.get(source), splits.get(target))
    assert not {splits.canonical(name) for name in kept} & seen
    assert set(excluded.values()) <= set(splits.get(source).seen)
    assert [c for c in splits.get(target).unseen if c not in excluded] == list(kept)


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("sketchy_split1", "tuberlin", 21),
        ("sketchy_split2", "tuberlin", 20),
        ("sketchy_split1", "quickdraw", 11),
        ("sketchy_split2", "quickdraw", 22),
        ("tuberlin", "quickdraw", 10),
    ],
)
def test_number_of_kept_classes_across_data_sets(source, target, kept):
    assert len(splits.cross_dataset(splits.get(source), splits.get(target)).kept) == kept


names = st.lists(st.sampled_from(["cat", "Cat", "hot-dog", "hotdog", "cow", "tv", "television"]))


@hypothesis.given(names, names)
def test_each_unseen_class_is_kept_in_order_or_excluded_with_its_synonym(seen, unseen):
    unseen = list(dict.fromkeys(unseen))
    source = splits.Split("a", tuple(seen), ())
    target = splits.Split("b", (), tuple(unseen))
    left = [c for c in unseen if splits.canonical(c) not in map(splits.canonical, seen)]
    if not left:
        with pytest.raises(ValueError, match="No class of b is unseen") as error:
            splits.cross_dataset(source, target)
        assert all(f"{c} (as " in str(error.value) for c in unseen)
        return
    kept, excluded = splits.cross_dataset(source, target)
    assert list(kept) == left
    assert set(excluded) == set(unseen) - set(left)
    assert all(splits.canonical(a) == splits.canonical(b) for a, b in excluded.items())


def test_different_qualifiers_denote_different_classes():
    others = ["mouse (animal)", "crane", "bat (animal)", "bat"]
    names = ["mouse (computer)", "Mouse_(Animal)", "mouse", "crane (bird)", "bat (club)"]
    assert splits.same_classes(names, others) == {
        "Mouse_(Animal)": "mouse (animal)", "mouse": "mouse (animal)", "crane (bird)": "crane",
        "bat (club)": "bat",
    }  # fmt: skip
