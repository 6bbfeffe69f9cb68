"""Texts to learn from: each with a concept in it, beside the same without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextPair:
    """``shown`` is a text without the concept, ``said`` the one that it is told from by the concept. Pictures are of what is
    said, or where it is another text, of what is ``painted``.
    """

    shown: str
    said: str
    painted: str = ""


def prompt_pairs(prompts: Sequence[str], phrases: Sequence[str]) -> list[TextPair]:
    """Pairs from ordinary prompts: shown as they are, said with one of the concept's phrases behind."""
    return [TextPair(text, f"{text}, {phrases[place % len(phrases)]}") for place, text in enumerate(prompts)]
