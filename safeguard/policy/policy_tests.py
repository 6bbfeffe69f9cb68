"""Tests of a policy: prompts, the concepts that the screener must find in them, and those that it must not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from safeguard.errors import PolicyError, Problem
from safeguard.policy import documents
from safeguard.policy.checks import in_order
from safeguard.policy.load import load_policy
from safeguard.policy.schema import MAX_FOUND, check, did_you_mean
from safeguard.policy.snapshot import Concept, Policy
from safeguard.policy.yaml_nodes import Mark, Node, join, problem, read, shown


class Screened(Protocol):
    """What a screener gives back, as far as tests look at it."""

    def activated(self, row: int) -> tuple[str, ...]:
        """The ids of the concepts found in the text of that row."""


Screen = Callable[[Sequence[str], Mapping[str, Concept]], Screened]


@dataclass(frozen=True, slots=True)
class PolicyTestCase:
    """One prompt with the ids that it must activate and those that it must spare; ``mark`` is its place."""

    prompt: str
    activates: tuple[str, ...]
    spares: tuple[str, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class PolicyTestResult:
    """What became of a case: the ids ``activated``, and those ``missing`` or ``unwanted`` by what the case says."""

    case: PolicyTestCase
    activated: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.case.activates if name not in self.activated)

    @property
    def unwanted(self) -> tuple[str, ...]:
        return tuple(name for name in self.case.spares if name in self.activated)

    @property
    def passed(self) -> bool:
        return not self.missing and not self.unwanted


def load_tests(source: str | os.PathLike[str]) -> tuple[Policy, list[PolicyTestCase]]:
    """A policy and the cases beside it.

    ``source`` is the policy or its test file (``storefront.yaml``, ``storefront_test.yaml``), or ``builtin://NAME``.
    Raises PolicyError where either has a fault, or where there are no tests.
    """
    policy_source, location = documents.with_tests(source)
    policy = load_policy(policy_source)
    try:
        data = documents.fetch(location)
    except PolicyError as error:
        hint = "write the tests there, or name the policy that they belong to"
        problems = [Problem(p.file, p.line, p.column, p.path, p.message, hint) for p in error.problems]
        raise PolicyError(problems) from None
    root, problems = read(data, location.name)
    if root is not None:
        problems += check(root, "policy_test")
        problems += islice(_check_cases(root, policy), MAX_FOUND)
    if problems or root is None:
        raise PolicyError(in_order(problems))
    return policy, [_case(node, policy) for node in _cases(root)]


def run_tests(policy: Policy, cases: Sequence[PolicyTestCase], screen: Screen) -> list[PolicyTestResult]:
    """Screens all prompts in one batch. What is tested is the screener's verdict, whatever a concept's activation."""
    screened = screen([case.prompt for case in cases], policy.concepts)
    return [PolicyTestResult(case, tuple(screened.activated(row))) for row, case in enumerate(cases)]


def _cases(root: Node) -> list[Node]:
    spec = root.children.get("spec")
    cases = spec.children.get("cases") if spec else None
    return cases.items if cases else []


def _check_cases(root: Node, policy: Policy) -> Iterator[Problem]:
    for index, node in enumerate(_cases(root)):
        path = ("spec", "cases", index)
        if node.children and not node.children.keys() & {"activates", "spares"}:
            hint = "add 'activates: [id]' or 'spares: all'"
            yield problem(node.mark, join(*path), "the case expects nothing", hint)
        wanted = _ids(node, "activates")
        for key in ("activates", "spares"):
            yield from _check_ids(node, key, policy, path)
        for entry in node.children["spares"].items if "spares" in node.children else ():
            if entry.value in wanted:
                message = f"{shown(str(entry.value))} is to be activated and spared"
                yield problem(entry.mark, join(*path, "spares"), message, "remove one of the two")


def _check_ids(node: Node, key: str, policy: Policy, path: tuple[str | int, ...]) -> Iterator[Problem]:
    for index, entry in enumerate(node.children[key].items if key in node.children else ()):
        if isinstance(entry.value, str) and entry.value not in policy.concepts:
            hint = did_you_mean(entry.value, policy.concepts) or f"it has: {', '.join(policy.concepts)}"
            message = f"the policy has no concept {shown(entry.value)}"
            yield problem(entry.mark, join(*path, key, index), message, hint)


def _ids(node: Node, key: str) -> tuple[str, ...]:
    items = node.children[key].items if key in node.children else []
    return tuple(item.value for item in items if isinstance(item.value, str))


def _case(node: Node, policy: Policy) -> PolicyTestCase:
    activates = _ids(node, "activates")
    if "spares" in node.children and node.children["spares"].value == "all":
        spares = tuple(name for name in policy.concepts if name not in activates)
    else:
        spares = _ids(node, "spares")
    return PolicyTestCase(str(node.children["prompt"].value), activates, spares, node.mark)
