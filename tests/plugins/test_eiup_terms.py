"""The terms of ``eiup`` on one attention, against the equations written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.eiup import BEYOND, EIUP, JOINT, POOLED
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.calls import EveryKey, SiteCall, StatesCall
from safeguard.sdk.concept_attention import ConceptAttention
from safeguard.sdk.contrast_attention import pairs_of
from safeguard.sdk.pipeline import EncodedText
from safeguard.testing import check_eraser
from tests.support.worded_denoisers import HEADS, SITE, TEXT, WIDTH, Keys, WordPipeline, concepts_of, site_call, site_call_of


def _edit(form: str, *phrases: str) -> Any:
    (edit,) = EIUP().edits(concepts_of(*phrases), {**EIUP.params, "form": form}, WordPipeline())
    return edit


FORMS = ("general", "projected", "gated", "published", "difference")


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.01, 10))
@settings(max_examples=25, deadline=None)
def test_the_term_is_linear_in_the_strength(form: str, seed: int, strength: float) -> None:
    edit = _edit(form, "red blood")
    once = edit(site_call([[1.0]], seed)).delta
    assert torch.allclose(edit(site_call([[strength]], seed)).delta, strength * once, rtol=1e-4, atol=1e-5)


def test_several_published_terms_are_the_sum_of_each_alone() -> None:
    both = _edit("published", "blood", "a long sword")(site_call([[1.0, 2.0]])).delta
    one = _edit("published", "blood")(site_call([[1.0]])).delta
    other = _edit("published", "a long sword")(site_call([[2.0]])).delta
    assert torch.allclose(both, one + other, atol=1e-5)


@pytest.mark.parametrize("form", ["general", "projected", "gated", "difference"])
def test_the_same_concept_twice_is_taken_once(form: str) -> None:
    once = _edit(form, "red blood")(site_call([[1.0]])).delta
    twice = _edit(form, "red blood", "red blood")(site_call([[1.0, 1.0]])).delta
    assert torch.allclose(twice, once, atol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_of_several_concepts_none_is_changed_further_than_alone(seed: int) -> None:
    both = _edit("projected", "blood", "a long sword")(site_call([[1.0, 1.0]], seed)).delta
    one = _edit("projected", "blood")(site_call([[1.0]], seed)).delta
    other = _edit("projected", "a long sword")(site_call([[1.0]], seed)).delta
    shared = (one * other).sum(-1) > 0  # where they point the same way, their sum goes too far
    assert (both.norm(dim=-1) <= (one + other).norm(dim=-1) + 1e-4)[shared].all()


@pytest.mark.parametrize("form", FORMS)
def test_a_narrowed_edit_is_the_edit_of_those_concepts(form: str) -> None:
    edit = _edit(form, "blood", "sword", "a house by the sea").select([2, 0])
    assert edit.concepts == ("c2", "c0")
    whole = _edit(form, "a house by the sea", "blood")(site_call([[1.0, 3.0]])).delta
    assert torch.allclose(edit(site_call([[1.0, 3.0]])).delta, whole, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_touch_each_other(form: str) -> None:
    edit = _edit(form, "blood")
    assert torch.equal(edit(site_call([[1.0], [0.0]])).delta[1], torch.zeros(6, HEADS * WIDTH))


def _by_hand(call: SiteCall, words: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    text = WordPipeline().one(["<", *words, ">"])
    keys, values = Keys(text.states).at(SITE)
    scores = (call.query @ keys.transpose(-1, -2)) / WIDTH**0.5
    prompt = (call.query @ call.prompt[0].transpose(-1, -2)) / WIDTH**0.5
    return scores, prompt, values


def test_the_published_term_is_the_concepts_columns_of_its_own_softmax() -> None:
    call = site_call([[1.0]])
    scores, _, values = _by_hand(call, ["red", "blood"])
    columns = scores.softmax(-1)[..., 1:-1] @ values[:, 1:-1]
    assert torch.allclose(_edit("published", "red blood")(call).delta, -call.merge(columns), atol=1e-5)


def test_the_gated_term_is_the_difference_to_the_null_answer_times_the_mass_won() -> None:
    call = site_call([[1.0]])
    scores, prompt, values = _by_hand(call, ["red", "blood"])
    words = scores[..., 1:-1]
    mass = torch.cat([words, prompt], -1).softmax(-1)[..., : words.shape[-1]].sum(-1, keepdim=True)
    _, null = Keys(WordPipeline().one(["<", ">"]).states[1:]).at(SITE)
    difference = words.softmax(-1) @ values[:, 1:-1] - null
    assert torch.allclose(_edit("gated", "red blood")(call).delta, -call.merge(mass * difference), atol=1e-5)


def test_the_gated_term_vanishes_where_the_prompt_takes_all_attention() -> None:
    edit = _edit("gated", "blood")
    near = edit(site_call([[1.0]], sharpness=40.0)).delta[:, :5].norm()
    assert near < 1e-3 * edit(site_call([[1.0]])).delta.norm()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_mass_is_a_share(seed: int) -> None:
    mass = _edit("gated", "blood", "a long sword")(site_call([[1.0, 1.0]], seed)).mass
    assert mass.shape == (1, HEADS, 6, 2)
    assert ((mass > 0) & (mass <= 1)).all()


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(CapabilityError, match="gated"):
        _edit("other", "blood")


def test_the_projected_term_takes_back_the_component_along_the_concept() -> None:
    call = site_call([[1.0]])
    scores, _, values = _by_hand(call, ["red", "blood"])
    keys, empty = Keys(WordPipeline().one(["<", ">"]).states).at(SITE)
    null = ((call.query @ keys.transpose(-1, -2)) / WIDTH**0.5).softmax(-1) @ empty
    difference = scores[..., 1:-1].softmax(-1) @ values[:, 1:-1] - empty[:, 1:]
    heads = call.output.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    along = ((heads - null) * difference).sum((1, -1), keepdim=True) / difference.pow(2).sum((1, -1), keepdim=True)
    assert torch.allclose(_edit("projected", "red blood")(call).delta, -call.merge(along.clamp_min(0) * difference), atol=1e-5)


def test_the_difference_term_takes_back_what_pairs_of_texts_say_of_the_concept() -> None:
    call = site_call([[1.0]])

    def answer(text: str) -> Tensor:
        keys, values = Keys(WordPipeline().one(["<", *text.split(), ">"]).states).at(SITE)
        return ((call.query @ keys.transpose(-1, -2)) / WIDTH**0.5).softmax(-1) @ values

    pairs = pairs_of(concepts_of("red blood")[0])
    concept, ordinary = (torch.stack([answer(text) for text in side]).mean(0) for side in zip(*pairs, strict=True))
    heads = call.output.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    difference = concept - ordinary
    along = ((heads - ordinary) * difference).sum((1, -1), keepdim=True) / difference.pow(2).sum((1, -1), keepdim=True)
    expected = -call.merge(along.clamp_min(0) * difference)
    assert torch.allclose(_edit("difference", "red blood")(call).delta, expected, atol=1e-5)


def test_pairs_are_ordinary_texts_with_each_phrase_and_without() -> None:
    pairs = pairs_of(Concept("c", ("blood", "in the style of Veska Rimm")))
    assert pairs[:2] == [("a person with blood", "a person"), ("a house in the style of Veska Rimm", "a house")]
    assert len(pairs_of(Concept("c", tuple(f"word{place}" for place in range(20))))) == 20


def test_the_default_form_keeps_the_contract() -> None:
    assert EIUP.params == {"form": "difference"}
    assert not check_eraser(EIUP).failed


def test_the_form_of_older_versions_keeps_the_contract() -> None:
    assert not check_eraser(EIUP, params={"form": "general"}).failed


def test_the_mass_of_the_difference_is_the_share_of_the_answer_that_is_taken_back() -> None:
    call = site_call([[1.0]])
    effect = _edit("difference", "red blood")(call)
    taken, rest = (part.norm(dim=-1) for part in (effect.delta, call.output + effect.delta))
    assert torch.allclose(effect.mass[:, 0, :, 0], taken / (taken + rest), atol=1e-5)
    assert ((effect.mass >= 0) & (effect.mass <= 1)).all()


@pytest.mark.parametrize("form", ["projected", "difference"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_at_strength_one_nothing_is_left_along_the_concept(form: str, seed: int) -> None:
    edit, call = _edit(form, "blood"), site_call([[1.0]], seed)
    call = replace(call, output=call.output + edit(call).delta)
    assert edit(call).delta.norm() < 1e-4 * call.output.norm()


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_passes_through_the_term(form: str) -> None:
    call = site_call([[1.0, 0.5], [0.0, 1.0]])
    call.output.requires_grad_()
    call.query.requires_grad_()
    effect = _edit(form, "red blood", "sword")(call)
    (effect.delta.square().sum() + effect.mass.sum()).backward()
    assert call.query.grad.isfinite().all()
    assert call.query.grad.abs().sum() > 0
    assert (call.output.grad is None) == (form in ("gated", "published"))  # these do not look at the output


@pytest.mark.parametrize("form", FORMS)
def test_what_was_kept_in_inference_mode_serves_a_gradient_too(form: str) -> None:
    edit = _edit(form, "red blood")
    with torch.inference_mode():
        edit(site_call([[1.0]]))
    call = site_call([[1.0]])
    call.query.requires_grad_()
    edit(call).delta.square().sum().backward()
    assert call.query.grad.isfinite().all()


def test_a_concept_far_quieter_than_its_neighbour_is_still_looked_at() -> None:
    edit = _edit("gated", "red blood", "sword")
    call = site_call([[1.0, 1.0]])
    call = replace(call, query=1e4 * call.query)  # scores thousands of nats apart
    effect = edit(call)
    assert effect.delta.isfinite().all()
    assert effect.mass.isfinite().all()


def _joint_call(strengths: list[list[float]], image_keys: Tensor) -> SiteCall:
    """The call of `site_call`, its queries meeting keys of the image beside the prompt's."""
    bare = site_call(strengths)
    keys, values = bare.prompt
    every = torch.cat([keys, image_keys.expand(len(strengths), -1, -1, -1)], 2)
    return site_call_of(bare.output, bare.query, keys, values, bare.strengths, EveryKey(lambda: every))


