"""A policy made from another one in code: fewer concepts, other strengths, another name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from safeguard.errors import PolicyError, Problem
from safeguard.policy.checks import check_document, check_groups, in_order
from safeguard.policy.schema import check, did_you_mean
from safeguard.policy.snapshot import Concept, Policy, canonical_json, snapshot
from safeguard.policy.yaml_nodes import read

_SAME = (
    "phrases", "eraser", "strength", "activation", "action", "steps", "threshold", "params", "one_of", "contrasts", "anchor",
    "on_residual",
)  # fmt: skip
_CHANGEABLE = (*_SAME, "unsafe_examples", "safe_examples")


def derive(
    policy: Policy,
    *,
    name: str | None = None,
    concepts: Iterable[str | Concept] | None = None,
    settings: Mapping[str, str] | None = None,
    **changes: Any,
) -> Policy:
    """A policy like ``policy``, with what is named here instead.

    ``concepts``: ids of those to keep, in the order wanted, or whole `Concept` values of one's own. ``settings`` and
    ``changes`` (fields of `Concept`, applied to every concept) replace single values. The result passes the checks that a
    file passes. Raises PolicyError with every problem.

    >>> derive(load_policy("builtin://demo"), concepts=["blood"], activation="always", strength="max")
    """
    origin = f"derived from {policy.origin or policy.name}"
    _refuse_unknown(origin, changes, _CHANGEABLE, "a concept")
    wanted_concepts = _kept(policy, policy.concepts if concepts is None else concepts, origin)
    changed = [{**concept.to_dict(), **changes} for concept in wanted_concepts]
    chosen = {key: getattr(policy.settings, key) for key in policy.settings.__slots__} | dict(settings or {})
    metadata: dict[str, Any] = {
        "name": name or policy.name,
        "description": policy.description,
        "annotations": dict(policy.annotations),
    }
    problems = _problems(metadata, chosen, changed, origin)
    if problems:
        raise PolicyError(problems)
    finished = [Concept.from_dict(json.loads(json.dumps(concept))).to_dict() for concept in changed]
    data = snapshot(metadata["name"], policy.description, policy.annotations, chosen, finished)
    return Policy(canonical_json(data), origin=origin, files=policy.files)


def _kept(policy: Policy, concepts: Iterable[str | Concept], origin: str) -> list[Concept]:
    wanted = list(concepts)
    _refuse_unknown(origin, [item for item in wanted if isinstance(item, str)], tuple(policy.concepts), "the policy")
    chosen = [policy.concepts[item] if isinstance(item, str) else item for item in wanted]
    ids = [concept.id for concept in chosen]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise PolicyError([Problem(origin, 0, 0, f"concepts.{twice[0]}", "the concept is given twice", "give it once")])
    return chosen


def _refuse_unknown(origin: str, names: Iterable[str], known: Iterable[str], owner: str) -> None:
    known = tuple(known)
    problems = [
        Problem(origin, 0, 0, name, f"{owner} has no {name!r}", did_you_mean(name, known) or f"it has {', '.join(known)}")
        for name in names
        if name not in known
    ]
    if problems:
        raise PolicyError(problems)


def _problems(
    metadata: Mapping[str, Any], settings: Mapping[str, str], concepts: list[dict[str, Any]], origin: str
) -> list[Problem]:
    """What a file that said the same would be told; places are given by path alone, since there is no line."""
    listed = {}
    for concept in concepts:
        examples = {kind: list(concept[f"{kind}_examples"]) for kind in ("unsafe", "safe")}
        fields = {key: concept[key] for key in _SAME if concept.get(key) is not None}
        listed[concept["id"]] = fields | {"examples": {kind: texts for kind, texts in examples.items() if texts}}
    document = {
        "apiVersion": "safeguard.dev/v1",
        "kind": "Policy",
        "metadata": metadata,
        "spec": {"settings": settings, "concepts": listed},
    }
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return [Problem(origin, 0, 0, "concepts", "a value cannot be written in a policy", "give text, numbers, lists or maps")]
    root, problems = read(text.encode("utf-8", "surrogatepass"), origin)
    if root is not None:
        problems = [*problems, *check(root, "policy"), *check_document(root)]
        problems += check_groups(root.children["spec"].children["concepts"].children)
    return [Problem(origin, 0, 0, problem.path, problem.message, problem.hint) for problem in in_order(problems)]
