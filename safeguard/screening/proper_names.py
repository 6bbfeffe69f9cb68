"""Artists and other proper names: matched by their letters, since an embedding takes one painter for another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safeguard.screening.encoder import Vectors
from safeguard.screening.normalize import normalize
from safeguard.screening.wordlist import FUZZY_NAME, is_english, tokens, within_one_edit

SPAN_COSINE = 0.70  # from here on a span of words means the name; wrong artists stay below
_LEAD = re.compile(
    r"^(?:(?:an?|the|in|painting|painted|drawing|art|artwork|style|styled|manner|works?)\s+)*(?:of|by|like|after)\s+", re.I
)
_TAIL = re.compile(r"(?:'s|’s)?\s+(?:style|painting|artwork|art)$", re.I)
_PARTICLES = frozenset(re.findall(r"\w+", "van von der den de da di du del della la le el bin ibn al y of the"))
# Last names that are also plain words: only the full name counts.
_PLAIN = frozenset(
    re.findall(
        r"\w+",
        "black white brown green gray grey red blue gold silver king queen young stone wood woods rivers hill west east north "
        "south banks page rose day may hunter church bush rock ford field fields lake snow winter summer moon sun star love "
        "light night cook baker smith hall house street park bell fox wolf bird swan lion",
    )
)
_CUE = re.compile(r"\b(?:by|of|like|style|à la|a la|after)\s+(?!of\b)((?:[^\W\d_][\w'’-]*\s*){1,5})")
MAX_SPANS = 12


@dataclass(frozen=True, slots=True)
class Name:
    """One proper name: its words in lower case, and whether the last one alone stands for it."""

    words: tuple[str, ...]
    alone: bool

    @property
    def text(self) -> str:
        return " ".join(self.words)


def parse_name(phrase: str) -> Name | None:
    """The name in ``in the style of Vincent van Gogh``; None where the phrase is no proper name (no capital letters)."""
    bare = _TAIL.sub("", _LEAD.sub("", phrase.strip())).strip()
    words = bare.split()
    proper = [word for word in words if word.lower() not in _PARTICLES]
    if not proper or not all(word[0].isupper() and not word.isupper() for word in proper) or len(words) > 5:
        return None
    folded = tuple(tokens(normalize(bare)))
    if not folded:
        return None
    last = folded[-1]
    return Name(folded, alone=len(last) >= 4 and last not in _PLAIN)


class NameList:
    """The names of one concept, and what a text scores for them."""

    def __init__(self, names: Sequence[Name]) -> None:
        self.names = tuple(dict.fromkeys(names))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(name.text for name in self.names)

    def match(self, text_tokens: Sequence[str]) -> float:
        """1.0 if a name stands there letter by letter, 0.9 if one edit away, 0.0 if not at all."""
        return max((_match(name, text_tokens) for name in self.names), default=0.0)


def _match(name: Name, words: Sequence[str]) -> float:
    if name.alone and name.words[-1] in words:
        return 1.0
    size = len(name.words)
    whole = " ".join(name.words)
    near = 0.0
    for at in range(len(words) - size + 1):
        span = " ".join(words[at : at + size])
        if span == whole and (size > 1 or name.alone):
            return 1.0
        if size > 1 and len(whole) >= FUZZY_NAME and within_one_edit(span, whole):
            near = 0.9
    if name.alone and len(name.words[-1]) >= FUZZY_NAME and any(_meant(word, name.words[-1]) for word in words):
        near = 0.9
    return near


def _meant(word: str, last: str) -> bool:
    return len(word) >= FUZZY_NAME - 1 and within_one_edit(word, last) and (word[:1] == last[:1]) and not is_english(word)


def spans(text: str) -> list[str]:
    """The two, three and five words behind ``by``, ``style of`` and the like: where a prompt puts a name."""
    spans_found: dict[str, None] = {}
    for match in _CUE.finditer(text):
        words = match[1].split()
        spans_found.update(dict.fromkeys(" ".join(words[:size]) for size in (2, 3, 5)))
    return list(spans_found)[:MAX_SPANS]


def span_score(cosine: float) -> float:
    """Cosine of a span to the bare name -> 0..1: 0.5 (the low threshold) at SPAN_COSINE, below it never more than 0.4."""
    if cosine >= SPAN_COSINE:
        return float(0.5 + 0.4 * (cosine - SPAN_COSINE) / (1.0 - SPAN_COSINE))
    return float(np.clip(cosine, 0.0, 1.0) * 0.4 / SPAN_COSINE)


def best_cosine(span_vectors: Vectors, name_vectors: Vectors) -> float:
    """Highest cosine of any span to any name; 0.0 without spans."""
    return float((span_vectors @ name_vectors.T).max()) if len(span_vectors) else 0.0
