"""What of a text is looked at: its forms, its windows, its words; and when it is too long to be read whole."""

from __future__ import annotations

from dataclasses import dataclass

from safeguard.screening.normalize import normalize
from safeguard.screening.wordlist import tokens

WINDOW, STRIDE = 16, 8  # words
MAX_WINDOWS = 64
MAX_WORDS = WINDOW + STRIDE * (MAX_WINDOWS - 1)  # 520, more than the text encoders of today's pipelines take in
MAX_CHARACTERS = 10_000
_PIECE_ASCII, _PIECE_OTHER = 15, 5  # a longer "word" is cut, so that no window outgrows the model's 256 tokens


@dataclass(frozen=True, slots=True)
class PreparedText:
    """``forms``: texts to embed, without repeats (empty if there is nothing to read); ``unread``: too long, not looked at."""

    normal: str
    forms: tuple[str, ...]
    tokens: tuple[str, ...]
    unread: bool = False


def prepare(text: str) -> PreparedText:
    """The raw and the normalised text; where it has more than 16 words, windows of the normalised one in their place.

    (The whole of a long text adds nothing to its windows, measured, and takes a third of the time.)
    """
    if len(text) > MAX_CHARACTERS:
        return PreparedText("", (), (), unread=True)
    normal = normalize(text)
    pieces = _pieces(normal)
    if len(pieces) > MAX_WORDS:
        return PreparedText("", (), (), unread=True)
    if not pieces:
        return PreparedText("", (), ())
    if len(pieces) > WINDOW:
        starts = range(0, len(pieces) - WINDOW + STRIDE, STRIDE)
        forms = dict.fromkeys(" ".join(pieces[at : at + WINDOW]) for at in starts)
    else:
        raw = _pieces(text.casefold())
        forms = dict.fromkeys([normal] if len(raw) > WINDOW else [" ".join(text.casefold().split()), normal])
    return PreparedText(normal, tuple(forms), tuple(tokens(normal)))


def _pieces(text: str) -> list[str]:
    pieces = []
    for word in text.split():
        size = _PIECE_ASCII if word.isascii() else _PIECE_OTHER
        pieces += [word[at : at + size] for at in range(0, len(word), size)]
    return pieces