def test_in_joint_attention_only_what_came_from_the_text_is_taken_back() -> None:
    call = _joint_call([[1.0]], torch.randn(1, HEADS, 7, WIDTH, generator=torch.Generator().manual_seed(5)))
    assert call.beside is not None
    scores = call.query @ call.beside.keys().transpose(-1, -2) / WIDTH**0.5
    weights = scores.softmax(-1)[..., :5]
    answer, share = call.from_text
    part = share[..., None] * answer
    torch.testing.assert_close(part, weights @ call.prompt_values)
    torch.testing.assert_close(share, weights.sum(-1))
    empty, concept = (WordPipeline().one(words) for words in (["<", ">"], ["<", "blood", ">"]))
    (ek, ev), (_, cv) = (Keys(text.states).at(SITE) for text in (empty, concept))
    null = (call.query @ ek.transpose(-1, -2) / WIDTH**0.5).softmax(-1) @ ev
    direction = (cv[:, 1] - ev[:, -1])[None, :, None]  # one word: its own softmax is one everywhere
    along = ((part - share[..., None] * null) * direction).sum((1, 3)) / direction.square().sum((1, 3))
    expected = -(along.clamp_min(0)[:, None, :, None] * direction)
    torch.testing.assert_close(_edit("projected", "blood")(call).delta, call.merge(expected), rtol=1e-4, atol=1e-5)


