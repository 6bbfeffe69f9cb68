"""What activation by evidence promises, for every eraser on every family: it only looks until something is seen, and then it is
as if the concept had been active all along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeguard.policy import Policy
from tests.support.contract_policies import CLOSE, calibrated, close, concept, no_recompilation, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, generate

Pipe = Any
Plain = Callable[..., torch.Tensor]
Protect = Callable[..., Any]
Compiled = Callable[[str], tuple[Pipe, Any]]


def adaptive(eraser: str, strength: float = 2.0) -> Policy:
    return policy(concept("blood", eraser=eraser, activation="adaptive", strength=strength))


def test_where_nothing_is_seen_the_image_is_the_unprotected_one(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect
) -> None:
    expected = plain(family)
    protect(pipe, adaptive(eraser), screener=None, calibration=calibrated(pipe, adaptive(eraser), opens=()))
    assert same(generate(pipe, PROMPTS), expected)


@pytest.mark.only_families(*(family for family in FAMILIES if family != "controlnet"))
def test_what_is_seen_is_erased_from_the_first_step_on(eraser: str, family: str, pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood", eraser=eraser, activation="always")))
    expected = generate(pipe, PROMPTS)
    guard.release()
    protect(pipe, adaptive(eraser), screener=None, calibration=calibrated(pipe, adaptive(eraser), opens=(0, 1, 2)))
    assert same(generate(pipe, PROMPTS), expected)


def test_only_the_rows_in_which_it_is_seen_change(eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect) -> None:
    expected = plain(family)
    guard = protect(pipe, adaptive(eraser), screener=None, calibration=calibrated(pipe, adaptive(eraser), opens=(2,)))
    with guard.request() as request:
        found = generate(pipe, PROMPTS)
    assert rows_changed(found, expected) == [False, False, True]
    assert [decision.evidence.concepts["blood"].opened for decision in request.decisions] == [False, False, True]
    assert [[one.concept for one in decision.applied] for decision in request.decisions] == [[], [], ["blood"]]
    assert [decision.result for decision in request.decisions] == ["pass", "pass", "erase"]


@pytest.mark.only_families("sd1", "sd3")
def test_a_compiled_denoiser_erases_what_is_seen_from_the_first_step_on(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect, compiled: Compiled
) -> None:
    with protect(pipe, policy(concept("blood", eraser=eraser, activation="always"))):
        erased = generate(pipe, PROMPTS)
    own, guard = compiled(family)
    guard.swap(adaptive(eraser))
    with guard.request() as request:
        found = generate(own, PROMPTS)
    (applied,) = request.decisions[2].applied
    assert applied.steps == (0, 1)
    torch.testing.assert_close(found, torch.stack([*plain(family)[:2], erased[2]]), **CLOSE)
    assert torch.dist(found[2], erased[2]) < torch.dist(found[2], plain(family)[2]) / 10
    with no_recompilation():
        generate(own, PROMPTS)


@pytest.mark.only_families("sd1", "sd3")
def test_a_compiled_denoiser_erases_in_its_only_step(eraser: str, family: str, plain: Plain, compiled: Compiled) -> None:
    expected = plain(family, num_inference_steps=1)
    own, guard = compiled(family)
    guard.swap(adaptive(eraser, strength=4.0))  # at less, sld warms up first
    found = generate(own, PROMPTS, num_inference_steps=1)
    assert [close(one, other) for one, other in zip(found, expected, strict=True)] == [True, True, False]
