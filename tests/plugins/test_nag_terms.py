"""The term of ``nag`` on one attention, against its equations written out."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.nag import NAG
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.sdk.calls import SiteCall
from tests.support import worded_denoisers
from tests.support.worded_denoisers import (
    HEADS,
    SITE,
    WIDTH,
    Keys,
    WordPipeline,
    attended,
    site_call,
    site_call_of,
)

LOOSE = {"tau": 1e9, "alpha": 1.0}  # no bound, no blending: the bare guidance


edit_of = functools.partial(worded_denoisers.edit_of, NAG())


def negative_of(call: SiteCall, *texts: str) -> Tensor:
    """What the attention answers with these texts, opening and closing tokens and all, in the prompt's place."""
    keys, values = [], []
    if call.joint:
        others = site_call(call.strengths.tolist(), seed=99).prompt  # the image tokens of ``attended``
        keys, values = [others[0]], [others[1]]
    for text in texts:
        k, v = Keys(WordPipeline().one(["<", *text.split(), ">"]).states).at(SITE)
        keys.append(k.expand(len(call.query), *k.shape))
        values.append(v.expand(len(call.query), *v.shape))
    scores = call.query @ torch.cat(keys, 2).transpose(-1, -2) * SITE.scale
    return call.merge(scores.softmax(-1) @ torch.cat(values, 2))


def equations(positive: Tensor, negative: Tensor, strength: float, tau: float, alpha: float) -> Tensor:
    guided = positive + strength * (positive - negative)
    ratio = guided.abs().sum(-1, keepdim=True) / positive.abs().sum(-1, keepdim=True)
    guided = torch.where(ratio > tau, guided * tau / ratio, guided)
    return alpha * guided + (1 - alpha) * positive


@pytest.mark.parametrize("joint", [False, True])
@given(seed=st.integers(0, 10**6), strength=st.floats(0.1, 20), tau=st.floats(1, 5), alpha=st.floats(0.05, 1))
@settings(max_examples=25, deadline=None)
def test_it_is_the_equations(joint: bool, seed: int, strength: float, tau: float, alpha: float) -> None:
    call = attended(site_call([[strength]], seed), joint=joint)
    found = call.output + edit_of("red blood", tau=tau, alpha=alpha)(call).delta
    expected = equations(call.output, negative_of(call, "red blood"), strength, tau, alpha)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_concepts_own_text_as_the_prompt_changes_nothing() -> None:
    keys, values = (part[None] for part in Keys(WordPipeline().one(["<", "blood", ">"]).states).at(SITE))
    bare = site_call([[8.0]])
    call = attended(site_call_of(bare.output, bare.query, keys, values, bare.strengths))
    assert torch.allclose(edit_of("blood", **LOOSE)(call).delta, torch.zeros(1, 6, HEADS * WIDTH), atol=1e-4)


@given(seed=st.integers(0, 10**6), tau=st.floats(1, 4))
@settings(max_examples=25, deadline=None)
def test_no_feature_grows_beyond_tau(seed: int, tau: float) -> None:
    call = attended(site_call([[50.0]], seed))
    found = call.output + edit_of("blood", tau=tau, alpha=1.0)(call).delta
    assert (found.abs().sum(-1) <= tau * call.output.abs().sum(-1) * 1.001).all()


def test_active_concepts_of_a_row_are_one_text_led_away_from_by_the_strongest() -> None:
    call = attended(site_call([[2.0, 5.0]]))
    found = call.output + edit_of("blood", "a sword", **LOOSE)(call).delta
    expected = equations(call.output, negative_of(call, "blood", "a sword"), 5.0, **LOOSE)
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_concept_that_is_not_active_in_a_row_has_no_part_there() -> None:
    edit = edit_of("blood", "sword")
    alone = edit_of("blood")(attended(site_call([[3.0]]))).delta
    assert torch.allclose(edit(attended(site_call([[3.0, 0.0]]))).delta, alone, atol=1e-5)


@pytest.mark.parametrize("joint", [False, True])
def test_nothing_active_in_a_row_is_no_change_there(joint: bool) -> None:
    call = attended(site_call([[3.0], [0.0]]), joint=joint)
    assert torch.equal(edit_of("blood")(call).delta[1], torch.zeros(6, HEADS * WIDTH))


def test_a_narrowed_edit_is_the_edit_of_those_concepts() -> None:
    call = attended(site_call([[1.0, 3.0]]))
    narrow = edit_of("blood", "sword", "a house by the sea").select([2, 0])
    assert narrow.concepts == ("c2", "c0")
    assert torch.allclose(narrow(call).delta, edit_of("a house by the sea", "blood")(call).delta, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("tau", 0.5), ("tau", "wide"), ("alpha", 1.5), ("alpha", True)])
def test_a_parameter_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(CapabilityError, match=rf"'c0': params\.{name} of 'nag'"):
        edit_of("blood", **{name: value})
