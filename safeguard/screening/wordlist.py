"""Words and names in normalised text: exact, and one edit away where a word is long and the token is no English word."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator

from safeguard.screening.encoder import bundled_folder

FUZZY_WORD = 5  # letters from which a list word may be one edit away
FUZZY_NAME = 6  # the same for a name
_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_SUFFIXES = ("s", "es", "ed", "d", "ing", "er", "ers", "ly", "y", "ish", "ness")  # of what is still the same word


def tokens(text: str) -> list[str]:
    """Words of a normalised text; hyphenated ones also in parts."""
    words = _TOKEN.findall(text)
    return words + [part for token in words if "-" in token for part in token.split("-")]


class WordList:
    """Counts which of its words a text holds. ``kill`` also finds ``kills`` and ``killing``."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = frozenset(words)
        self._near: dict[str, list[str]] = {}
        self.find = functools.lru_cache(maxsize=8192)(self._find)  # tokens repeat: every list sees every token of a text
        for word in sorted(self.words):
            if len(word) >= FUZZY_WORD:
                for form in (word, *_deletions(word)):
                    self._near.setdefault(form, []).append(word)

    def hits(self, text_tokens: Iterable[str]) -> int:
        """Number of different list words among the tokens."""
        hits = {word for token in set(text_tokens) if (word := self.find(token))}
        return len(hits)

    def _find(self, token: str) -> str:
        """The list word that this token is, or is meant to be; empty if none."""
        if token in self.words:
            return token
        for end in _SUFFIXES:
            stem = token.removesuffix(end)
            if stem != token and stem in self.words and len(stem) >= (3 if end == "s" else 4):
                return stem
        if len(token) < FUZZY_WORD - 1 or not token.isalpha() or is_english(token):
            return ""
        candidates = {word for form in (token, *_deletions(token)) for word in self._near.get(form, ())}
        return min((word for word in candidates if within_one_edit(token, word)), default="")


def _deletions(word: str) -> Iterator[str]:
    return (word[:at] + word[at + 1 :] for at in range(len(word)))


def within_one_edit(shorter: str, longer: str) -> bool:
    """One letter more, less or other, or two neighbours swapped (Damerau 1964), or equal."""
    if shorter == longer:
        return True
    if len(shorter) > len(longer):
        shorter, longer = longer, shorter
    if len(longer) - len(shorter) > 1:
        return False
    at = next((index for index, letter in enumerate(shorter) if letter != longer[index]), len(shorter))
    if len(shorter) < len(longer):
        return shorter[at:] == longer[at + 1 :]
    swapped = shorter[at : at + 2] == longer[at : at + 2][::-1] and shorter[at + 2 :] == longer[at + 2 :]
    return swapped or shorter[at + 1 :] == longer[at + 1 :]


def is_english(token: str) -> bool:
    """Is it a whole word of the encoder's vocabulary, or such a word with a common ending?"""
    vocabulary = word_numbers()
    if token in vocabulary:
        return True
    return any(
        len(stem := token.removesuffix(end)) >= 4 and stem != token and (stem in vocabulary or stem + "e" in vocabulary)
        for end in _SUFFIXES
    )


@functools.cache
def word_numbers() -> dict[str, int]:
    """The whole words of the encoder's vocabulary, each with the number of its row. Raises AssetError without its package."""
    document = json.loads((bundled_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    return {word: row for word, row in document["model"]["vocab"].items() if word.isalpha() and len(word) > 2}
