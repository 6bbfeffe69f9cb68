"""What ``dve`` does to one prediction, against its equations written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.dve import DVE
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.calls import PredictionCall

SHAPE = (2, 4, 8, 8)


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


SEEN: Mapping[str, Tensor] = {"": noise(1), "blood, gore": noise(2), "water": noise(3), "a sword": noise(4)}
BLOOD = Concept("blood", ("blood", "gore"))
SWORD = Concept("weapon", ("a sword",))


def predicted(prompt: Tensor, strengths: list[list[float]], *concepts: Concept, form: str = "relative") -> Tensor:
    def predict(texts: Sequence[str]) -> Tensor:
        assert len(texts) == SHAPE[0]
        return torch.stack([SEEN[text][row] for row, text in enumerate(texts)])

    (edit,) = DVE().edits(concepts, {"form": form}, None)  # type: ignore[arg-type]
    call = PredictionCall(prompt, None, predict, strengths=torch.tensor(strengths), progress=0.5)
    return edit(call)  # type: ignore[operator, no-any-return]


def dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).flatten(1).sum(1)


def along(vector: Tensor, direction: Tensor) -> Tensor:
    return (dot(vector, direction) / dot(direction, direction)).view(-1, 1, 1, 1)


@given(seed=st.integers(10, 10**6), strength=st.floats(0.1, 2))
@settings(max_examples=25, deadline=None)
def test_the_published_form_is_the_projection(seed: int, strength: float) -> None:
    prompt, direction = noise(seed), SEEN["blood, gore"] - SEEN[""]
    found = predicted(prompt, [[strength]] * 2, BLOOD, form="published")
    torch.testing.assert_close(found, prompt - strength * along(prompt, direction) * direction)


def test_at_one_the_published_form_leaves_nothing_along_the_direction() -> None:
    prompt, direction = noise(5), SEEN["blood, gore"] - SEEN[""]
    left = dot(predicted(prompt, [[1.0]] * 2, BLOOD, form="published"), direction)
    assert (left.abs() < 1e-3 * dot(direction, direction)).all()


@given(seed=st.integers(10, 10**6), towards=st.floats(0.05, 2), strength=st.floats(0.1, 2))
@settings(max_examples=25, deadline=None)
def test_the_relative_form_takes_back_what_leads_from_the_anchor_to_the_concept(
    seed: int, towards: float, strength: float
) -> None:
    anchor, direction = SEEN[""], SEEN["blood, gore"] - SEEN[""]
    aside = noise(seed) - along(noise(seed), direction) * direction
    found = predicted(anchor + aside + towards * direction, [[strength]] * 2, BLOOD)
    torch.testing.assert_close(found, anchor + aside + towards * (1 - strength) * direction, rtol=1e-3, atol=1e-4)


def test_the_concepts_own_words_become_the_anchor() -> None:
    concept = Concept("blood", BLOOD.phrases, anchor="water")
    torch.testing.assert_close(predicted(SEEN["blood, gore"], [[1.0]] * 2, concept), SEEN["water"], rtol=1e-3, atol=1e-4)


def test_a_prediction_that_leads_away_from_the_concept_stays() -> None:
    prompt = SEEN[""] - (SEEN["blood, gore"] - SEEN[""])
    assert torch.equal(predicted(prompt, [[1.0]] * 2, BLOOD), prompt)


def test_a_concept_that_says_what_its_anchor_says_changes_nothing() -> None:
    concept = Concept("blood", ("water",), anchor="water")
    assert torch.equal(predicted(noise(5), [[1.0]] * 2, concept), noise(5))


def test_each_row_loses_the_concepts_that_are_active_in_it() -> None:
    prompt = noise(5) + SEEN["blood, gore"] + SEEN["a sword"]
    both = predicted(prompt, [[1.0, 0.0], [0.0, 1.0]], BLOOD, SWORD)
    torch.testing.assert_close(both[0], predicted(prompt, [[1.0]] * 2, BLOOD)[0])
    torch.testing.assert_close(both[1], predicted(prompt, [[1.0]] * 2, SWORD)[1])


def test_what_two_concepts_share_is_taken_once() -> None:
    prompt, twin = SEEN["blood, gore"], Concept("twin", BLOOD.phrases)
    torch.testing.assert_close(
        predicted(prompt, [[1.0, 1.0]] * 2, BLOOD, twin), predicted(prompt, [[1.0]] * 2, BLOOD), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("form", ["squared", 1])
def test_another_form_is_refused(form: Any) -> None:
    with pytest.raises(CapabilityError, match=r"'blood': params\.form of 'dve'"):
        predicted(noise(5), [[1.0]] * 2, BLOOD, form=form)
