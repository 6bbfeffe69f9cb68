"""Undo what people do to a word so that a filter does not see it.

``normalize`` is applied beside the raw text, never instead of it: the screener scores both and takes the higher score.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# Look-alikes of Latin letters that NFKD leaves alone: Cyrillic, Greek, Armenian, and a few from elsewhere (Unicode TR 39
# lists thousands; these are the ones found on keyboards and in generators of "fancy text").
_LOOKALIKES = {
    "a": "аɑα", "b": "ЬвВβƄ", "c": "сϲᴄ", "d": "ԁɗ", "e": "еєεҽℯ", "f": "ғƒ", "g": "ɡց", "h": "һнНհ", "i": "іɩιɪı",
    "j": "јϳ", "k": "кКκᴋ", "l": "ӏⅼ", "m": "мМᴍ", "n": "пηոɴ", "o": "оοσօᴏø", "p": "рρ", "q": "ԛգ", "r": "гᴦʀ",
    "s": "ѕʂ", "t": "тТτᴛ", "u": "υսᴜμ", "v": "ѵνᴠ", "w": "ԝшωᴡ", "x": "хχ", "y": "уүγʏ", "z": "ᴢʐζ",
}  # fmt: skip
_CONFUSABLES = {ord(form): latin for latin, others in _LOOKALIKES.items() for form in others + others.upper()
                if not form.isascii()}  # fmt: skip
_LEET = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s",
                       "!": "i"})  # fmt: skip
# What mixes letters and digits in plain prompts: 4k, 3d, 50mm, 19th, 1980s, f1, 8x10, r2d2 stays because it is all mixed.
_PLAIN_MIXED = re.compile(
    r"\d+(?:st|nd|rd|th|s|k|d|p|fps|mm|cm|m|km|in|ft|x|px|mp|gb|mb|kg|g|am|pm|hz|bit|h|c|f|b)?(?:x\d+)?|[a-z]{1,2}\d{1,4}"
)
_TOKEN = re.compile(r"[a-z0-9@$!]+")
_SPACED = re.compile(r"(?<![^\W_])[a-z0-9@$](?:[\s._*\-/|]{1,3}[a-z0-9@$](?![^\W_])){2,}")
_RUN = re.compile(r"([^\W\d_])\1{2,}")


def normalize(text: str) -> str:
    """Fold to lower-case Latin: hidden characters, accents, look-alikes, widths, spaced letters, leet, long runs.

    Applying it twice changes nothing more. Never raises for a ``str``, lone surrogates included.
    """
    folded = _fold(text)
    while folded != text:  # a step may uncover work for an earlier one; after the first pass each only maps or shortens
        text, folded = folded, _fold(folded)
    return text


def _fold(text: str) -> str:
    text = text.casefold() if text.isascii() and text.isprintable() else _to_latin(text)
    text = _SPACED.sub(lambda match: _join(match[0]), text)
    text = _TOKEN.sub(lambda match: _unleet(match[0]), text)
    text = _RUN.sub(r"\1\1", text)
    return " ".join(text.split())


def _to_latin(text: str) -> str:
    text = "".join(character for character in text if not _hidden(character))
    text = unicodedata.normalize("NFKD", text)
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = text.translate(_CONFUSABLES)
    return unicodedata.normalize("NFKC", text).casefold()


def _hidden(character: str) -> bool:
    """Zero-width and bidirectional marks, variation selectors, tags, soft hyphens, lone surrogates, controls."""
    code = ord(character)
    if character.isspace():
        return False
    return (
        unicodedata.category(character) in ("Cf", "Cc", "Cs", "Cn", "Co")
        or 0xFE00 <= code <= 0xFE0F
        or 0xE0100 <= code <= 0xE01EF
        or code in (0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0)  # fillers that show as nothing
    )


def _join(run: str) -> str:
    """``b l o o d`` and ``b.l.o.o.d`` to ``blood``; a gap wider than the others is a word boundary (``r e d  c a t``)."""
    parts = re.split(r"([\s._*\-/|]+)", run)
    gaps = parts[1::2]
    narrow = min(map(len, gaps))
    joined = parts[0]
    for gap, letter in zip(gaps, parts[2::2], strict=True):
        joined += ("" if len(gap) == narrow else " ") + letter
    # `a 1 9 6 0 s` or `8 8 8` are numbers, not words
    return joined if sum(character.isalpha() for character in joined) * 2 > len(joined) else run


def _unleet(token: str) -> str:
    core = token.strip("!")
    if not core or core.isalpha() or core.isdigit() or _PLAIN_MIXED.fullmatch(core):
        return token
    if not any(character.isalpha() for character in core):
        return token
    return core.translate(_LEET)


def squeeze(text: str) -> str:
    """Letters only, each run as one: what a stretched word (``bloooood``) and its dictionary form have in common."""
    letters = [character for character in text if character.isalpha()]
    return "".join(letters[:1] + [second for first, second in pairwise(letters) if first != second])
