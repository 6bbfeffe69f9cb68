"""What differs between two policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safeguard.policy.snapshot import Policy, canonical_json


@dataclass(frozen=True, slots=True)
class Change:
    """A value that is not the same in both, ``before`` and ``after``; None where one side has none."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """From one policy to another: ids ``added`` and ``removed``, values ``changed``, whether only the order differs."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]
    reordered: bool

    @property
    def same(self) -> bool:
        return not (self.added or self.removed or self.changed or self.reordered)


def compare(before: Policy, after: Policy) -> Difference:
    """Compares what has an effect; the same as comparing revisions, told in detail."""
    old, new = before.to_dict(), after.to_dict()
    concepts = {name: concept.to_dict() for name, concept in before.concepts.items()}
    others = {name: concept.to_dict() for name, concept in after.concepts.items()}
    shared = [name for name in concepts if name in others]
    changed = [change for key in ("name", "description", "annotations", "settings") for change in _walk(key, old, new)]
    changed += [change for name in shared for change in _changes(f"concepts.{name}", concepts[name], others[name])]
    return Difference(
        added=tuple(name for name in others if name not in concepts),
        removed=tuple(name for name in concepts if name not in others),
        changed=tuple(changed),
        reordered=shared != [name for name in others if name in concepts],
    )


def _walk(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    return _changes(key, old.get(key), new.get(key))


def _changes(path: str, before: Any, after: Any) -> list[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        changes = [change for key in keys for change in _changes(f"{path}.{key}", before.get(key), after.get(key))]
        # A key whose value is null is not the same as no key.
        return changes if changes or before.keys() == after.keys() else [Change(path, before, after)]
    # Not by ==, for which 1 and true are the same.
    return [] if canonical_json(before) == canonical_json(after) else [Change(path, before, after)]
