"""Contrasts and anchors: what a concept's own pairs of texts are in a policy, in its revision and in its pairs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from safeguard.errors import Problem
from safeguard.policy import Concept, Policy, derive, load_policy
from safeguard.policy.diff import compare
from safeguard.sdk.contrast_attention import pairs_of

Load = Callable[..., Policy]
Problems = Callable[..., tuple[Problem, ...]]

GORE = """
concepts:
  gore:
    phrases: [gore]
    contrasts: [{with: a wounded dog, without: a dog}, {with: a bloody car, without: a car}]
"""


def test_contrasts_take_the_place_of_pairs_of_phrases(load: Load) -> None:
    assert pairs_of(load(GORE).concepts["gore"]) == [("a wounded dog", "a dog"), ("a bloody car", "a car")]


def test_an_anchor_stands_where_the_concept_does_not() -> None:
    concept = Concept("neon", ("in neon",), anchor="in daylight")
    assert pairs_of(concept)[:2] == [("a person in neon", "a person in daylight"), ("a house in neon", "a house in daylight")]


def test_an_anchor_holds_for_contrasts_too() -> None:
    contrasts = ({"with": "a wounded dog", "without": "a dog"}, {"with": "gore", "without": ""})
    concept = Concept("gore", ("gore",), contrasts=contrasts, anchor="flowers")
    assert pairs_of(concept) == [("a wounded dog", "a dog with flowers"), ("gore", "flowers")]


def test_they_are_part_of_the_revision_and_of_the_difference(load: Load) -> None:
    before = load("concepts: {gore: {phrases: [gore]}}")
    (change,) = compare(before, load(GORE)).changed
    assert (change.path, change.before) == ("concepts.gore.contrasts", None)
    (change,) = compare(before, load("concepts: {gore: {phrases: [gore], anchor: flowers}}")).changed
    assert (change.path, change.after) == ("concepts.gore.anchor", "flowers")


def test_a_concept_without_them_stands_in_a_snapshot_as_before() -> None:
    assert not {"contrasts", "anchor"} & set(Concept("blood", ("blood",)).to_dict())


def test_a_snapshot_and_a_derived_policy_keep_them(load: Load) -> None:
    policy = load(GORE + "    anchor: flowers\n")
    assert Policy.from_canonical(policy.canonical).concepts == policy.concepts
    assert derive(policy, name="test").concepts == policy.concepts


def test_a_later_document_replaces_the_pairs_as_a_whole_and_null_deletes_them(load: Load) -> None:
    child = "{extends: [./base.yaml], concepts: {gore: {contrasts: [{with: a wound, without: skin}]}}}"
    assert pairs_of(load(child, base=GORE).concepts["gore"]) == [("a wound", "skin")]
    deleted = load("{extends: [./base.yaml], concepts: {gore: {contrasts: null}}}", base=GORE)
    assert deleted.concepts["gore"].contrasts == ()


@pytest.mark.parametrize(
    ("written", "path", "words"),
    [
        ("contrasts: [{with: a dog, without: a dog}]", "contrasts[0].with", "must differ"),
        ("contrasts: [{with: ' ', without: a dog}]", "contrasts[0].with", "not be blank"),
        ("contrasts: [{with: a wounded dog}]", "contrasts[0]", "'without' is missing"),
        ("contrasts: [[a wounded dog, a dog]]", "contrasts[0]", "a map"),
        ("contrasts: [{with: a wounded dog, without: a dog, wihtout: a cat}]", "contrasts[0].wihtout", "unknown key"),
        ("anchor: ' '", "anchor", "not be blank"),
        ("anchor: [in daylight]", "anchor", "must be text"),
    ],
)
def test_a_pair_that_says_nothing_is_told_where_it_stands(problems: Problems, written: str, path: str, words: str) -> None:
    (problem,) = problems(f"concepts:\n  gore:\n    phrases: [gore]\n    {written}\n")
    assert problem.path == f"spec.concepts.gore.{path}"
    assert words in problem.message


def test_the_built_in_policies_load_with_their_pairs() -> None:
    for name in ("demo", "nsfw", "violence"):
        for concept in load_policy(f"builtin://{name}").concepts.values():
            assert all(shown != without for shown, without in pairs_of(concept))
