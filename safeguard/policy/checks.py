"""What a schema cannot say about one document, and how problems are put in order."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from safeguard.errors import Problem
from safeguard.policy.yaml_nodes import Node, join, problem, shown

MAX_PROBLEMS = 100
_NOTHING = Node(None, mark=None)  # type: ignore[arg-type]
_NOT_IN_A_GROUP: Final = {  # by key: its default, the words that are refused, why, and what to do
    "activation": ("adaptive", ("adaptive",), "evidence comes after one is drawn", "write 'activation: always' or 'screened'"),
    "action": ("erase", ("block", "flag", "review"), "of a group only one acts", "write 'action: erase', or remove 'one_of'"),
}


def check_document(root: Node) -> list[Problem]:
    """Faults inside one policy document. Tolerates values of the wrong type, which the schema has reported."""
    spec = root.children.get("spec", _NOTHING)
    problems = list(_check_extends(spec.children.get("extends", _NOTHING)))
    defaults = spec.children.get("defaults", _NOTHING)
    for key, node in defaults.children.items():
        if node.value is None:
            message = "null deletes what is inherited, and defaults are not"
            problems.append(problem(defaults.keys[key], join("spec", "defaults", key), message, "remove this line"))
    problems += _check_steps(defaults, "spec", "defaults")
    for name, concept in spec.children.get("concepts", _NOTHING).children.items():
        path = ("spec", "concepts", name)
        problems += _check_steps(concept, *path)
        problems += blank_texts(concept.children.get("phrases", _NOTHING), *path, "phrases")
        for index, pair in enumerate(concept.children.get("contrasts", _NOTHING).items):
            problems += _check_contrast(pair, *path, "contrasts", index)
        anchor = concept.children.get("anchor", _NOTHING)
        if isinstance(anchor.value, str) and is_blank(anchor.value):
            problems.append(problem(anchor.mark, join(*path, "anchor"), "must not be blank", "say what stands in its place"))
        examples = concept.children.get("examples", _NOTHING)
        for key, node in examples.children.items():
            problems += blank_texts(node, *path, "examples", key)
    return problems


def check_groups(concepts: Mapping[str, Node]) -> Iterator[Problem]:
    """Concepts, merged with their defaults, that cannot stand in the group that they name: one of it is drawn for each image,
    before the image is begun.
    """
    for name, concept in concepts.items():
        group = concept.children.get("one_of", _NOTHING)
        if not isinstance(group.value, str):
            continue
        for key, (usual, wrong, reason, hint) in _NOT_IN_A_GROUP.items():
            node = concept.children.get(key, replace(group, value=usual))
            if node.value in wrong:
                message = f"a concept of the group {shown(group.value)} cannot be '{node.value}': {reason}"
                yield problem(node.mark, join("spec", "concepts", name, key), message, hint)


def _check_extends(extends: Node) -> Iterator[Problem]:
    seen = set()
    for index, entry in enumerate(extends.items):
        if isinstance(entry.value, str) and entry.value in seen:
            yield problem(entry.mark, join("spec", "extends", index), "this entry stands twice", "remove one of them")
        elif isinstance(entry.value, str):
            seen.add(entry.value)


def _check_steps(node: Node, *path: str) -> Iterator[Problem]:
    steps = node.children.get("steps", _NOTHING)
    values = [item.value for item in steps.items if isinstance(item.value, (int, float))]
    if len(steps.items) == len(values) == 2 and not values[0] < values[1] and all(0 <= value <= 1 for value in values):
        hint = "write for instance [0.0, 0.8]"
        yield problem(steps.mark, join(*path, "steps"), "the first share must be smaller than the second", hint)


def _check_contrast(pair: Node, *path: str | int) -> Iterator[Problem]:
    """A text with the concept in which there is nothing to see, or that is the text without it."""
    shown_text, without = (pair.children.get(side, _NOTHING).value for side in ("with", "without"))
    if isinstance(shown_text, str) and (is_blank(shown_text) or shown_text == without):
        message = "must differ from the text without the concept, and not be blank"
        yield problem(pair.children["with"].mark, join(*path, "with"), message, "name the concept in it")


def blank_texts(texts: Node, *path: str | int) -> Iterator[Problem]:
    """Texts of a list in which there is nothing to see."""
    for index, node in enumerate(texts.items):
        if isinstance(node.value, str) and node.value and is_blank(node.value):
            yield problem(node.mark, join(*path, index), "must not be blank", "write a phrase, or remove the line")


def is_blank(text: str) -> bool:
    """Whether a text holds only spaces, control characters and characters of no width."""
    return all(unicodedata.category(character)[0] in "CZ" for character in text)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by document and place, one for each place and message, at most ``MAX_PROBLEMS`` of them."""
    unique = list(dict.fromkeys(problems))
    files = list(dict.fromkeys(problem.file for problem in unique))
    unique.sort(key=lambda problem: (files.index(problem.file), problem.line, problem.column))
    if len(unique) > MAX_PROBLEMS:
        unique = [*unique[:MAX_PROBLEMS], Problem(unique[0].file, 0, 0, "", "and more problems")]
    return unique
