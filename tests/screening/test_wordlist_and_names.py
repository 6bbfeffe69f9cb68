"""Word list and proper names: exact, one edit away, and not by accident."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeguard.screening.normalize import normalize
from safeguard.screening.proper_names import NameList, parse_name, spans
from safeguard.screening.wordlist import WordList, tokens, within_one_edit

WORDS = WordList(["blood", "violence", "gun", "naked"])


@pytest.mark.parametrize(
    ("token", "word"),
    [("blood", "blood"), ("vioence", "violence"), ("nakde", "naked"), ("bloodd", "blood"), ("guns", "gun")],
)
def test_find(token: str, word: str) -> None:
    assert WORDS.find(token) == word


def test_an_english_word_is_not_taken_for_another() -> None:
    assert WordList(["sacred"]).find("scared") == ""


def test_hits_count_different_words() -> None:
    assert WORDS.hits(tokens("blood, blood and naked violence")) == 3


@given(st.text("abc", max_size=6), st.integers(0, 6), st.sampled_from("abc"))
def test_one_edit_is_one_edit(word: str, at: int, letter: str) -> None:
    at = min(at, len(word))
    assert within_one_edit(word, word[:at] + letter + word[at:])
    assert within_one_edit(word[:at] + letter + word[at:], word)
    assert within_one_edit(word, word[:at] + letter + word[at + 1 :])
    assert within_one_edit(word, word[:at] + word[at : at + 2][::-1] + word[at + 2 :])


def test_two_edits_are_too_many() -> None:
    assert not within_one_edit("violence", "viloecne")
    assert not within_one_edit("blood", "bl")


@pytest.mark.parametrize(
    "phrase", ["Vincent van Gogh", "in the style of Vincent van Gogh", "Van Gogh style", "art by Van Gogh"]
)
def test_name_in_a_phrase(phrase: str) -> None:
    name = parse_name(phrase)
    assert name is not None
    assert name.words[-1] == "gogh"


@pytest.mark.parametrize("phrase", ["blood and gore", "nude body", "NSFW", "a man aiming a gun", ""])
def test_plain_phrase_is_no_name(phrase: str) -> None:
    assert parse_name(phrase) is None


def match(prompt: str, *phrases: str) -> float:
    return NameList([name for phrase in phrases if (name := parse_name(phrase))]).match(tokens(normalize(prompt)))


@pytest.mark.parametrize("prompt", ["by Picasso", "by PABLO PICASSO", "by Pablo Picass", "by Pablo Picaso", "by picaßo"])
def test_name_is_found_whole_cut_and_misspelt(prompt: str) -> None:
    assert match(prompt, "Pablo Picasso") >= 0.9


@pytest.mark.parametrize("prompt", ["in the style of Salvador Dali", "a pistachio cake", "pablo on a bench"])
def test_other_names_are_not_taken_for_it(prompt: str) -> None:
    assert match(prompt, "Pablo Picasso") == 0.0


def test_last_name_that_is_a_plain_word_needs_the_whole_name() -> None:
    assert match("a black cat", "Jack Black") == 0.0
    assert match("a cat by jack black", "Jack Black") == 1.0


def test_short_last_name_needs_each_letter() -> None:
    assert match("a delhi street, dahl soup", "Salvador Dali") == 0.0
    assert match("by dali", "Salvador Dali") == 1.0


def test_spans_are_the_words_behind_by_and_style_of() -> None:
    assert spans("a boat in the style of vincent van gogh, oil") == ["vincent van", "vincent van gogh"]
    assert spans("a boat on a lake") == []


def test_spans_are_bounded() -> None:
    assert len(spans("by one two three four five, " * 1000)) <= 12
