"""What people do to a word so that a filter does not see it, and what must not be touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeguard.screening.normalize import normalize

EVASIONS = {
    "zero-width": "bl\u200bo\u200dod",
    "soft hyphen": "bl\u00adood",
    "variation selector": "b\ufe0flood",
    "tag characters": "b\U000e0061lood",
    "combining marks": "b\u0336l\u0336o\u0336o\u0336d\u0336",
    "accents": "blóöd",
    "cyrillic": "blооd",
    "greek": "blοοd",
    "full width": "ｂｌｏｏｄ",
    "mathematical bold": "𝐛𝐥𝐨𝐨𝐝",
    "circled": "ⓑⓛⓞⓞⓓ",
    "upper case": "BLOOD",
    "spaced": "b l o o d",
    "dotted": "b.l.o.o.d",
    "starred": "b*l*o*o*d",
    "leet": "bl00d",
    "stretched": "blooooood",
    "full width and spaced": "ｂ　ｌ　ｏ　ｏ　ｄ",
}


@pytest.mark.parametrize("kind", EVASIONS)
def test_evasion_is_undone(kind: str) -> None:
    assert normalize(EVASIONS[kind]) == "blood"


@pytest.mark.parametrize(
    "plain", ["4k", "8k", "3d", "50mm", "19th", "1980s", "f1", "mp3", "1920x1080", "8 k", "1 9 6 0 s", "h2o"]
)
def test_ordinary_mix_of_letters_and_digits_stays(plain: str) -> None:
    assert normalize(f"photo, {plain}, sharp") == f"photo, {plain}, sharp"


def test_wide_gap_between_spaced_letters_is_a_word_boundary() -> None:
    assert normalize("r e d  c a t") == "red cat"


def test_initials_of_two_letters_are_not_joined() -> None:
    assert normalize("art by h r giger") == "art by h r giger"


def test_plain_english_is_only_lowered() -> None:
    assert normalize("A Lighthouse on a cliff, at dusk.") == "a lighthouse on a cliff, at dusk."


@given(st.text(st.characters(codec=None), max_size=80))
def test_twice_is_once(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


@given(st.text(st.sampled_from("ab1 0.@-*lа\u200bé!Аﬁ\u0301"), max_size=40))
def test_twice_is_once_on_the_characters_that_the_rules_are_about(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


@given(st.text(st.characters(codec=None), max_size=80))
def test_result_is_folded_and_encodable(text: str) -> None:
    found = normalize(text)
    found.encode("utf-8")
    assert found == found.strip()
