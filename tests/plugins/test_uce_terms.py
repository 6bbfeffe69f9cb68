"""What ``uce`` solves: the objective of the paper is least at its weights, for whatever concepts are active together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.uce import UCE, targets
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.sdk.closed_form import Kept, Pairs
from safeguard.sdk.pipeline import TextLayers
from tests.support.closed_form_checks import MODULES, close, edits_of, rows_of, solution, stacked, weight_of, words_of
from tests.support.worded_denoisers import HEADS, TEXT, WIDTH, WordPipeline, delta_of

OUT = HEADS * WIDTH
scale = st.floats(0.01, 10)


def last(text: str) -> Tensor:
    """The row of the last word; of the empty text that of the token which opens it: [1, D]."""
    place = words_of(text)
    return rows_of(text)[place : place + 1]


def aligned(text: str, guide: str) -> tuple[Tensor, Tensor]:
    one, other = (rows_of(some)[words_of(some) :] for some in (text, guide))
    return one[: len(other)], other[: len(one)]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 10**6), many=st.integers(1, 12), keep=st.integers(0, 12), a=scale, b=scale, lamb=scale)
@settings(max_examples=40, deadline=None)
def test_for_any_rows_and_targets_the_gradient_of_the_objective_is_zero(
    seed: int, many: int, keep: int, a: float, b: float, lamb: float
) -> None:
    weight, rows, wanted, kept = (
        drawn(seed, OUT, TEXT),
        drawn(seed + 1, many, TEXT),
        drawn(seed + 2, many, OUT),
        drawn(3, keep, TEXT),
    )
    change = (wanted - rows @ weight.T).T @ Kept(kept, erase=a, preserve=b, lamb=lamb).answer(rows)
    found = (weight + change).requires_grad_()
    parts = [a * ((rows @ found.T - wanted) ** 2).sum(), b * ((kept @ (found - weight).T) ** 2).sum()]
    parts.append(lamb * ((found - weight) ** 2).sum())
    gradients = [torch.autograd.grad(part, found, retain_graph=True)[0] for part in parts]
    assert torch.stack(gradients).sum(0).norm() <= 1e-6 * sum(float(one.norm()) for one in gradients)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("guide", ["", "a green tree"])
def test_the_last_words_are_solved_as_in_the_paper(module: str, guide: str) -> None:
    edit = edits_of(UCE, "red blood", guide=guide, preserve=["a house"], preserve_scale=2)[module]
    weight = WordPipeline().weight(module)
    expected = solution(weight, last("red blood"), last(guide) @ weight.T, last("a house"), 1, 2, 0.5)
    assert close(weight_of(edit, 0), expected)


def test_aligned_windows_begin_at_each_texts_own_last_word_and_keep_the_empty_text() -> None:
    edit = edits_of(UCE, "red blood", guide="tree", window="aligned", preserve=["a house"])["net.k"]
    weight = WordPipeline().weight("net.k")
    rows, against = aligned("red blood", "tree")
    expected = solution(weight, rows, against @ weight.T, stacked([rows_of(""), rows_of("a house")]), 1, 1, 0.5)
    assert close(weight_of(edit, 0), expected)


def test_every_phrase_of_a_concept_is_a_pair() -> None:
    one, other = edits_of(UCE, "sword", "long knife")["net.v"], "long knife"
    weight = WordPipeline().weight("net.v")
    rows = stacked([last("sword"), last(other)])
    expected = solution(weight, rows, stacked([last(""), last("")]) @ weight.T, rows[:0], 1, 1, 0.5)
    assert close(weight_of(one, 0, 1), expected)


def test_concepts_that_are_active_together_are_solved_together() -> None:
    edit = edits_of(UCE, "blood", "sword", "smoke")["net.k"]
    assert close(weight_of(edit, 0, 2), weight_of(edits_of(UCE, "blood", "smoke")["net.k"], 0, 1))


def test_a_concept_alone_has_its_own_solution_whatever_else_the_policy_holds() -> None:
    edit = edits_of(UCE, "blood", "sword", "smoke")["net.k"]
    assert close(weight_of(edit, 1), weight_of(edits_of(UCE, "sword")["net.k"], 0))


@given(strengths=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=2), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_row_gets_the_change_of_its_own_concepts(strengths: list[list[float]]) -> None:
    edit = edits_of(UCE, "blood", "long sword")["net.k"]
    rows = drawn(5, len(strengths), 3, TEXT).float()
    table = torch.tensor(strengths)
    found = delta_of(edit, rows, table)
    for place in range(len(rows)):
        assert torch.allclose(found[place], delta_of(edit, rows[place : place + 1], table[place : place + 1])[0], atol=1e-5)
        if not table[place].any():
            assert torch.equal(found[place], torch.zeros(3, OUT))


def test_what_is_added_is_the_change_of_the_weight() -> None:
    edit = edits_of(UCE, "blood", "sword")["net.k"]
    rows = drawn(5, 2, 3, TEXT)
    change = weight_of(edit, 0, 1) - WordPipeline().weight("net.k")
    assert torch.allclose(delta_of(edit, rows.float(), torch.ones(2, 2)).double(), rows @ change.T, atol=1e-4)


def test_the_strength_scales_the_change() -> None:
    edit = edits_of(UCE, "blood")["net.k"]
    rows = drawn(5, 1, 3, TEXT).float()
    half, whole = (delta_of(edit, rows, torch.tensor([[strength]])) for strength in (0.5, 1.0))
    assert torch.allclose(2 * half, whole, atol=1e-5)


@pytest.mark.parametrize("window", ["last", "aligned"])
def test_a_concept_guided_to_itself_changes_nothing(window: str) -> None:
    edit = edits_of(UCE, "red blood", guide="red blood", window=window)["net.k"]
    assert torch.equal(weight_of(edit, 0), WordPipeline().weight("net.k"))


def test_the_more_a_text_is_kept_the_less_it_changes() -> None:
    weight, row = WordPipeline().weight("net.k"), last("a house").T
    scales = [0.0, 0.1, 1.0, 10.0, 100.0]
    edits = [edits_of(UCE, "blood", preserve=["a house"], preserve_scale=one)["net.k"] for one in scales]
    moved = [float((weight_of(edit, 0) @ row - weight @ row).norm()) for edit in edits]
    assert all(more > less for more, less in pairwise(moved))


def test_tensor_answers_the_guide_without_what_the_concept_said() -> None:
    concept, guide = drawn(1, 3, OUT), drawn(2, 3, OUT)
    found = targets("tensor", concept, guide)
    assert float((found * concept).sum(-1).abs().max()) < 1e-12
    lost = guide - found  # along the concept, and nothing else
    assert close((lost * concept).sum(-1).abs(), lost.norm(dim=-1) * concept.norm(dim=-1))


def test_tensor_is_solved_for_every_layer_by_itself() -> None:
    edit = edits_of(UCE, "blood", technique="tensor")["net.v"]
    weight, row = WordPipeline().weight("net.v"), last("blood")
    expected = solution(weight, row, targets("tensor", row @ weight.T, last("") @ weight.T), row[:0], 1, 1, 0.5)
    rows = drawn(5, 1, 3, TEXT)
    change = delta_of(edit, rows.float(), torch.ones(1, 1)).double()
    assert torch.allclose(change, rows @ (expected - weight).T, atol=1e-4)


@given(seed=st.integers(0, 10**6), many=st.integers(1, 20), rank=st.integers(1, TEXT))
@settings(max_examples=25, deadline=None)
def test_fewer_rows_say_the_same(seed: int, many: int, rank: int) -> None:
    rows, guide = drawn(seed, many, rank) @ drawn(1, rank, TEXT), drawn(seed + 1, many, TEXT)
    pairs = Pairs.of(rows, guide)
    assert len(pairs.rows) <= min(many, rank)
    assert close(pairs.rows.T @ pairs.rows, rows.T @ rows)
    assert torch.allclose(pairs.rows.T @ pairs.change, rows.T @ (guide - rows), atol=1e-4)


class Vectors(WordPipeline):
    """A denoiser whose layer reads a text as one vector."""

    text_layers = (TextLayers(("net.k",), tokens=False),)

    def inputs(self, layers: TextLayers, texts: Any) -> list[Tensor]:
        return [rows.mean(0, keepdim=True) for rows in super().inputs(layers, texts)]


def test_a_text_that_is_one_vector_is_one_pair() -> None:
    edit = edits_of(UCE, "red blood", pipeline=Vectors())["net.k"]
    weight = WordPipeline().weight("net.k")
    row, guide = (rows_of(text).mean(0, keepdim=True) for text in ("red blood", ""))
    assert close(weight_of(edit, 0), solution(weight, row, guide @ weight.T, row[:0], 1, 1, 0.5))
    assert delta_of(edit, row.float(), torch.ones(1, 1)).shape == (1, OUT)


class Deaf(WordPipeline):
    text_layers = ()


def test_a_denoiser_without_a_layer_that_reads_the_text_alone_is_refused() -> None:
    with pytest.raises(CapabilityError, match="no linear layer that reads the text alone, which 'uce' solves"):
        edits_of(UCE, "blood", pipeline=Deaf())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lamb", 0),
        ("erase_scale", 0),
        ("preserve_scale", -1),
        ("technique", "x"),
        ("window", "whole"),
        ("preserve", [1]),
        ("guide", []),
    ],
)
def test_a_parameter_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(CapabilityError, match=rf"'c0': params\.{name} of 'uce'"):
        edits_of(UCE, "blood", **{name: value})
