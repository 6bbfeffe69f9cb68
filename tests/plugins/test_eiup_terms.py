"""The terms of ``eiup`` on one attention, against the equations written out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.eiup import EIUP
from torch import Tensor

from safeguard.erasing import EncodedText, SiteCall, TextSite
from safeguard.errors import CapabilityError
from safeguard.policy import Concept

HEADS, WIDTH, TEXT = 2, 4, 8
SITE = TextSite(0, "site", HEADS, WIDTH)


class _Keys:
    """Tokens projected by two fixed matrices, as an attention's own layers would."""

    def __init__(self, states: Tensor) -> None:
        generator = torch.Generator().manual_seed(1)
        k, v = (torch.randn(TEXT, HEADS * WIDTH, generator=generator) for _ in range(2))
        self._pair = tuple((states @ m).unflatten(-1, (HEADS, WIDTH)).transpose(0, 1) for m in (k, v))

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        return self._pair[0], self._pair[1]


class _Pipeline:
    """Words are tokens; every text opens and closes with a token of its own."""

    name = "words"
    sites = (SITE,)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return [self._one(["<", *text.split(), ">"]) for text in texts]

    def _one(self, words: list[str]) -> EncodedText:
        rows = [torch.randn(TEXT, generator=torch.Generator().manual_seed(sum(map(ord, word)))) for word in words]
        return EncodedText(torch.stack(rows), slice(1, len(words) - 1))

    def keys(self, states: Tensor) -> _Keys:
        return _Keys(states)


def _concepts(*phrases: str) -> list[Concept]:
    return [Concept(id=f"c{place}", phrases=(phrase,)) for place, phrase in enumerate(phrases)]


def _call(strengths: list[list[float]], seed: int = 0, sharpness: float = 1.0) -> SiteCall:
    generator = torch.Generator().manual_seed(seed)
    rows, tokens = len(strengths), 6
    query = torch.randn(rows, HEADS, tokens, WIDTH, generator=generator)
    keys, values = (torch.randn(rows, HEADS, 5, WIDTH, generator=generator) for _ in range(2))
    if sharpness != 1.0:  # the prompt's keys look the same way as the queries: nothing is left for a concept
        keys = sharpness * query[:, :, :5]
    output = torch.randn(rows, tokens, HEADS * WIDTH, generator=generator)
    return SiteCall(SITE, output, query, lambda: keys, lambda: values, None, torch.tensor(strengths), 0.0)


def _edit(form: str, *phrases: str):  # type: ignore[no-untyped-def]
    (edit,) = EIUP().edits(_concepts(*phrases), {**EIUP.params, "form": form}, _Pipeline())
    return edit


