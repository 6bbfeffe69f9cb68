"""The eraser ``negative_prompt`` is diffusers' own ``negative_prompt=``, row by row, and keeps what the user says there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeguard.errors import CapabilityError
from tests.support.contract_policies import concept, policy, rows_changed
from tests.support.families import PROMPTS, generate
from tests.support.guarded import Guarded

Plain = Callable[..., torch.Tensor]
CLOSE = {"rtol": 1e-4, "atol": 1e-2}  # the texts are encoded in other batches


def erasing(*names: str, **fields: Any) -> Any:
    return policy(*(concept(name, eraser="negative_prompt", **fields) for name in names))


def test_it_is_the_negative_prompt_of_diffusers(family: str, guarded: Guarded, plain: Plain) -> None:
    found = guarded.under(erasing("blood", activation="always", phrases=("blood", "gore")))
    torch.testing.assert_close(found, plain(family, negative_prompt=["blood, gore"] * 3), **CLOSE)


def test_it_keeps_the_users_own_negative_prompt(family: str, guarded: Guarded, plain: Plain) -> None:
    """Both texts count, in whichever order they are joined."""
    orders = [plain(family, negative_prompt=texts) for texts in
              (["a fish, blood", "blood", "a bird, blood"], ["blood, a fish", "blood", "blood, a bird"])]  # fmt: skip
    found = guarded.under(erasing("blood", activation="always"), negative_prompt=["a fish", "", "a bird"])
    assert any(torch.allclose(found, expected, **CLOSE) for expected in orders)


def test_each_row_has_its_own(family: str, guarded: Guarded, plain: Plain) -> None:
    prompts = ["blood on snow", "a weapon", "blood on a weapon"]
    expected = plain(family, prompts, negative_prompt=["blood", "weapon", "blood, weapon"])
    torch.testing.assert_close(guarded.under(erasing("blood", "weapon"), prompts), expected, **CLOSE)


def test_without_guidance_it_refuses(family: str, guarded: Guarded) -> None:
    with pytest.raises(CapabilityError, match="this call has none") as raised:
        guarded.under(erasing("blood"), guidance_scale=1.0)
    assert raised.value.missing == "unconditional rows"


@pytest.mark.only_families("sd1")
def test_without_guidance_it_refuses_even_where_errors_are_allowed(family: str, guarded: Guarded) -> None:
    """What a call cannot do at all is no error of the moment."""
    with pytest.raises(CapabilityError):
        guarded.under(policy(concept("blood", eraser="negative_prompt"), on_error="allow"), guidance_scale=1.0)


MANY = 7  # the words of so many are more than the encoder reads


def many(method: str, activation: str) -> list[Any]:
    return [concept(f"number {place:05}", eraser=method, activation=activation) for place in range(MANY)]


@pytest.mark.parametrize(
    ("method", "activation"), [("negative_prompt", "always"), ("negative_prompt", "adaptive"), ("sld", "always")]
)
def test_more_concepts_than_the_encoder_reads_are_refused(method: str, activation: str, family: str, guarded: Guarded) -> None:
    """So are those of any eraser that has the words of all its concepts read at once. Adaptive ones that nobody calibrated act
    in every image.
    """
    with pytest.raises(CapabilityError, match="shorten"):
        guarded.swap(policy(*many(method, activation)))


@pytest.mark.parametrize("method", ["negative_prompt", "sld"])
def test_where_they_need_not_act_together_images_are_refused_in_which_they_would(
    method: str, family: str, guarded: Guarded, plain: Plain
) -> None:
    few = [PROMPTS[0], "a boat with number 00003", PROMPTS[2]]
    assert rows_changed(guarded.under(policy(*many(method, "screened")), few), plain(family, few)) == [False, True, False]
    several = " ".join(f"number {place:05}" for place in range(MANY))
    with pytest.raises(CapabilityError, match="let fewer act at once"):
        generate(guarded.pipe, [PROMPTS[0], several, PROMPTS[2]])
