"""The flat, immutable form of a policy, and the revision that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import rfc8785

from safeguard.errors import PolicyError, Problem

SNAPSHOT_SCHEMA = "safeguard.dev/v1/snapshot"
BUILTIN = "builtin://"
LATER: Final = ("one_of", "contrasts", "anchor", "on_residual")  # fields of a concept that the first snapshots did not have


class FrozenMap(Mapping[str, Any]):
    """A read-only map that hashes, compares, copies and pickles by its content; what it holds is frozen too."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items = {key: _frozen(value) for key, value in (items or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value if isinstance(value, FrozenMap) else FrozenMap(value)
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _thawed(value: Any) -> Any:
    """The same in dicts and lists, as JSON libraries want it."""
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that images must not show, with everything resolved.

    ``strength`` is a word (weak, medium, strong, max) or a number >= 0; ``steps`` are shares of the schedule, 0 to 1;
    ``threshold`` is the screener's, 0 to 1, and None where it is calibrated; ``params`` belong to the eraser. ``one_of`` names
    the group of which one concept is drawn for each image, None where it is in none. ``contrasts`` are pairs of texts ``with``
    and ``without`` the concept, and ``anchor`` says what stands in its place; both are for erasers that act by such pairs
    (`safeguard.sdk.contrast_attention`). ``on_residual`` says what happens where too much of it is left in an image: record,
    again or withhold.
    """

    id: str
    phrases: tuple[str, ...]
    unsafe_examples: tuple[str, ...] = ()
    safe_examples: tuple[str, ...] = ()
    eraser: str = "eiup"
    strength: float | str = "strong"
    activation: str = "adaptive"
    action: str = "erase"
    steps: tuple[float, float] = (0.0, 1.0)
    threshold: float | None = None
    params: Mapping[str, Any] = FrozenMap()
    one_of: str | None = None
    contrasts: tuple[Mapping[str, str], ...] = ()
    anchor: str | None = None
    on_residual: str = "record"

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", _frozen(self.params))
        object.__setattr__(self, "contrasts", _frozen(self.contrasts))

    def to_dict(self) -> dict[str, Any]:
        """The concept as it stands in a snapshot: without what says nothing and older snapshots did not have."""
        fields = {name: _thawed(getattr(self, name)) for name in self.__slots__}
        return {name: value for name, value in fields.items() if name not in LATER or value not in (None, [], "record")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Concept:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        if {*data, *LATER} != set(cls.__slots__):
            raise ValueError("a concept of a snapshot has exactly the fields of Concept")
        strength, threshold = data["strength"], data["threshold"]
        start, end = data["steps"]
        return cls(
            id=_text(data["id"]),
            phrases=tuple(map(_text, data["phrases"])),
            unsafe_examples=tuple(map(_text, data["unsafe_examples"])),
            safe_examples=tuple(map(_text, data["safe_examples"])),
            eraser=_text(data["eraser"]),
            strength=strength if isinstance(strength, str) else float(strength),
            activation=_text(data["activation"]),
            action=_text(data["action"]),
            steps=(float(start), float(end)),
            threshold=None if threshold is None else float(threshold),
            params=FrozenMap(data["params"]),
            one_of=None if data.get("one_of") is None else _text(data["one_of"]),
            contrasts=tuple(
                FrozenMap({side: _text(pair[side]) for side in ("with", "without")}) for pair in data.get("contrasts", ())
            ),
            anchor=None if data.get("anchor") is None else _text(data["anchor"]),
            on_residual=_text(data.get("on_residual", "record")),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for the whole pipeline; see the schema for the words."""

    on_error: str = "block"
    prompt_embeds: str = "protect"
    capture: str = "hmac"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


