"""Runs of a denoiser that nobody announced: each is to be recorded, once where that can be told."""

from __future__ import annotations

import threading

import pytest
import torch

from safeguard.instrument.apply.direct_runs import DirectRuns


def text(number: int) -> torch.Tensor:
    return torch.full((2, 3, 4), float(number))


def begun(calls: list[tuple[int, float]]) -> list[bool]:
    """Which of the calls, text and timestep, begin a run."""
    runs = DirectRuns()
    return [runs.begins(text(number), moment) for number, moment in calls]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([(1, 900), (1, 500), (1, 100)], [True, False, False]),
        ([(1, 900), (1, 500), (1, 900), (1, 500)], [True, False, True, False]),
        ([(1, 500), (1, 500)], [True, True]),
        ([(1, 900), (2, 900), (1, 500), (2, 500)], [True, False, False, False]),
        ([(1, 900), (1, 500), (2, 300)], [True, False, True]),
        ([(1, 100), (2, 900)], [True, True]),
    ],
    ids=["one run", "two runs", "the same step twice", "a pass a branch", "another text later", "another text earlier"],
)
def test_what_begins_a_run(calls: list[tuple[int, float]], expected: list[bool]) -> None:
    assert begun(calls) == expected


def test_threads_have_runs_of_their_own() -> None:
    runs = DirectRuns()
    assert runs.begins(text(1), 900)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(runs.begins(text(1), 500)))
    thread.start()
    thread.join()
    assert found == [True]
    assert not runs.begins(text(1), 500)
