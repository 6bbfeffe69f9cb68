"""Groups: of the concepts that name one, one is drawn for each image."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from safeguard.errors import PolicyError, Problem
from safeguard.policy import Concept, Policy, derive, load_policy
from safeguard.policy.diff import compare

Load = Callable[..., Policy]
Problems = Callable[..., tuple[Problem, ...]]

COLOURS = """
defaults: {activation: always, one_of: colour}
concepts: {green: {phrases: [green]}, blue: {phrases: [blue]}, blood: {phrases: [blood], one_of: other}}
"""


def test_the_groups_of_a_policy_name_their_concepts_in_order(load: Load) -> None:
    assert load(COLOURS).groups == {"colour": ("green", "blue"), "other": ("blood",)}


def test_a_concept_of_no_group_stands_in_a_snapshot_as_it_did_before_there_were_groups() -> None:
    assert "one_of" not in Concept("blood", ("blood",)).to_dict()
    revision = "1fad1514a176f1af11ef35e1ffd985cbb2ab348501a01a19707db74b74c5dfd4"
    assert load_policy("builtin://demo").revision == revision


def test_a_group_is_part_of_the_revision_and_of_the_difference(load: Load) -> None:
    grouped, without = load(COLOURS), load(COLOURS.replace(", one_of: colour", ""))
    (first, second) = compare(without, grouped).changed
    assert (first.path, first.before, first.after) == ("concepts.green.one_of", None, "colour")
    assert second.path == "concepts.blue.one_of"
    assert without.revision != grouped.revision


def test_a_snapshot_with_groups_reads_back(load: Load) -> None:
    policy = load(COLOURS)
    assert Policy.from_canonical(policy.canonical).groups == policy.groups


def test_a_snapshot_that_spells_out_that_a_concept_has_no_group_is_none(load: Load) -> None:
    data = json.loads(load("concepts: {blood: {phrases: [blood]}}").canonical)
    data["concepts"][0]["one_of"] = None
    with pytest.raises(PolicyError):
        Policy.from_canonical(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    ("stated", "path", "word", "column"),
    [
        ("activation: adaptive", "activation", "'adaptive'", 35),
        ("action: erase", "activation", "'adaptive'", 46),  # which is what a concept is that says nothing
        ("activation: always, action: block", "action", "'block'", 51),
        ("activation: always, action: flag", "action", "'flag'", 51),
        ("activation: always, action: review", "action", "'review'", 51),
    ],
)
def test_what_cannot_be_drawn_before_an_image_is_begun_is_refused_where_it_stands(
    problems: Problems, stated: str, path: str, word: str, column: int
) -> None:
    (problem,) = problems(f"concepts:\n  x: {{phrases: [x], {stated}, one_of: colour}}")
    assert problem.path == f"spec.concepts.x.{path}"
    assert word in problem.message
    assert "'colour'" in problem.message
    assert problem.hint
    assert (problem.line, problem.column) == (6, column)


def test_an_inherited_activation_is_refused_in_the_document_that_states_it(problems: Problems) -> None:
    (problem,) = problems(
        "extends: [base.yaml]\nconcepts: {x: {one_of: colour}}",
        base="concepts:\n  x: {phrases: [x], activation: adaptive}",
    )
    assert problem.file.endswith("base.yaml")


@pytest.mark.parametrize("activation", ["always", "screened", "off"])
def test_what_is_decided_before_an_image_is_begun_may_stand_in_a_group(load: Load, activation: str) -> None:
    assert load(f"concepts: {{x: {{phrases: [x], activation: {activation}, one_of: colour}}}}").groups == {"colour": ("x",)}


@pytest.mark.parametrize("group", ["Colour", "3", "[a]", "''", "x" * 65])
def test_the_name_of_a_group_is_like_an_id(problems: Problems, group: str) -> None:
    (problem,) = problems(f"concepts: {{x: {{phrases: [x], activation: always, one_of: {group}}}}}")
    assert problem.path == "spec.concepts.x.one_of"


def test_null_takes_a_concept_out_of_the_group_that_it_inherits(load: Load) -> None:
    policy = load("extends: [base.yaml]\nconcepts: {blue: {one_of: null}}", base=COLOURS)
    assert policy.groups == {"colour": ("green",), "other": ("blood",)}


@pytest.mark.parametrize("changes", [{"activation": "adaptive"}, {"action": "block"}])
def test_what_no_file_may_say_of_a_group_no_code_may_say(load: Load, changes: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="group 'colour'"):
        derive(load(COLOURS), **changes)


def test_a_group_can_be_left_and_entered_in_code(load: Load) -> None:
    policy = load(COLOURS)
    assert derive(policy, one_of=None) == load(COLOURS.replace(", one_of: colour", "").replace(", one_of: other", ""))
    assert derive(policy, one_of="all").groups == {"all": ("green", "blue", "blood")}
