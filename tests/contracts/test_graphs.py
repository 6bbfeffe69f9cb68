"""Graphs of torch.compile, made before or after a guard: none of them runs unprotected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.support.contract_policies import CLOSE, always, concept, no_recompilation, policy, rows_changed
from tests.support.families import PROMPTS, denoiser, generate, part

Pipe = Any
Protect = Callable[..., Any]
pytestmark = pytest.mark.only_families("sd1", "sd3")
IN_SAMPLE = pytest.mark.in_sample("sd3")  # its graphs are made in half the time


@pytest.fixture(autouse=True)
def graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_denoiser(pipe: Pipe, how: str, backend: str) -> None:
    if how == "torch.compile":
        setattr(pipe, part(pipe), torch.compile(denoiser(pipe), backend=backend, fullgraph=True))
    elif how == "in place":
        denoiser(pipe).compile(backend=backend, fullgraph=True)
    else:
        for module in denoiser(pipe).modules():
            if type(module).__name__ in ("BasicTransformerBlock", "JointTransformerBlock"):
                module.compile(backend=backend, fullgraph=True)


@pytest.mark.in_sample("torch.compile")
@pytest.mark.parametrize("how", ["torch.compile", "in place", "blocks"])
def test_graphs_traced_through_autograd_hold_the_protection(how: str, own: Pipe, protect: Protect) -> None:
    """At two seams, made before the guard and before its swap."""
    both = policy(
        concept("blood", eraser="eiup", activation="always"),
        concept("gore", eraser="negative_prompt", activation="always"),
    )
    guard = protect(own, both)
    expected = generate(own, PROMPTS)
    guard.release()
    compiled_denoiser(own, how, "aot_eager")
    guard = protect(own, policy(concept("fish")))
    generate(own, PROMPTS)
    with no_recompilation():
        guard.swap(both)
        torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


@IN_SAMPLE
def test_a_graph_made_before_protect_does_not_run_unprotected(own: Pipe, protect: Protect) -> None:
    compiled_denoiser(own, "torch.compile", "eager")
    unprotected = generate(own, PROMPTS)
    for _ in range(2):  # the second guard finds a graph with the first one's hooks
        guard = protect(own, always("eiup"))
        assert rows_changed(generate(own, PROMPTS), unprotected) == [True, True, True]
        guard.release()
    torch.testing.assert_close(generate(own, PROMPTS), unprotected, **CLOSE)


@IN_SAMPLE
def test_compiling_after_protect_is_protected(own: Pipe, protect: Protect) -> None:
    unprotected = generate(own, PROMPTS)
    protect(own, always("eiup"))
    compiled_denoiser(own, "torch.compile", "eager")
    assert rows_changed(generate(own, PROMPTS), unprotected) == [True, True, True]


@IN_SAMPLE
def test_a_compiled_denoiser_is_asked_again_past_its_graph(own: Pipe, protect: Protect) -> None:
    protect(own, always("acme_slide"))
    expected = generate(own, PROMPTS)
    compiled_denoiser(own, "torch.compile", "eager")
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)
