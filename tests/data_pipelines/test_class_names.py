"""Class names have one spelling, and lists of them can contain any name."""

import unicodedata

import pytest

from data_pipelines import class_names


def test_names_are_composed_and_stripped():
    for form in ("NFC", "NFD"):
        assert class_names.normal(unicodedata.normalize(form, " Café\u00a0")) == "Caf\u00e9"
    assert class_names.normal("hot-air_balloon") == "hot-air_balloon"
    assert class_names.normal("red\x1b[31m ") == "red\\x1b[31m"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog ,cat,", ("cat", "dog")),
        ('cat, "salt, pepper" , dog', ("cat", "salt, pepper", "dog")),
        ('"a ""b"", c"', ('a "b", c',)),
        ("Cafe\u0301,T-shirt (M),\n'n'", ("Caf\u00e9", "T-shirt (M)", "'n'")),
        ('5" disk,cat', ('5" disk', "cat")),
        ("", ()),
        (None, ()),
    ],
)
def test_lists_of_names(text, names):
    assert class_names.listed(text) == names


def test_a_quote_that_is_not_closed_is_an_error():
    with pytest.raises(ValueError, match="double quotes, such as cat"):
        class_names.listed('cat,"salt, pepper')
