"""English words near a phrase, by the screener's encoder: wordings that nobody wrote into a policy."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from safeguard.screening.encoder import Encoder, bundled_folder
from safeguard.screening.wordlist import word_numbers

SHORTLIST: Final = 100  # of each word of a phrase, by the encoder's own table of words
CLOSEST: Final = 0.65  # the cosine between word and phrase from which one may stand for the other
STEM: Final = 4  # letters that a word may not share with the beginning of a word of the phrases: that would be the same word


def near_words(phrases: Sequence[str], count: int) -> list[str]:
    """Words that say what these phrases say, and share no stem with them.

    The shortlist is made by the encoder's embeddings of single words, the order by its vectors of whole texts.

    Args:
        phrases: Of a concept.
        count: At most so many.

    Returns:
        The nearest first. Of names, there are mostly none.

    Raises:
        AssetError: The encoder's package is missing or altered.
    """
    own = sorted({word for phrase in phrases for word in re.findall(r"[a-z]+", phrase.lower())})
    words, table = _table()
    known = [known_word for word in own if (known_word := _known(word, words))]
    if not known:
        return []
    rows = table[[words.index(word) for word in known]]
    order = np.argsort(-(rows @ table.T), axis=1)[:, :SHORTLIST]
    found = sorted({words[place] for place in order.ravel()})
    found = [word for word in found if not any(word.startswith(own_word[:STEM]) for own_word in own)]
    if not found:
        return []
    cosines = (_encoder().encode(found) @ _encoder().encode(list(phrases)).T).max(1)
    nearest = sorted(zip(cosines.tolist(), found, strict=True), reverse=True)
    return [word for cosine, word in nearest if cosine >= CLOSEST][:count]


def _known(word: str, words: Sequence[str]) -> str:
    """The word, if the encoder has it as a whole; else the word with the same beginning that says the same ("nude" for
    "nudity"); else an empty one.
    """
    if word in words:
        return word
    alike = [candidate for candidate in words if candidate[: STEM - 1] == word[: STEM - 1]] if len(word) >= STEM else []
    if not alike:
        return ""
    cosines = _encoder().encode(alike) @ _encoder().encode([word])[0]
    return alike[int(cosines.argmax())] if cosines.max() >= CLOSEST else ""


@functools.cache
def _encoder() -> Encoder:
    return Encoder()


@functools.cache
def _table() -> tuple[list[str], npt.NDArray[np.float32]]:
    """Whole English words of the encoder's vocabulary, and their embeddings relative to the mean of all, of length 1."""
    from safetensors.torch import load_file

    numbers = word_numbers()
    words = sorted(filter(str.isascii, numbers))
    every = load_file(bundled_folder() / "model.safetensors")["embeddings.word_embeddings.weight"].numpy()
    beside = every[[numbers[word] for word in words]] - every.mean(0)
    return words, np.asarray(beside / np.linalg.norm(beside, axis=1, keepdims=True), dtype=np.float32)