def test_where_an_attention_reads_text_alone_the_general_term_is_the_projected_one() -> None:
    call = site_call([[1.0, 0.5]])
    assert torch.equal(*(_edit(form, "red blood", "sword")(call).delta for form in ("general", "projected")))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_in_joint_attention_the_general_term_is_bounded_by_the_mass_and_by_the_component(seed: int) -> None:
    """One concept of one word has the same direction at every pixel: the terms differ in their amounts alone."""
    call = _joint_call([[1.0]], torch.randn(1, HEADS, 7, WIDTH, generator=torch.Generator().manual_seed(seed)))
    gated, projected, general = (
        _edit(form, "blood")(call).delta.unflatten(-1, (HEADS, WIDTH)) for form in ("gated", "projected", "general")
    )
    norms = [delta.norm(dim=-1) for delta in (gated, projected, general)]
    torch.testing.assert_close(norms[2], JOINT * torch.minimum(norms[0], norms[1]), rtol=1e-4, atol=1e-5)


class _Pooling(WordPipeline):
    """The same with texts as one vector besides: the sum of their words."""

    def one(self, words: list[str]) -> EncodedText:
        return replace(super().one(words), pooled=super().one(words).states.sum(0))

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        return torch.stack([text.pooled for text in self.encode(texts) if text.pooled is not None])


