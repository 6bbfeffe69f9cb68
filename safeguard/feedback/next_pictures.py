"""Which pictures a person is shown next. Nothing is kept for it: it follows from what the store holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from safeguard.feedback.judgements import Item, Judgement


def shuffled(items: Sequence[Item]) -> list[Item]:
    """In the order of their digests, which has to do with nothing that is seen: the same for everybody and each time."""
    return sorted(items, key=lambda item: item.image)


def to_rank(items: Sequence[Item], judgements: Sequence[Judgement], size: int) -> tuple[list[Item], int]:
    """The pictures to rank next, and how many were never ranked. ``judgements`` are the person's rankings, replaced ones too.

    Those ranked least often come first, in another mixture each round, so that rankings overlap and can be compared.
    """
    times = Counter(image for judgement in judgements for image in judgement.images)

    def turn(item: Item) -> tuple[int, bytes]:
        return times[item.image], hashlib.sha256(f"{times[item.image]}:{item.image}".encode()).digest()

    waiting = sorted(items, key=turn)
    return waiting[:size], sum(times[item.image] == 0 for item in items)
