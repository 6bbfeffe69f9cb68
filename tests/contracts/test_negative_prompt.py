"""The eraser ``negative_prompt`` is diffusers' own ``negative_prompt=``, row by row, and keeps what the user says there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeguard.errors import CapabilityError
from tests.support.contract_policies import concept, policy, rows_changed
from tests.support.families import PROMPTS, generate

Pipe = Any
Protect = Callable[..., Any]
CLOSE = {"rtol": 1e-4, "atol": 1e-2}  # the texts are encoded in other batches


def erasing(*names: str, **fields: Any) -> Any:
    return policy(*(concept(name, eraser="negative_prompt", **fields) for name in names))


def test_it_is_the_negative_prompt_of_diffusers(family: str, pipe: Pipe, protect: Protect) -> None:
    expected = generate(pipe, PROMPTS, negative_prompt=["blood, gore"] * 3)
    protect(pipe, policy(concept("blood", eraser="negative_prompt", activation="always", phrases=("blood", "gore"))))
    torch.testing.assert_close(generate(pipe, PROMPTS), expected, **CLOSE)


def test_it_keeps_the_users_own_negative_prompt(family: str, pipe: Pipe, protect: Protect) -> None:
    """Both texts count, in whichever order they are joined."""
    own = ["a fish", "", "a bird"]
    orders = [generate(pipe, PROMPTS, negative_prompt=texts) for texts in
              (["a fish, blood", "blood", "a bird, blood"], ["blood, a fish", "blood", "blood, a bird"])]  # fmt: skip
    protect(pipe, erasing("blood", activation="always"))
    found = generate(pipe, PROMPTS, negative_prompt=own)
    assert any(torch.allclose(found, expected, **CLOSE) for expected in orders)


def test_each_row_has_its_own(family: str, pipe: Pipe, protect: Protect) -> None:
    prompts = ["blood on snow", "a weapon", "blood on a weapon"]
    expected = generate(pipe, prompts, negative_prompt=["blood", "weapon", "blood, weapon"])
    protect(pipe, erasing("blood", "weapon"))
    torch.testing.assert_close(generate(pipe, prompts), expected, **CLOSE)


def test_without_guidance_it_refuses(family: str, pipe: Pipe, protect: Protect) -> None:
    protect(pipe, erasing("blood"))
    with pytest.raises(CapabilityError, match="this call has none") as raised:
        generate(pipe, PROMPTS, guidance_scale=1.0)
    assert raised.value.missing == "unconditional rows"


@pytest.mark.only_families("sd1")
def test_without_guidance_it_refuses_even_where_errors_are_allowed(family: str, pipe: Pipe, protect: Protect) -> None:
    """What a call cannot do at all is no error of the moment."""
    protect(pipe, policy(concept("blood", eraser="negative_prompt"), on_error="allow"))
    with pytest.raises(CapabilityError):
        generate(pipe, PROMPTS, guidance_scale=1.0)


def many(method: str, activation: str) -> list[Any]:
    return [concept(f"number {place:05}", eraser=method, activation=activation) for place in range(10)]


@pytest.mark.parametrize(
    ("method", "activation"), [("negative_prompt", "always"), ("negative_prompt", "adaptive"), ("sld", "always")]
)
def test_more_concepts_than_the_encoder_reads_are_refused(
    method: str, activation: str, family: str, pipe: Pipe, protect: Protect
) -> None:
    """So are those of any eraser that has the words of all its concepts read at once. Adaptive ones that nobody calibrated act
    in every image.
    """
    with pytest.raises(CapabilityError, match="shorten"):
        protect(pipe, policy(*many(method, activation)))


@pytest.mark.parametrize("method", ["negative_prompt", "sld"])
def test_where_they_need_not_act_together_images_are_refused_in_which_they_would(
    method: str, family: str, pipe: Pipe, protect: Protect
) -> None:
    one, several = "a boat with number 00003", " ".join(f"number {place:05}" for place in range(10))
    expected = generate(pipe, [PROMPTS[0], one, PROMPTS[2]])
    protect(pipe, policy(*many(method, "screened")))
    assert rows_changed(generate(pipe, [PROMPTS[0], one, PROMPTS[2]]), expected) == [False, True, False]
    with pytest.raises(CapabilityError, match="let fewer act at once"):
        generate(pipe, [PROMPTS[0], several, PROMPTS[2]])