def _pooled_call(pooled: Tensor, strength: float) -> StatesCall:
    strengths = torch.full((len(pooled), 1), strength)
    states, texts = torch.zeros(len(pooled), 1, TEXT), [None] * len(pooled)
    return StatesCall(states, pooled, texts, False, lambda _: pooled, strengths=strengths, progress=0.0)


def test_nothing_of_the_concept_is_left_in_a_pooled_text_of_which_all_is_taken_back() -> None:
    _, edit = EIUP().edits(concepts_of("blood"), EIUP.params, _Pooling())
    blood = _Pooling().one(["<", "blood", ">"]).states[1]  # what the word adds to a sum of words, with the comma's word
    texts = _Pooling().pooled(["a picture of blood", "blood and snow"])
    _, once = edit(_pooled_call(texts, 1 / POOLED))
    _, twice = edit(_pooled_call(once, 1 / POOLED))
    assert not torch.allclose(once, texts)
    torch.testing.assert_close(twice, once)
    assert ((once - texts) @ blood <= 0).all()


def test_a_pooled_text_that_leans_away_from_the_concept_stays() -> None:
    _, edit = EIUP().edits(concepts_of("blood"), EIUP.params, _Pooling())
    direction, mean = edit._directions.directions[0], edit._directions.mean
    away = (mean - direction)[None]
    torch.testing.assert_close(edit(_pooled_call(away, 1.0))[1], away)


@given(length=st.floats(0, 4), strength=st.floats(0, 8))
def test_a_pooled_text_never_goes_further_past_the_ordinary_ones_than_stated(length: float, strength: float) -> None:
    _, edit = EIUP().edits(concepts_of("blood"), EIUP.params, _Pooling())
    direction, mean = edit._directions.directions[0], edit._directions.mean
    made = edit(_pooled_call((mean + length * direction)[None], strength))[1][0]
    left = (made - mean) @ direction / direction.square().sum()
    assert -BEYOND - 1e-4 <= left <= length + 1e-4


def test_what_a_site_makes_of_the_words_is_made_once_for_every_time_that_it_comes_back_to() -> None:
    """In joint attention the words have other keys at every step, and the same again in the next request."""
    tokens = ConceptAttention.of(concepts_of("blood"), WordPipeline())
    first, second = (Keys(text.states).at(SITE) for text in (WordPipeline().one(["<", "blood", ">"]) for _ in range(2)))
    made = []
    for source in (first, second, first, second):
        tokens._keys = SimpleNamespace(at=lambda site, source=source: source)
        tokens._empty = SimpleNamespace(at=lambda site, source=first: source)
        made.append(tokens._at(SITE))
    assert made[0] is made[2]
    assert made[1] is made[3]
    assert made[0] is not made[1]
    assert tokens.select([0]) is tokens.select([0])
