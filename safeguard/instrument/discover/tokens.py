"""A text as a pipeline's tokenizers see it: which of its tokens are words, and whether all of it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from safeguard.errors import CapabilityError

LEARNED: Final = re.compile(r"<[^<>\s]+>")  # how learned words are named
MORE: Final = " x"  # behind a text that an encoder reads to its end, it changes what the encoder gets
ROOM: Final = "room for phrases"
SHOWN: Final = 60  # characters of a text in an error


def tokenizer_of(pipe: Any, encoder: str) -> Any:
    return getattr(pipe, encoder.replace("text_encoder", "tokenizer"), None)


def require_known(pipe: Any, base: type, text: str) -> None:
    """Raises CapabilityError for a learned word that no tokenizer knows: it would be read by the letters of its name."""
    tokenizers = (getattr(pipe, f"tokenizer{end}", None) for end in ("", "_2", "_3"))
    known = {word for tokenizer in tokenizers for word in getattr(tokenizer, "added_tokens_encoder", ())}
    unknown = next((word for word in LEARNED.findall(text) if word not in known), None)
    if unknown is not None:
        raise CapabilityError(
            f'{base.__name__} has no word {unknown}; load it: pipe.load_textual_inversion(FILE, token="{unknown}")',
            missing=unknown,
        )


def is_padded(numbers: Sequence[int], empty: Sequence[int]) -> bool:
    """Whether there is padding around a text, which repeats a token that stands around the ``empty`` text too: all was read."""
    ends = [(line[-1], line[-2]) for line in (numbers, numbers[::-1]) if len(line) > 1]
    return any(first == last and first in (*empty[:1], *empty[-1:]) for first, last in ends)


def is_filled_up(numbers: Sequence[int]) -> bool:
    """Whether there is padding among what stands from the words of a short text on: one token thrice in a row."""
    return any(before == middle == third for before, middle, third in zip(numbers, numbers[1:], numbers[2:], strict=False))


def cut_off(text: str, read: int, base: type) -> CapabilityError:
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return CapabilityError(
        f"the policy's words {shown!r} take all of the {read} tokens that a text has in {base.__name__}, or more: "
        f"shorten them, or where they are of several concepts, let fewer act at once or give some another eraser",
        pipeline=base.__name__,
        missing=ROOM,
    )


def places_of(numbers: Sequence[int], empty: Sequence[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """The places of real tokens among the ``numbers`` of a text, and which of these are words; ``empty`` are the numbers of
    the empty text.
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    first, last = _words(numbers, empty, tokenizer)
    words = [spot for spot in range(first, last) if numbers[spot] not in special]
    end = len(_unclosed(numbers, tokenizer))  # behind it is what closes the text, or what fills it up
    closed = last < end or numbers[last : last + 1] == [getattr(tokenizer, "eos_token_id", None)]
    return [*range(first), *words, *([last] if closed else [])], words


def _words(numbers: Sequence[int], empty: Sequence[int], tokenizer: Any) -> tuple[int, int]:
    """From where to where the words of a text stand, between what opens and closes every text."""
    bare, hollow = _unclosed(numbers, tokenizer), _unclosed(empty, tokenizer)
    first = 0
    while first < min(len(bare), len(hollow)) and bare[first] == hollow[first]:
        first += 1
    tail = 0
    while tail < min(len(bare), len(hollow)) - first and bare[-1 - tail] == hollow[-1 - tail]:
        tail += 1
    return first, max(first, len(bare) - tail)


def _unclosed(numbers: Sequence[int], tokenizer: Any) -> list[int]:
    """Without the padding, which repeats one token, and without the token that closes the text."""
    last = len(numbers)
    while last and numbers[last - 1] == numbers[-1]:
        last -= 1
    if len(numbers) - last == 1 and numbers[-1] not in getattr(tokenizer, "all_special_ids", ()):
        last = len(numbers)
    if last and numbers[last - 1] == getattr(tokenizer, "eos_token_id", None):
        last -= 1
    return list(numbers[:last])