FORMS = ("projected", "gated", "published")


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.01, 10))
@settings(max_examples=25)
def test_the_term_is_linear_in_the_strength(form: str, seed: int, strength: float) -> None:
    edit = _edit(form, "red blood")
    once = edit(_call([[1.0]], seed)).delta
    assert torch.allclose(edit(_call([[strength]], seed)).delta, strength * once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_several_concepts_in_one_pass_are_the_sum_of_each_alone(form: str) -> None:
    both = _edit(form, "blood", "a long sword")(_call([[1.0, 2.0]])).delta
    one = _edit(form, "blood")(_call([[1.0]])).delta
    other = _edit(form, "a long sword")(_call([[2.0]])).delta
    assert torch.allclose(both, one + other, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_narrowed_edit_is_the_edit_of_those_concepts(form: str) -> None:
    edit = _edit(form, "blood", "sword", "a house by the sea").select([2, 0])
    assert edit.concepts == ("c2", "c0")
    whole = _edit(form, "a house by the sea", "blood")(_call([[1.0, 3.0]])).delta
    assert torch.allclose(edit(_call([[1.0, 3.0]])).delta, whole, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_touch_each_other(form: str) -> None:
    edit = _edit(form, "blood")
    assert torch.equal(edit(_call([[1.0], [0.0]])).delta[1], torch.zeros(6, HEADS * WIDTH))


def _by_hand(call: SiteCall, words: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    text = _Pipeline()._one(["<", *words, ">"])
    keys, values = _Keys(text.states).at(SITE)
    scores = (call.query @ keys.transpose(-1, -2)) / WIDTH**0.5
    prompt = (call.query @ call.prompt[0].transpose(-1, -2)) / WIDTH**0.5
    return scores, prompt, values


def test_the_published_term_is_the_concepts_columns_of_its_own_softmax() -> None:
    call = _call([[1.0]])
    scores, _, values = _by_hand(call, ["red", "blood"])
    columns = scores.softmax(-1)[..., 1:-1] @ values[:, 1:-1]
    assert torch.allclose(_edit("published", "red blood")(call).delta, -call.merge(columns), atol=1e-5)


def test_the_gated_term_is_the_difference_to_the_null_answer_times_the_mass_won() -> None:
    call = _call([[1.0]])
    scores, prompt, values = _by_hand(call, ["red", "blood"])
    words = scores[..., 1:-1]
    mass = torch.cat([words, prompt], -1).softmax(-1)[..., : words.shape[-1]].sum(-1, keepdim=True)
    _, null = _Keys(_Pipeline()._one(["<", ">"]).states[1:]).at(SITE)
    difference = words.softmax(-1) @ values[:, 1:-1] - null
    assert torch.allclose(_edit("gated", "red blood")(call).delta, -call.merge(mass * difference), atol=1e-5)


def test_the_gated_term_vanishes_where_the_prompt_takes_all_attention() -> None:
    edit = _edit("gated", "blood")
    near = edit(_call([[1.0]], sharpness=40.0)).delta[:, :5].norm()
    assert near < 1e-3 * edit(_call([[1.0]])).delta.norm()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_the_mass_is_a_share(seed: int) -> None:
    mass = _edit("gated", "blood", "a long sword")(_call([[1.0, 1.0]], seed)).mass
    assert mass.shape == (1, HEADS, 6, 2)
    assert ((mass > 0) & (mass < 1)).all()


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(CapabilityError, match="gated"):
        _edit("other", "blood")


def test_the_projected_term_takes_back_the_component_along_the_concept() -> None:
    call = _call([[1.0]])
    scores, _, values = _by_hand(call, ["red", "blood"])
    keys, empty = _Keys(_Pipeline()._one(["<", ">"]).states).at(SITE)
    null = ((call.query @ keys.transpose(-1, -2)) / WIDTH**0.5).softmax(-1) @ empty
    difference = scores[..., 1:-1].softmax(-1) @ values[:, 1:-1] - empty[:, 1:]
    heads = call.output.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2)
    along = ((heads - null) * difference).sum((1, -1), keepdim=True) / difference.pow(2).sum((1, -1), keepdim=True)
    assert torch.allclose(_edit("projected", "red blood")(call).delta, -call.merge(along.clamp_min(0) * difference), atol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_at_strength_one_nothing_is_left_along_the_concept(seed: int) -> None:
    edit, call = _edit("projected", "blood"), _call([[1.0]], seed)
    call.output = call.output + edit(call).delta
    assert edit(call).delta.norm() < 1e-4 * call.output.norm()


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_passes_through_the_term(form: str) -> None:
    call = _call([[1.0, 0.5], [0.0, 1.0]])
    call.output.requires_grad_()
    call.query.requires_grad_()
    effect = _edit(form, "red blood", "sword")(call)
    (effect.delta.square().sum() + effect.mass.sum()).backward()
    assert call.query.grad.isfinite().all()
    assert call.query.grad.abs().sum() > 0
    assert (call.output.grad is None) == (form != "projected")  # the other forms do not look at the output


@pytest.mark.parametrize("form", FORMS)
def test_what_was_kept_in_inference_mode_serves_a_gradient_too(form: str) -> None:
    edit = _edit(form, "red blood")
    with torch.inference_mode():
        edit(_call([[1.0]]))
    call = _call([[1.0]])
    call.query.requires_grad_()
    edit(call).delta.square().sum().backward()
    assert call.query.grad.isfinite().all()


def test_a_concept_far_quieter_than_its_neighbour_is_still_looked_at() -> None:
    edit = _edit("gated", "red blood", "sword")
    call = _call([[1.0, 1.0]])
    call.query = 1e4 * call.query  # scores thousands of nats apart
    effect = edit(call)
    assert effect.delta.isfinite().all()
    assert effect.mass.isfinite().all()
