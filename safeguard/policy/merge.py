"""The one merge rule: maps merge, lists replace, ``null`` deletes."""

from __future__ import annotations

from dataclasses import replace

from safeguard.errors import Problem
from safeguard.policy.yaml_nodes import Mark, Node, join, problem

EMPTY = Node({}, Mark(""))


def merge(under: Node, over: Node, problems: list[Problem], *path: str) -> Node:
    """``over`` laid on ``under``. A key keeps the position that it has in ``under``; new ones follow.

    A null that finds nothing to delete is reported in ``problems``, at ``path`` and below.
    """
    if not isinstance(over.value, dict):
        return over
    values = dict(under.children)
    keys = dict(under.keys) if values else {}
    for key, child in over.value.items():
        if child.value is not None:
            values[key] = merge(values.get(key, EMPTY), child, problems, *path, key)
            keys[key] = over.keys.get(key, child.mark)
        elif key in values:
            del values[key]
        else:
            problems.append(nothing_to_delete(over.keys.get(key, child.mark), *path, key))
    return replace(over, value=values, keys=keys)


def nothing_to_delete(mark: Mark, *path: str) -> Problem:
    return problem(mark, join(*path), "null deletes what is inherited, and nothing is", "remove this line")


def prune(under: Node, over: Node) -> Node:
    """``under`` without the keys that ``over`` deletes."""
    if not isinstance(under.value, dict) or not over.children:
        return under
    children = {
        key: prune(child, over.children.get(key, EMPTY))
        for key, child in under.value.items()
        if key not in over.children or over.children[key].value is not None
    }
    return replace(under, value=children)
