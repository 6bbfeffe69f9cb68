"""``capture_decisions`` hears every guard, whatever calls the pipeline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import safeguard
from safeguard.errors import PolicyViolation
from safeguard.policy import Concept
from safeguard.testing import WordScreener, capture_decisions, tiny_pipeline
from safeguard.testing.tiny_pipelines import generate
from safeguard.testing.word_screener import policy_of


@pytest.fixture
def pipe() -> Iterator[Any]:
    pipe = tiny_pipeline("unet")
    blocked = Concept("weapon", phrases=("weapon",), activation="screened", action="block")
    erased = Concept("blood", phrases=("blood",), activation="screened")
    with safeguard.protect(pipe, policy_of(blocked, erased), screener=WordScreener()):
        yield pipe


def test_decisions_of_a_call_are_collected(pipe: Any) -> None:
    with capture_decisions() as decisions:
        generate(pipe, ["a red boat", "blood on snow"])
    assert [[applied.concept for applied in decision.applied] for decision in decisions] == [[], ["blood"]]


def test_a_refused_call_is_collected_too(pipe: Any) -> None:
    with capture_decisions() as decisions, pytest.raises(PolicyViolation):
        generate(pipe, ["very weapon"])
    assert [decision.result for decision in decisions] == ["block"]


def test_a_call_of_another_thread_is_collected(pipe: Any) -> None:
    with capture_decisions() as decisions:
        thread = threading.Thread(target=generate, args=(pipe, ["a red boat"]))
        thread.start()
        thread.join()
    assert len(decisions) == 1


def test_collecting_stops_at_the_end_also_after_an_exception(pipe: Any) -> None:
    decisions: list[Any] = []

    def fail_inside() -> None:
        with capture_decisions() as captured:
            generate(pipe, ["a red boat"])
            decisions.append(captured)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    generate(pipe, ["a red boat"])
    assert len(decisions[0]) == 1
