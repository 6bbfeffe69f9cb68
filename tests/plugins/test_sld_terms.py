"""What ``sld`` does to one prediction, against the properties of its equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safeguard_plugins.sld import PRESETS, SLD
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.calls import PredictionCall
from safeguard.sdk.edit_memory import EditMemory

(EDIT,) = SLD().edits([Concept("blood", ("blood",))], SLD.params, None)  # type: ignore[arg-type]
SHAPE = (2, 4, 8, 8)


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


PROMPT, EMPTY, CONCEPT = noise(0), noise(1), noise(2)


def call(concept: Tensor, strength: float = 4.0, progress: float = 0.5, **more: Any) -> PredictionCall:
    def predict(texts: Sequence[str]) -> Tensor:
        assert list(texts) == ["blood", "blood"]
        return concept

    given = {"prediction": PROMPT, "unconditional": EMPTY, "memory": EditMemory({}, [0, 1], [0]), **more}
    return PredictionCall(
        given["prediction"],
        given["unconditional"],
        predict,
        strengths=torch.full((2, 1), strength),
        progress=progress,
        memory=given["memory"],
    )


def test_a_prediction_that_leans_towards_the_concept_is_led_away() -> None:
    assert not torch.equal(EDIT(call(CONCEPT)), PROMPT)


def test_the_prompt_itself_as_the_concept_changes_nothing() -> None:
    """Nothing lies between the two predictions, so the scale is nought."""
    torch.testing.assert_close(EDIT(call(PROMPT)), PROMPT)


def test_the_empty_text_as_the_concept_changes_nothing() -> None:
    torch.testing.assert_close(EDIT(call(EMPTY)), PROMPT)


@pytest.mark.parametrize("word", PRESETS)
def test_it_waits_for_its_warm_up_and_gathers_momentum_meanwhile(word: str) -> None:
    memory = EditMemory({}, [0, 1], [0])
    warmup, strength = PRESETS[word].warmup, SLD.strengths[word]
    early = EDIT(call(CONCEPT, strength, warmup / 2 - 0.01 if warmup else -0.01, memory=memory))
    torch.testing.assert_close(early, PROMPT)
    assert memory.of_row(0)["momentum"].abs().sum() > 0
    assert not torch.equal(EDIT(call(CONCEPT, strength, warmup)), PROMPT)


def test_element_by_element_it_is_what_the_equations_say() -> None:
    preset = PRESETS["medium"]
    apart = PROMPT - CONCEPT
    amount = (preset.scale * apart.abs()).clamp(max=1) * (apart < preset.threshold)
    torch.testing.assert_close(EDIT(call(CONCEPT, 2.0)), PROMPT - amount * (CONCEPT - EMPTY))


def test_without_an_unconditional_branch_it_refuses() -> None:
    with pytest.raises(CapabilityError, match="unconditional"):
        EDIT(call(CONCEPT, unconditional=None))
