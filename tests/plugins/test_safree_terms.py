"""What ``safree`` does to a row's text, against the properties of its equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.safree import SAFREE, _out, basis_of, triggers, within
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.sdk.calls import StatesCall
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.pipeline import EncodedText, TokenizedText, TokenSpan, TokenVariant
from safeguard.sdk.seams import Edit
from tests.support.worded_denoisers import TEXT, WordPipeline, concepts_of

LENGTH = 7
WORDS = [1, 2, 3, 4]


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STATES, WITHOUT, POOLED = numbers(LENGTH, TEXT, seed=1), numbers(4, TEXT, seed=2), numbers(TEXT, seed=3)


class Closing(WordPipeline):
    """Words with the token that closes them."""

    def __init__(self, *, pooled: bool = False) -> None:
        self._pooled = pooled

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        made = []
        for text in texts:
            states = numbers(3, TEXT, seed=sum(map(ord, text)))
            made.append(EncodedText(text, states, [1], range(3), closing=[2]))
        return made

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        return torch.stack([one.states[2] for one in self.encode(texts)]) if self._pooled else None


class OneEncoder:
    """An encoder by which the closing token says which word is blank, and the pooled text is that token."""

    def read(self, text: str) -> TokenizedText:
        span = TokenSpan(0, [0, *WORDS, 5], WORDS)
        return TokenizedText(text, [[9, 1, 2, 3, 4, 9, 9]], [WORDS], [span], STATES)

    def encode(self, text: TokenizedText, variants: Sequence[Sequence[Sequence[int]]]) -> list[TokenVariant]:
        closing = [WITHOUT[numbers.index(0) - 1] for (numbers,) in variants]
        return [TokenVariant(torch.cat([STATES[:5], state[None], STATES[6:]]), state) for state in closing]


def call(strength: float = 1.0, text: str | None = "a red boat on", progress: float = 0.0, **more: Any) -> StatesCall:
    options = {"tokens": OneEncoder(), "memory": EditMemory({}, [0], [0]), **more}
    pooled = options.pop("pooled", None)
    states = options.pop("states", STATES[None])
    return StatesCall(
        states,
        pooled,
        [text],
        False,
        lambda _: states,
        strengths=torch.tensor([[strength]]),
        progress=progress,
        **options,
    )


def edits(pooled: bool = False, **params: Any) -> Sequence[Edit]:
    return SAFREE().edits(concepts_of("blood"), {**SAFREE.params, **params}, Closing(pooled=pooled))


def edit(pooled: bool = False, **params: Any) -> Any:
    return edits(pooled, **params)[0]


def states_of(made: Any) -> Tensor:
    states = made[0] if isinstance(made, tuple) else made
    assert isinstance(states, Tensor)
    return states[0]


def toxic() -> Tensor:
    return basis_of(Closing().encode(["blood"])[0].states[2:])


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_projector_is_symmetric_and_done_once(count: int, seed: int) -> None:
    basis = basis_of(numbers(count, TEXT, seed=seed))
    projector = within(torch.eye(TEXT), basis)
    torch.testing.assert_close(projector, projector.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projector @ projector, projector, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_projector_leaves_its_own_vectors(count: int, seed: int) -> None:
    vectors = numbers(count, TEXT, seed=seed)
    torch.testing.assert_close(within(vectors, basis_of(vectors)), vectors, rtol=1e-3, atol=1e-4)


def test_the_same_phrase_twice_spans_what_it_spans_once() -> None:
    vector = numbers(1, TEXT, seed=5)
    assert len(basis_of(torch.cat([vector, 2 * vector]))) == 1


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_what_is_moved_is_orthogonal_to_the_concept(seed: int) -> None:
    basis = basis_of(numbers(2, TEXT, seed=seed))
    moved = _out(numbers(3, TEXT, seed=seed + 1), numbers(4, TEXT, seed=seed + 2), basis)
    assert (moved @ basis.T).abs().max() < 1e-4


def test_without_triggers_nothing_changes() -> None:
    given = call()
    assert edit(alpha=10.0, least=0)(given) is given.states


def test_where_no_word_passes_the_one_that_leads_most_is_moved() -> None:
    far = (WITHOUT - within(WITHOUT, toxic())).norm(dim=-1)
    assert triggers(WITHOUT, toxic(), 10.0, 1) == [int(far.argmax())]


def test_a_word_that_stands_alone_is_a_trigger() -> None:
    assert triggers(WITHOUT[:1], toxic(), 0.01, 0) == [0]


def test_a_text_without_words_has_no_trigger() -> None:
    assert triggers(WITHOUT[:0], toxic(), 0.01, 1) == []


def test_a_trigger_is_further_from_the_concept_than_the_others_by_alpha() -> None:
    concept = torch.eye(TEXT)[:1]
    without = torch.eye(TEXT)[1:4] * torch.tensor([1.0, 1.0, 1.2])[:, None]
    assert triggers(without, concept, 0.01, 0) == [2]
    assert triggers(without, concept, 0.25, 0) == []


def test_only_words_are_moved() -> None:
    made = states_of(edit(alpha=0.0)(call()))
    changed = [place for place in range(LENGTH) if not torch.equal(made[place], STATES[place])]
    assert changed
    assert set(changed) <= set(WORDS)


def test_at_strength_one_it_is_what_the_equation_says() -> None:
    made = states_of(edit()(call()))
    moved = [WORDS[word] for word in triggers(WITHOUT, toxic(), 0.01, 1)]
    torch.testing.assert_close(made[moved], _out(STATES[moved], WITHOUT, toxic()), rtol=1e-4, atol=1e-5)


def test_half_the_strength_goes_half_the_way() -> None:
    whole, half = states_of(edit()(call(1.0))), states_of(edit()(call(0.5)))
    torch.testing.assert_close(half, (whole + STATES) / 2, rtol=1e-4, atol=1e-5)


def test_an_unknown_text_leaves_the_subspace_as_a_whole() -> None:
    made = states_of(edit()(call(text=None)))
    torch.testing.assert_close(made, STATES - within(STATES, toxic()), rtol=1e-4, atol=1e-5)


def test_states_that_are_not_those_of_the_text_are_unknown() -> None:
    other = numbers(1, LENGTH, TEXT, seed=9)
    made = states_of(edit()(call(states=other)))
    torch.testing.assert_close(made, other[0] - within(other[0], toxic()), rtol=1e-4, atol=1e-5)


def test_the_pooled_text_leaves_the_subspace_too() -> None:
    _, pooled = edit(pooled=True)(call(pooled=POOLED[None]))
    torch.testing.assert_close(pooled[0], _out(POOLED, WITHOUT, toxic()), rtol=1e-4, atol=1e-5)


def test_up_to_no_step_only_the_first_is_filtered() -> None:
    memory = EditMemory({}, [0], [0])
    chosen = edit(form="validated", up_to=0.0)
    assert not torch.equal(states_of(chosen(call(memory=memory))), STATES)
    later = call(progress=0.02, memory=memory)
    assert chosen(later) is later.states


@pytest.mark.parametrize(("centre", "filtered"), [(-100.0, True), (100.0, False)])
def test_the_filter_holds_for_as_many_steps_as_it_finds_reason_for(centre: float, filtered: bool) -> None:
    memory = EditMemory({}, [0], [0])
    chosen = edit(form="validated", centre=centre)
    chosen(call(memory=memory))
    assert torch.equal(states_of(chosen(call(progress=0.2, memory=memory))), STATES) != filtered
    assert torch.equal(states_of(chosen(call(progress=0.22, memory=memory))), STATES)


def test_steps_count_from_the_first_in_which_it_acts() -> None:
    assert not torch.equal(states_of(edit(form="validated", up_to=0.0)(call(progress=0.5))), STATES)


def test_the_released_form_has_the_phrases_in_the_negative_prompt() -> None:
    _, against = edits(form="released")
    asked: list[Any] = []
    memory = EditMemory({}, [0], [0])
    given = StatesCall(
        STATES[None],
        None,
        ["a fish"],
        True,
        lambda *texts: asked.append(texts),
        strengths=torch.ones(1, 1),
        progress=0.0,
        memory=memory,
    )
    against(given)
    assert asked == [(["blood"], ["a fish"])]


def test_another_form_is_refused() -> None:
    with pytest.raises(CapabilityError, match="form"):
        edits(form="lra")
