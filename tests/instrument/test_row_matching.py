"""Rows are told apart by their text: what must hold for any batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from safeguard.instrument.apply.request_rows import rows_of
from safeguard.instrument.row_matching import match_rows
from safeguard.plan.compile import Plan
from safeguard.plan.request_state import RequestCaches, RequestFacts, RequestState, Row
from safeguard.policy import Policy
from safeguard.policy.snapshot import canonical_json, snapshot

UNKNOWN = Row(None)
EMPTY = Policy(
    canonical_json(snapshot("empty", "", {}, {"on_error": "block", "prompt_embeds": "protect", "capture": "none"}, []))
)


def text(number: int) -> torch.Tensor:
    """States [L, D] of the text of that number: equal numbers, equal texts."""
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(number))


def texts(numbers: list[int]) -> torch.Tensor:
    return torch.stack([text(number) for number in numbers])


positives = st.lists(st.integers(0, 9), min_size=1, max_size=5)
negatives = st.lists(st.integers(10, 19), min_size=1, max_size=5)


@given(positives, negatives, st.randoms())
def test_any_order_of_rows_is_told_apart(positive: list[int], negative: list[int], random: object) -> None:
    numbers = positive + negative
    random.shuffle(numbers)  # type: ignore[attr-defined]
    rows = match_rows(texts(numbers), [texts(positive)], [texts(negative)])
    for number, row in zip(numbers, rows, strict=True):
        assert row.unconditional == (number >= 10)
        assert row.image is not None
        assert (negative if row.unconditional else positive)[row.image] == number


@given(positives, negatives)
def test_equal_prompts_share_their_images_out_in_turn(positive: list[int], negative: list[int]) -> None:
    """However many rows are alike, no image is forgotten and none comes twice before the others."""
    rows = match_rows(texts(positive + negative), [texts(positive)], [texts(negative)])
    assert sorted(row.image for row in rows if not row.unconditional) == list(range(len(positive)))  # type: ignore[type-var]
    assert sorted(row.image for row in rows if row.unconditional) == list(range(len(negative)))  # type: ignore[type-var]


@given(positives)
def test_a_negative_that_equals_its_prompt_is_no_unconditional_row(positive: list[int]) -> None:
    rows = match_rows(texts(positive * 2), [texts(positive)], [texts(positive)])
    assert not any(row.unconditional for row in rows)
    assert all(row.image is not None for row in rows)


@given(positives, negatives, st.lists(st.integers(20, 29), min_size=1, max_size=4), st.randoms())
def test_foreign_rows_are_unknown_and_disturb_no_other(
    positive: list[int], negative: list[int], foreign: list[int], random: object
) -> None:
    numbers = positive + negative + foreign
    random.shuffle(numbers)  # type: ignore[attr-defined]
    rows = match_rows(texts(numbers), [texts(positive)], [texts(negative)])
    assert [row == UNKNOWN for row in rows] == [number >= 20 for number in numbers]


@given(positives, st.integers(1, 4))
def test_repeated_batches_use_every_image_equally_often(positive: list[int], times: int) -> None:
    rows = match_rows(texts(positive * times), [texts(positive)], [])
    counts = [sum(row.image == image for row in rows) for image in range(len(positive))]
    assert counts == [times] * len(positive)


def test_text_of_another_length_is_unknown() -> None:
    assert match_rows(texts([1])[:, :2], [texts([1])], []) == (UNKNOWN,)


def test_the_pipeline_may_change_the_dtype_on_its_way() -> None:
    assert match_rows(texts([1, 2]).half(), [texts([2, 1])], []) == (Row(1), Row(0))


def test_states_that_are_no_numbers_are_unknown() -> None:
    states = texts([1, 2])
    states[0, 0, 0] = float("nan")
    assert match_rows(states, [states.clone()], []) == (UNKNOWN, Row(1))


def running(positive: list[int], negative: list[int], images: int, guided: bool = True) -> RequestState:
    facts = RequestFacts(Plan(EMPTY, (), (), {}), [()] * images, host=0, guided=guided)
    return RequestState(facts, caches=RequestCaches(positive=[texts(positive)], negative=[texts(negative)]))


def test_a_tensor_that_was_written_to_is_compared_again() -> None:
    state = running([1, 2], [11, 12], images=2)
    states = texts([11, 12, 1, 2])
    assert rows_of(state, states)[2:] == (Row(0), Row(1))
    states[2] = text(25)
    assert rows_of(state, states)[2:] == (UNKNOWN, Row(1))


def test_inference_tensors_are_compared_every_time() -> None:
    """torch keeps no count of what is written to them."""
    state = running([1, 2], [11, 12], images=2)
    with torch.inference_mode():
        states = texts([11, 12, 1, 2])
        assert rows_of(state, states)[2:] == (Row(0), Row(1))
        states[2] = text(25)
        assert rows_of(state, states)[2:] == (UNKNOWN, Row(1))


def test_more_encoded_texts_than_images_name_no_image() -> None:
    """The place of a text among those that were encoded is its image only where there is one text an image."""
    assert rows_of(running([1, 2], [11, 12], images=4), texts([1, 2])) == (UNKNOWN, UNKNOWN)


def test_branches_that_change_places_after_the_first_step_are_unknown() -> None:
    state = running([1], [11], images=1)
    state.log.step = 0
    assert rows_of(state, texts([11, 1])) == (Row(0, unconditional=True), Row(0))
    state.log.step = 1
    assert rows_of(state, texts([1, 11])) == (Row(0), UNKNOWN)


def test_branches_in_calls_of_their_own_are_told_apart() -> None:
    state = running([1], [11], images=1)
    for step in range(2):
        state.log.step = step
        assert rows_of(state, texts([11])) == (Row(0, unconditional=True),)
        assert rows_of(state, texts([1])) == (Row(0),)


def test_guidance_towards_the_negative_branch_leaves_none_unconditional() -> None:
    state = running([1], [11], images=1, guided=False)
    assert rows_of(state, texts([11, 1])) == (UNKNOWN, Row(0))
