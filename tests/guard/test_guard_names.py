"""What a guard tells of itself, and how it is found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safeguard

POLICY = "concepts: {blood: {phrases: [blood], activation: always}}"


def test_the_guard_of_a_pipeline_is_found_again(protect: Callable[..., Any], write: Callable[..., Path], pipe: Any) -> None:
    guard = protect(pipe, write(POLICY))
    assert safeguard.guard_of(pipe) is guard


def test_a_pipeline_that_is_not_protected_has_no_guard(pipe: Any) -> None:
    assert safeguard.guard_of(pipe) is None


def test_a_released_pipeline_has_no_guard(protect: Callable[..., Any], write: Callable[..., Path], pipe: Any) -> None:
    protect(pipe, write(POLICY)).release()
    assert safeguard.guard_of(pipe) is None


def test_its_repr_names_pipeline_and_policy(protect: Callable[..., Any], write: Callable[..., Path], pipe: Any) -> None:
    guard = protect(pipe, write(POLICY))
    assert repr(guard).startswith("<Guard of StableDiffusionPipeline: policy 'shop' ")


def test_the_repr_of_a_released_guard_says_so(protect: Callable[..., Any], write: Callable[..., Path], pipe: Any) -> None:
    guard = protect(pipe, write(POLICY))
    guard.release()
    assert "released" in repr(guard)


def test_the_package_lists_its_public_names() -> None:
    assert dir(safeguard) == sorted(safeguard.__all__)
