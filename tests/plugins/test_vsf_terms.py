"""The term of ``vsf`` on one attention, against the softmax written out."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.vsf import VSF
from torch import Tensor

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

edit_of = functools.partial(worded_denoisers.edit_of, VSF())


def joined(call: SiteCall, *phrases: tuple[list[str], float]) -> Tensor:
    """One softmax over the prompt's keys and every phrase's words, whose values are multiplied."""
    keys, values = ([part] for part in call.prompt)
    for words, factor in phrases:
        k, v = Keys(WordPipeline().one(words).states).at(SITE)
        keys.append(k[None])
        values.append(factor * v[None])
    scores = call.query @ torch.cat(keys, 2).transpose(-1, -2) * SITE.scale
    return call.merge(scores.softmax(-1) @ torch.cat(values, 2))


@given(seed=st.integers(0, 10**6), strength=st.floats(0.01, 10))
@settings(max_examples=25, deadline=None)
def test_the_words_join_the_softmax_with_their_sign_turned(seed: int, strength: float) -> None:
    call = attended(site_call([[strength]], seed))
    found = call.output + edit_of("red blood")(call).delta
    assert torch.allclose(found, joined(call, (["red", "blood"], -strength)), rtol=1e-3, atol=1e-4)


def test_a_factor_of_minus_one_is_both_texts_side_by_side() -> None:
    call = attended(site_call([[-1.0]]))
    assert torch.allclose(call.output + edit_of("blood")(call).delta, joined(call, (["blood"], 1.0)), atol=1e-4)


def test_several_concepts_share_one_softmax() -> None:
    call = attended(site_call([[1.0, 2.0]]))
    found = call.output + edit_of("blood", "a long sword")(call).delta
    expected = joined(call, (["blood"], -1.0), (["a", "long", "sword"], -2.0))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_concept_that_is_not_active_in_a_row_takes_nothing_there() -> None:
    call = attended(site_call([[1.0, 0.0]]))
    alone = attended(site_call([[1.0]]))
    assert torch.allclose(edit_of("blood", "sword")(call).delta, edit_of("blood")(alone).delta, atol=1e-6)


def test_nothing_active_in_a_row_is_no_change_there() -> None:
    call = attended(site_call([[1.0], [0.0]]))
    assert torch.equal(edit_of("blood")(call).delta[1], torch.zeros(6, HEADS * WIDTH))


def test_a_narrowed_edit_is_the_edit_of_those_concepts() -> None:
    call = attended(site_call([[1.0, 3.0]]))
    narrow = edit_of("blood", "sword", "a house by the sea").select([2, 0])
    assert narrow.concepts == ("c2", "c0")
    assert torch.allclose(narrow(call).delta, edit_of("a house by the sea", "blood")(call).delta, atol=1e-6)


def test_its_evidence_is_what_the_words_took() -> None:
    call = attended(site_call([[2.0]]))
    effect = edit_of("blood")(call)
    keys, _ = call.prompt
    own, _ = Keys(WordPipeline().one(["blood"]).states).at(SITE)
    scores = call.query @ torch.cat([keys, own[None]], 2).transpose(-1, -2) * SITE.scale
    assert effect.mass is not None
    assert torch.allclose(effect.mass[..., 0], scores.softmax(-1)[..., -1], atol=1e-4)


def test_all_attention_on_the_concept_still_gives_numbers() -> None:
    call = site_call([[1.0]])
    far = site_call_of(call.output, 200 * call.query, *call.prompt, call.strengths)
    assert torch.isfinite(edit_of("blood")(far).delta).all()


@pytest.mark.parametrize("word", ["weak", "medium", "strong", "max"])
def test_words_are_factors_of_the_paper(word: str) -> None:
    assert VSF.strengths[word] > 0
