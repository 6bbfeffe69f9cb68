"""How much memory a call takes at once."""

from __future__ import annotations

import torch

from safeguard.evaluation.peak_memory import peak_bytes

SIZE = 4 * 1000 * 1000


def test_what_is_held_at_once_adds_up() -> None:
    def call() -> None:
        kept = [torch.ones(1000, 1000) for _ in range(3)]
        assert len(kept) == 3

    assert peak_bytes(call) == 3 * SIZE


def test_what_was_given_back_does_not_count_again() -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(1000, 1000)

    assert peak_bytes(call) == SIZE


def test_what_was_held_before_does_not_count() -> None:
    held = torch.ones(1000, 1000)
    assert peak_bytes(lambda: held.add_(1)) < SIZE
