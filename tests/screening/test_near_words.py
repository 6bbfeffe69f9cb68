"""Words near a phrase, that nobody wrote into a policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeguard.screening.near_words import STEM, near_words


@pytest.mark.parametrize(
    ("phrases", "word"),
    [(["blood"], "bleeding"), (["sword", "knife"], "blade"), (["nudity"], "nude"), (["murder"], "killings")],
)
def test_a_word_of_the_same_meaning_is_near(phrases: list[str], word: str) -> None:
    stem = word[:STEM]
    found = near_words(phrases, 40)
    assert word in found or any(phrase.startswith(stem) for phrase in phrases)


def test_the_nearest_come_first_and_no_more_than_asked_for() -> None:
    assert near_words(["sword"], 3) == near_words(["sword"], 8)[:3]


def test_a_name_has_no_words_near_it() -> None:
    assert near_words(["Veska Rimm"], 10) == []


def test_no_phrase_has_no_words() -> None:
    assert near_words([], 10) == []


@given(st.lists(st.text(max_size=20), max_size=3))
@settings(max_examples=20, deadline=None)
def test_whatever_the_phrases_no_word_shares_a_stem_with_them(phrases: list[str]) -> None:
    text = " ".join(phrases).lower()
    for word in near_words(phrases, 5):
        assert word not in text.split()
