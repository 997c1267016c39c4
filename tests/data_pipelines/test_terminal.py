"""Names of files cannot contain commands to a terminal."""

import os

from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.terminal import printable


def test_control_characters_are_escaped_and_letters_are_not():
    assert printable("esc\x1b]0;owned\x07.jpg") == "esc\\x1b]0;owned\\x07.jpg"
    assert printable("a\nb\r\tc\x7f\x9b") == "a\\nb\\r\\tc\\x7f\\x9b"
    assert printable("gpj.\u202etac\u2028") == "gpj.\\u202etac\\u2028"
    assert printable(os.fsdecode(b"caf\xe9.jpg")) == "caf\\xe9.jpg"
    family = "\N{WOMAN}\u200d\N{GIRL}"  # joined to one picture
    for name in ("日本 é ñ.jpg", "a_$5 [b] \\ %20", family, "no\u00a0break"):
        assert printable(name) == name


def test_a_text_can_keep_its_lines():
    assert printable("a\n\x1b[1m", keep="\n") == "a\n\\x1b[1m"


@given(st.text(st.characters(codec=None)) | st.binary().map(os.fsdecode))
def test_every_text_can_be_printed_and_stays_as_it_is_the_second_time(text):
    shown = printable(text)
    shown.encode()
    assert not {*shown} & {chr(code) for code in (*range(32), *range(127, 160))}
    assert printable(shown) == shown
