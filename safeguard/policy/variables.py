"""``${VAR}`` and ``${VAR:default}``: read in settings, refused everywhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from safeguard.errors import Problem
from safeguard.policy.yaml_nodes import Node, join, problem

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")


def substitute(root: Node, environ: Mapping[str, str], problems: list[Problem]) -> Node:
    """The document with the variables of ``spec.settings`` filled in; a ``${`` anywhere else is a problem."""
    spec = root.children.get("spec")
    settings = spec.children.get("settings") if spec else None
    if spec is None or settings is None:
        _refuse(root, (), problems)
        return root
    filled = _fill(settings, environ, ("spec", "settings"), problems)
    root = _with(root, "spec", _with(spec, "settings", filled))
    _refuse(root, (), problems)
    return root


def _with(node: Node, key: str, child: Node) -> Node:
    return replace(node, value={**node.children, key: child})


def _fill(node: Node, environ: Mapping[str, str], path: tuple[str | int, ...], problems: list[Problem]) -> Node:
    if isinstance(node.value, dict):
        children = {}
        for key, child in node.value.items():
            before = len(problems)
            filled = _fill(child, environ, (*path, key), problems)
            if len(problems) == before:  # else left out, so that nothing finds a second fault in what is reported
                children[key] = filled
        return replace(node, value=children)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    names: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        names.append(name)
        value = environ.get(name, default)
        if value is None:
            hint = f"set it, or give a default: ${{{name}:value}}"
            problems.append(problem(node.mark, join(*path), f"the variable {name} is not set", hint))
        return value or ""

    text = _VARIABLE.sub(value_of, node.value)
    if "${" in text:
        hint = "write ${NAME} or ${NAME:default}, the name in letters, digits and '_'"
        problems.append(problem(node.mark, join(*path), "a variable that cannot be read", hint))
    return replace(node, value=text, variable=names[0] if names else "")


def _refuse(node: Node, path: tuple[str | int, ...], problems: list[Problem]) -> None:
    """Reports every ``${`` outside of ``spec.settings``."""
    if path == ("spec", "settings"):
        return
    for key, child in node.children.items():
        if "${" in key:
            problems.append(_misplaced(replace(child, mark=node.keys[key]), (*path, key)))
        _refuse(child, (*path, key), problems)
    for index, child in enumerate(node.items):
        _refuse(child, (*path, index), problems)
    if isinstance(node.value, str) and "${" in node.value:
        problems.append(_misplaced(node, path))


def _misplaced(node: Node, path: tuple[str | int, ...]) -> Problem:
    hint = "write the value out, so that the list of concepts does not depend on where it is read"
    return problem(node.mark, join(*path), "variables are allowed in spec.settings only", hint)
