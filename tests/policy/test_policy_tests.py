"""Policy tests, and the difference between two policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from safeguard.errors import PolicyError
from safeguard.policy import Concept, Policy, builtin_names
from safeguard.policy.diff import Change, compare
from safeguard.policy.policy_tests import load_tests, run_tests

TEST_HEAD = "apiVersion: safeguard.dev/v1\nkind: PolicyTest\nmetadata: {name: test}\nspec:\n  cases:\n"

CasesWriter = Callable[..., Path]


@pytest.fixture
def cases(write: Callable[[str, str], Path]) -> CasesWriter:
    """Writes a policy with the concepts blood and weapon, tests beside it, and gives the policy's path."""

    def to_files(*lines: str) -> Path:
        policy = write("concepts: {blood: {phrases: [blood]}, weapon: {phrases: [sword]}}", "shop.yaml")
        policy.with_name("shop_test.yaml").write_text(TEST_HEAD + "".join(f"    - {line}\n" for line in lines))
        return policy

    return to_files


class WordScreen:
    """A screener that finds a concept where one of its phrases stands in the text."""

    def __init__(self, texts: Sequence[str], concepts: Mapping[str, Concept]) -> None:
        self.texts, self.concepts = texts, concepts

    def activated(self, row: int) -> tuple[str, ...]:
        text = self.texts[row]
        return tuple(name for name, concept in self.concepts.items() if any(word in text for word in concept.phrases))


def test_cases_pass_and_fail_by_what_the_screener_finds(cases: CasesWriter) -> None:
    policy, loaded = load_tests(
        cases(
            "{prompt: blood, activates: [blood], spares: all}",
            "{prompt: a duel, activates: [weapon]}",
            "{prompt: a sword in blood, activates: [blood], spares: [weapon]}",
        )
    )
    results = run_tests(policy, loaded, WordScreen)
    assert [result.passed for result in results] == [True, False, False]
    assert (results[1].missing, results[2].unwanted) == (("weapon",), ("weapon",))
    assert results[2].activated == ("blood", "weapon")


def test_tests_are_found_from_the_policy_and_from_their_own_file(cases: CasesWriter) -> None:
    path = cases("{prompt: x, spares: all}")
    assert load_tests(path) == load_tests(path.with_name("shop_test.yaml"))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("{prompt: x}", "expects nothing"),
        ("{prompt: x, activates: [blod]}", "no concept 'blod'"),
        ("{prompt: x, activates: [blood], spares: [blood]}", "activated and spared"),
        ("{activates: [blood]}", "'prompt' is missing"),
        ("{prompt: x, spares: al}", "must be all"),
        ("{prompt: x, spares: 3}", "must be one of all or a list"),
        ("{prompt: x, activate: [blood], spares: all}", "unknown key 'activate'"),
        ("{prompt: 3, spares: all}", "must be text"),
    ],
)
def test_a_faulty_case_is_told_at_its_line(cases: CasesWriter, case: str, words: str) -> None:
    with pytest.raises(PolicyError) as raised:
        load_tests(cases("{prompt: fine, spares: all}", case))
    (problem,) = raised.value.problems
    assert words in problem.message
    assert problem.line == 7
    assert problem.file.endswith("shop_test.yaml")


def test_missing_tests_are_told(write: Callable[[str, str], Path]) -> None:
    path = write("concepts: {x: {phrases: [x]}}", "policy.yaml")
    with pytest.raises(PolicyError, match=r"policy_test\.yaml"):
        load_tests(path)


@pytest.mark.parametrize("name", builtin_names())
def test_every_built_in_concept_is_tested_both_ways(name: str) -> None:
    policy, loaded = load_tests(f"builtin://{name}")
    assert {found for case in loaded for found in case.activates} == set(policy.concepts)
    assert {found for case in loaded for found in case.spares} == set(policy.concepts)


@pytest.mark.parametrize("name", builtin_names())
def test_no_built_in_test_repeats_an_example(name: str) -> None:
    policy, loaded = load_tests(f"builtin://{name}")
    concepts = policy.concepts.values()
    examples = {text for concept in concepts for text in (*concept.unsafe_examples, *concept.safe_examples)}
    assert not examples & {case.prompt for case in loaded}


# diff


def test_a_policy_does_not_differ_from_itself(load: Callable[..., Policy]) -> None:
    policy = load("concepts: {x: {phrases: [x], params: {a: 1}}}")
    assert compare(policy, policy).same


def test_a_difference_names_concepts_and_values(load: Callable[..., Policy]) -> None:
    old = load("{concepts: {x: {phrases: [x], params: {a: 1, b: 1}}, gone: {phrases: [g]}}}")
    new = load("{settings: {capture: none}, concepts: {x: {phrases: [x], params: {a: 2, b: 1}}, new: {phrases: [n]}}}")
    difference = compare(old, new)
    assert (difference.added, difference.removed, difference.reordered) == (("new",), ("gone",), False)
    assert difference.changed == (
        Change("settings.capture", "hmac", "none"),
        Change("concepts.x.params.a", 1, 2),
    )


def test_another_order_alone_is_a_difference(load: Callable[..., Policy]) -> None:
    concepts = {name: {"phrases": [name]} for name in "ab"}
    turned = dict(reversed(concepts.items()))
    difference = compare(load(json.dumps({"concepts": concepts})), load(json.dumps({"concepts": turned})))
    assert difference.reordered
    assert not difference.same
    assert not difference.changed
