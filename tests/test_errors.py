"""Names made safe to print, and near names."""

from __future__ import annotations

import importlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipway.errors import InputError, SkipwayError, harmless, missing_part, nearest, plain_words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jants", r"\x1b[2Jants"),
        ("\x9b31m", r"\x9b31m"),  # the one-byte form of ESC [
        ("a\x00b\x07c\x08d\x7fe", r"a\x00b\x07c\x08d\x7fe"),
        ("two\nlines\r\n\tand tab", r"two\nlines\r\n\tand tab"),
        ("para\u2029line\u2028next\x85", r"para\u2029line\u2028next\x85"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),  # right-to-left override
        ("\u2066isolate\u2069\u200f\u061c", r"\u2066isolate\u2069\u200f\u061c"),
        ("zero\u200bwidth\ufeff\u00ad", r"zero\u200bwidth\ufeff\xad"),
        ("\U000e0041tag", r"\U000e0041tag"),
        ("caf\udce9", r"caf\udce9"),  # a byte that is no UTF-8, as os.fsdecode gives it
        ("\ud83d", r"\ud83d"),
    ],
)
def test_what_could_mislead_is_escaped(text: str, shown: str) -> None:
    assert harmless(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Käfer 蟻",
        "Ka\u0308fer",  # decomposed, as macOS stores it
        "🐜🐝",
        "👨‍👩‍👧 ❤️ 👍🏽",  # joiners, variation selector, skin tone
        "می‌خواهم",  # Persian, with a zero-width non-joiner
        "عربي עברית हिन्दी ไทย",
        "全角　空白",  # ideographic space
        "Screenshot 10.15\u202fPM",  # the narrow space of macOS
        r"C:\ants\04.jpg",
        "[/x].jpg <script> 'quoted' & so on",
        "",
    ],
)
def test_ordinary_names_are_kept(text: str) -> None:
    assert harmless(text) == text


def test_other_objects_are_shown_by_their_text() -> None:
    assert harmless(3) == "3"
    assert harmless(ValueError("a\nb")) == r"a\nb"


@given(st.text(st.characters()))
def test_any_text_becomes_one_encodable_line(text: str) -> None:
    """`st.characters` without arguments gives surrogates too."""
    shown = harmless(text)
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(c) for c in shown} & {
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    }  # fmt: skip
    assert harmless(shown) == shown


def test_pydantics_words_are_left_out() -> None:
    assert plain_words("Value error, 3 is odd") == "3 is odd"
    assert plain_words("Invalid value for '--x': Value error, 3 is odd") == (
        "Invalid value for '--x': 3 is odd"
    )
    assert plain_words("Field required") == "Field required"


def test_nearest() -> None:
    names = ["resnet18", "resnet50", "wrn28_10"]
    assert nearest("resnet5O", names) == " Did you mean 'resnet50'?"
    assert nearest("wrn28-10", names) == " Did you mean 'wrn28_10'?"
    assert nearest("zzz", names) == ""
    assert nearest("widths", ["depth", "bn_eps"]) == ""  # letters in common, no slip
    assert nearest("lrr", ["lr"], "optim.") == " Did you mean 'optim.lr'?"
    assert nearest("resnet50", []) == ""
    assert nearest("resnt18", iter(names)) == " Did you mean 'resnet18'?"


def test_exit_codes() -> None:
    assert (SkipwayError.exit_code, InputError.exit_code) == (3, 2)


def test_a_missing_part_says_what_brings_it() -> None:
    with pytest.raises(ImportError) as caught:
        importlib.import_module("no_such_package_anywhere")
    error = missing_part("train", "train", caught.value)
    assert isinstance(error, InputError)
    assert "'no_such_package_anywhere'" in str(error)
    assert "pip install '.[train]'" in str(error)
    assert len(str(error).splitlines()) <= 3


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (ImportError("libx.so.12: cannot open"), "needs a package, which cannot be imported: libx"),
        (ImportError("cannot import name 'y' from 'x'", name="x"), "'x', which cannot be imported"),
    ],
)
def test_a_part_that_is_there_and_broken_is_not_called_missing(
    broken: ImportError, said: str
) -> None:
    text = str(missing_part("train", "train", broken))
    assert said in text
    assert "not installed" not in text


def test_a_part_of_ours_that_is_missing_is_our_fault() -> None:
    for name in ("skipway.no_such_room", "skipway"):
        broken = ImportError("no", name=name)
        with pytest.raises(ImportError) as caught:
            missing_part("train", "train", broken)
        assert caught.value is broken