class Policy:
    """A checked, resolved, immutable policy. Made by `load_policy`; two policies are equal if their revisions are. Stable.

    Attributes:
        name: From its metadata; so are ``description`` and ``annotations``.
        settings: What holds for all concepts.
        concepts: The concepts by id, in the order of the document.
        revision: The hex SHA-256 of ``canonical``.
        canonical: The RFC 8785 JSON of everything that has an effect.
        origin: Where the policy came from, with ``files``. Both are no part of the revision.
    """

    name: str
    description: str
    annotations: Mapping[str, str]
    settings: Settings
    concepts: Mapping[str, Concept]
    revision: str
    canonical: bytes
    origin: str
    files: tuple[Path, ...]

    __slots__ = (
        "annotations", "canonical", "concepts", "description", "files", "name", "origin", "revision", "settings",
    )  # fmt: skip

    def __init__(self, canonical: bytes, *, origin: str = "", files: tuple[Path, ...] = ()) -> None:
        fields = _parse(canonical)
        fields |= {"canonical": bytes(canonical), "revision": hashlib.sha256(canonical).hexdigest()}
        fields |= {"origin": origin, "files": tuple(files)}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_canonical(cls, data: bytes) -> Policy:
        """Reads an archived snapshot back. Raises PolicyError unless ``data`` is exactly what a Policy once gave."""
        try:
            policy = cls(data)
            same = canonical_json(policy.to_dict()) == data
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            same = False
        if not same:
            raise PolicyError([Problem("snapshot", 0, 0, "", "this is not a canonical policy snapshot", "restore it")])
        return policy

    def to_dict(self) -> dict[str, Any]:
        """The snapshot as plain data; its canonical JSON is ``canonical``."""
        settings = {name: getattr(self.settings, name) for name in Settings.__slots__}
        concepts = [concept.to_dict() for concept in self.concepts.values()]
        return snapshot(self.name, self.description, self.annotations, settings, concepts)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The concepts of every group of which one is drawn for each image."""
        groups: dict[str, tuple[str, ...]] = {}
        for name, concept in self.concepts.items():
            if concept.one_of is not None:
                groups[concept.one_of] = (*groups.get(concept.one_of, ()), name)
        return groups

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Policy cannot be changed (tried to set {name!r}); load another one and swap it in")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Policy cannot be changed (tried to delete {name!r})")

    def __eq__(self, other: object) -> bool:
        return self.revision == other.revision if isinstance(other, Policy) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.revision)

    def __repr__(self) -> str:
        return f"<Policy {self.name!r} {self.revision[:12]} with {len(self.concepts)} concepts>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.canonical, self.origin, self.files)


def _restore(canonical: bytes, origin: str, files: tuple[Path, ...]) -> Policy:
    return Policy(canonical, origin=origin, files=files)


def snapshot(
    name: str,
    description: str,
    annotations: Mapping[str, str],
    settings: Mapping[str, Any],
    concepts: list[dict[str, Any]],
) -> dict[str, Any]:
    """The data whose canonical JSON is hashed. Concepts are a list: their order is the order of the plan."""
    return {
        "schema": SNAPSHOT_SCHEMA,
        "name": name,
        "description": description,
        "annotations": dict(annotations),
        "settings": dict(settings),
        "concepts": concepts,
    }


def canonical_json(data: Any) -> bytes:
    """RFC 8785: one byte string for one value, whatever the order of keys or the spelling of numbers."""
    return bytes(rfc8785.dumps(data))


def _parse(canonical: bytes) -> dict[str, Any]:
    data = json.loads(canonical.decode("utf-8"))
    if not isinstance(data, dict) or data.get("schema") != SNAPSHOT_SCHEMA:
        raise ValueError("not a policy snapshot")
    concepts = [Concept.from_dict(entry) for entry in data["concepts"]]
    return {
        "name": _text(data["name"]),
        "description": _text(data["description"]),
        "annotations": FrozenMap({key: _text(value) for key, value in data["annotations"].items()}),
        "settings": Settings(**{key: _text(value) for key, value in data["settings"].items()}),
        "concepts": FrozenMap({concept.id: concept for concept in concepts}),
    }
