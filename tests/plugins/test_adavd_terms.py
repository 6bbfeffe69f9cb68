"""What ``adavd`` does to the values of a prompt, seen through an attention whose weights are known."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.adavd import AdaVD
from torch import Tensor
from torch.nn.functional import cosine_similarity

from safeguard.errors import CapabilityError
from safeguard.sdk.calls import SiteCall
from safeguard.sdk.pipeline import EncodedText
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

OPEN = {"slope": 100.0, "threshold": -2.0}  # every gate open: the whole component goes


edit_of = functools.partial(worded_denoisers.edit_of, AdaVD())


def value_of(text: str) -> Tensor:
    """The value of a text's last word, heads side by side: [H * d]."""
    _, values = Keys(WordPipeline().one(text.split()[-1:]).states).at(SITE)
    return values.transpose(0, 1).flatten()


def after(call: SiteCall, edit: Any) -> Tensor:
    """The values [R, L, H * d] that would have given the edited output; its six queries tell the five of them."""
    weights = (call.query @ call.prompt[0].transpose(-1, -2) * SITE.scale).softmax(-1)
    found = (call.output + edit(call).delta).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    return torch.linalg.lstsq(weights.double(), found.double()).solution.float().transpose(1, 2).flatten(2)


def before(call: SiteCall) -> Tensor:
    return call.prompt_values.transpose(1, 2).flatten(2)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_at_strength_one_nothing_is_left_along_the_concept(seed: int) -> None:
    call, target = attended(site_call([[1.0]], seed)), value_of("red blood")
    expected = before(call)
    expected[:, 1:] -= (expected[:, 1:] @ target)[..., None] / target.square().sum() * target
    delta = edit_of("red blood", **OPEN)(call).delta
    weights = (call.query @ call.prompt[0].transpose(-1, -2) * SITE.scale).softmax(-1)
    heads = expected.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    assert torch.allclose(call.output + delta, call.merge(weights @ heads), atol=1e-4)


def test_in_joint_attention_what_the_prompt_brings_changes_alone() -> None:
    call, target = attended(site_call([[1.0]]), joint=True), value_of("blood")
    values = before(call)
    values[:, 1:] -= (values[:, 1:] @ target)[..., None] / target.square().sum() * target
    heads = values.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    changed = site_call([[1.0]])
    changed = site_call_of(changed.output, changed.query, call.prompt_keys, heads, call.strengths)
    expected = attended(changed, joint=True).output
    assert torch.allclose(call.output + edit_of("blood", **OPEN)(call).delta, expected, atol=1e-4)


def test_a_prompt_that_is_the_concept_loses_its_word() -> None:
    keys, values = (part[None] for part in Keys(WordPipeline().one(["<", "blood", "x", "y", ">"]).states).at(SITE))
    bare = site_call([[1.0]])
    call = attended(site_call_of(bare.output, bare.query, keys, values, bare.strengths))
    found = after(call, edit_of("blood", **OPEN))
    assert found[0, 1].norm() < 1e-2 * before(call)[0, 1].norm()


def test_the_token_that_opens_a_text_keeps_its_value() -> None:
    call = attended(site_call([[1.0]]))
    assert torch.allclose(after(call, edit_of("blood", **OPEN))[:, 0], before(call)[:, 0], atol=1e-2)


def test_the_gate_is_the_logistic_of_the_cosine() -> None:
    call, target = attended(site_call([[1.5]])), value_of("blood")
    values = before(call)
    gate = (10 * (cosine_similarity(values, target, dim=-1) - 0.2)).sigmoid()
    amount = 1.5 * gate * (values @ target) / target.square().sum()
    amount[:, 0] = 0
    heads = (amount[..., None] * target).unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    weights = (call.query @ call.prompt[0].transpose(-1, -2) * SITE.scale).softmax(-1)
    delta = edit_of("blood", slope=10, threshold=0.2)(call).delta
    assert torch.allclose(delta, -call.merge(weights @ heads), atol=1e-5)


def test_with_open_gates_the_order_of_concepts_does_not_matter() -> None:
    call = attended(site_call([[1.0, 1.0, 1.0]]))
    one = edit_of("blood", "a long sword", "smoke", **OPEN)(call).delta
    assert torch.allclose(one, edit_of("smoke", "blood", "a long sword", **OPEN)(call).delta, atol=1e-4)


def test_a_concept_named_twice_is_taken_once() -> None:
    call = attended(site_call([[1.0, 1.0]]))
    alone = edit_of("blood", **OPEN)(attended(site_call([[1.0]]))).delta
    assert torch.allclose(edit_of("blood", "red blood", **OPEN)(call).delta, alone, atol=1e-4)


def test_a_concept_that_is_not_active_in_a_row_bends_nothing_there() -> None:
    """Made orthogonal are the concepts of each row among themselves."""
    both = edit_of("sword", "blood", **OPEN)(attended(site_call([[0.0, 1.0]]))).delta
    assert torch.allclose(both, edit_of("blood", **OPEN)(attended(site_call([[1.0]]))).delta, atol=1e-5)


def test_nothing_active_in_a_row_is_no_change_there() -> None:
    call = attended(site_call([[1.0], [0.0]]))
    assert torch.equal(edit_of("blood", **OPEN)(call).delta[1], torch.zeros(6, HEADS * WIDTH))


def test_a_narrowed_edit_is_the_edit_of_those_concepts() -> None:
    call = attended(site_call([[1.0, 3.0]]))
    narrow = edit_of("blood", "sword", "a house by the sea").select([2, 0])
    assert narrow.concepts == ("c2", "c0")
    assert torch.allclose(narrow(call).delta, edit_of("a house by the sea", "blood")(call).delta, atol=1e-5)


class TwoEncoders(WordPipeline):
    """Each text once from either encoder, the second behind the first's padding: words 1 and 3 of ``< a > a``."""

    def encode(self, texts: Any) -> list[EncodedText]:
        found = []
        for text in super().encode(texts):
            states = torch.cat([text.states, 2 + text.states[1:-1]])
            length = len(text.states)
            found.append(EncodedText(text.text, states, (1, length), (*range(length), 3 + length)))
        return found


def test_each_encoders_part_of_a_prompt_meets_the_concepts_last_word_of_its_own() -> None:
    """The phrase ``blood`` stands at places 0 to 2, and once more, by the other encoder, at 6: a prompt's part from there."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, 8, WIDTH, generator=generator)
    keys, values = (torch.randn(1, HEADS, 7, WIDTH, generator=generator) for _ in range(2))
    bare = site_call_of(torch.zeros(1, 8, HEADS * WIDTH), query, keys, values, torch.ones(1, 1))
    call = attended(bare)
    found = after(call, edit_of("blood", pipeline=TwoEncoders(), **OPEN))
    states = WordPipeline().one(["blood"]).states
    first, second = (Keys(part).at(SITE)[1].transpose(0, 1).flatten() for part in (states, 2 + states))
    assert (found[0, 1:6] @ first).abs().max() < 1e-2
    assert (found[0, 6] @ second).abs() < 1e-2
    assert (found[0, 6] @ first).abs() > 1e-1
    assert torch.allclose(found[0, 0], before(call)[0, 0], atol=1e-2)


@pytest.mark.parametrize(("name", "value"), [("slope", -1), ("threshold", "high"), ("threshold", 3)])
def test_a_parameter_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(CapabilityError, match=rf"'c0': params\.{name} of 'adavd'"):
        edit_of("blood", **{name: value})
