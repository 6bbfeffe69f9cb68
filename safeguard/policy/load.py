"""A path or ``builtin://NAME`` -> one flat `Policy`, or every reason why not.

How documents combine: each document is resolved on its own, parents first; then they are merged in the order of
``extends``, and the document itself on top. A concept has two layers, what documents state about it and what defaults
they hold for it, and the first always wins. So the defaults of a document reach the concepts that it lists, and no
others: extending a lenient policy next to a strict one does not loosen the strict one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safeguard.errors import PolicyError, Problem
from safeguard.policy import documents
from safeguard.policy.checks import check_document, check_groups, in_order
from safeguard.policy.documents import Location
from safeguard.policy.merge import EMPTY, merge, nothing_to_delete, prune
from safeguard.policy.schema import check
from safeguard.policy.snapshot import Concept, Policy, Settings, canonical_json, snapshot
from safeguard.policy.variables import substitute
from safeguard.policy.yaml_nodes import Mark, Node, problem, read

MAX_DOCUMENTS = 64

_FIELDS = ("eraser", "strength", "activation", "action", "steps", "threshold", "params", "one_of", "on_residual")


def load_policy(source: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> Policy:
    """Load a policy, check it and resolve what it extends. Stable.

    Args:
        source: A path or ``builtin://NAME``.
        environ: The variables for ``spec.settings``; by default those of the process.

    Returns:
        The policy.

    Raises:
        PolicyError: With every problem of every document that takes part.
    """
    return resolve(source, environ=environ).policy


@dataclass(frozen=True, slots=True)
class Resolution:
    """A policy, and for each concept the place that each of its values comes from; built-in values have no entry."""

    policy: Policy
    places: Mapping[str, Mapping[str, Mark]]


def resolve(source: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> Resolution:
    """Like `load_policy`, and says where every value comes from."""
    location = documents.first(source)
    loader = _Loader(os.environ if environ is None else environ)
    flat = loader.load(location, ())
    if flat is not None and not loader.broken:
        loader.check_flat(flat)
    if loader.problems or flat is None:
        raise PolicyError(in_order(loader.problems))
    return loader.finish(flat, location)


@dataclass(slots=True)
class _Entry:
    """One concept while documents are merged: what is stated, the defaults below it, the place of its last mention."""

    stated: Node
    defaults: Node
    mark: Mark

    @property
    def merged(self) -> Node:
        return merge(self.defaults, self.stated, [])


@dataclass(slots=True)
class _Flat:
    """A document with all that it extends."""

    metadata: Node = field(default_factory=lambda: EMPTY)
    settings: Node = field(default_factory=lambda: EMPTY)
    concepts: dict[str, _Entry] = field(default_factory=dict)


class _Loader:
    """Loads each document once, however often it is extended, and collects the problems of all."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self.broken = False  # a document is missing, so that what depends on inheritance cannot be judged
        self.files: list[Path] = []
        self._environ = environ
        self._done: dict[str, _Flat | None] = {}

    def load(self, location: Location, chain: tuple[Location, ...], mark: Mark | None = None, path: str = "") -> _Flat | None:
        """The flat form of a document. ``chain`` holds those that led here; ``mark`` and ``path`` place the entry."""
        if location.key in self._done:
            return self._done[location.key]
        try:
            data = documents.fetch(location, mark, path)
        except PolicyError as error:
            self.problems += error.problems
            self._give_up(location)
            return None
        if location.path is not None:
            self.files.append(location.path)
        root, problems = read(data, location.name)
        if root is not None:
            root = substitute(root, self._environ, problems)
            problems += check(root, "policy")
            problems += check_document(root)
        self.problems += problems
        if root is None or "spec" not in root.children:
            self._give_up(location)
            return None
        flat = self._flatten(root, location, (*chain, location))
        self._done[location.key] = flat
        return flat

    def _give_up(self, location: Location) -> None:
        self.broken = True
        self._done[location.key] = None

    def _flatten(self, root: Node, location: Location, chain: tuple[Location, ...]) -> _Flat:
        spec = root.children["spec"].children
        flat = _Flat()
        for index, entry in enumerate(spec.get("extends", EMPTY).items):
            parent = self._parent(entry, f"spec.extends[{index}]", location, chain)
            if parent is None:
                self.broken = True
                continue
            flat.settings = merge(flat.settings, parent.settings, self.problems)
            for name, inherited in parent.concepts.items():
                flat.concepts[name] = _overlay(flat.concepts.get(name), inherited)
        flat.metadata = root.children.get("metadata", EMPTY)
        self._apply(flat, spec)
        return flat

    def _parent(self, entry: Node, path: str, location: Location, chain: tuple[Location, ...]) -> _Flat | None:
        if not isinstance(entry.value, str) or not entry.value:
            return None
        try:
            target = documents.extended(entry.value, location, entry.mark, path)
        except PolicyError as error:
            self.problems += error.problems
            return None
        keys = [passed.key for passed in chain]
        if target.key in keys:
            circle = " -> ".join([passed.name for passed in chain[keys.index(target.key) :]] + [target.name])
            self.problems.append(problem(entry.mark, path, f"a circle of documents: {circle}", "break it"))
            return None
        if len(self._done) + len(chain) > MAX_DOCUMENTS:
            message = f"more than {MAX_DOCUMENTS} documents take part"
            self.problems.append(problem(entry.mark, path, message, "join some of them"))
            return None
        return self.load(target, chain, entry.mark, path)

    def _apply(self, flat: _Flat, spec: Mapping[str, Node]) -> None:
        """Lays the document's own settings and concepts on what it inherits."""
        problems: list[Problem] = []
        flat.settings = merge(flat.settings, spec.get("settings", EMPTY), problems, "spec", "settings")
        defaults = spec.get("defaults", EMPTY)
        listed = spec.get("concepts", EMPTY)
        for name, node in listed.children.items():
            mark = listed.keys[name]
            inherited = flat.concepts.get(name)
            if node.value is None:
                if inherited is None:
                    problems.append(nothing_to_delete(mark, "spec", "concepts", name))
                flat.concepts.pop(name, None)
            elif isinstance(node.value, dict):
                flat.concepts[name] = _state(name, inherited, node, defaults, mark, problems)
        if not self.broken:
            self.problems += problems

    def check_flat(self, flat: _Flat) -> None:
        """What can only be judged once everything is merged."""
        # A concept with another fault inside, such as 'phrase:' for 'phrases:', is not told twice.
        faulty = {".".join(fault.path.split(".")[:3]) for fault in self.problems}
        for name, entry in flat.concepts.items():
            path = f"spec.concepts.{name}"
            if "phrases" not in entry.stated.children and path not in faulty:
                hint = f"add 'phrases: [{name.replace('-', ' ').replace('_', ' ')}]', or extend a policy that has it"
                message = "the concept has no phrases, here or inherited"
                self.problems.append(problem(entry.mark, path, message, hint))
        self.problems += check_groups({name: entry.merged for name, entry in flat.concepts.items()})

    def finish(self, flat: _Flat, location: Location) -> Resolution:
        metadata = {"description": "", "annotations": {}, **flat.metadata.plain()}
        settings = {name: getattr(Settings(), name) for name in Settings.__slots__} | flat.settings.plain()
        concepts, places = [], {}
        for name, entry in flat.concepts.items():
            concept, places[name] = _finish_concept(name, entry)
            concepts.append(concept.to_dict())
        data = snapshot(metadata["name"], metadata["description"], metadata["annotations"], settings, concepts)
        policy = Policy(canonical_json(data), origin=location.name, files=tuple(self.files))
        return Resolution(policy, places)


def _overlay(under: _Entry | None, over: _Entry) -> _Entry:
    """A concept of a later parent on that of an earlier one. Parents hold no null any more, so nothing is reported."""
    if under is None:
        return over
    return _Entry(merge(under.stated, over.stated, []), merge(under.defaults, over.defaults, []), over.mark)


def _state(name: str, inherited: _Entry | None, node: Node, defaults: Node, mark: Mark, problems: list[Problem]) -> _Entry:
    """What a document says of a concept, on what it inherits; the document's defaults go to the lower layer."""
    under = inherited or _Entry(EMPTY, EMPTY, mark)
    # A null deletes from both layers, so whether there is something to delete is judged on both.
    merge(merge(under.defaults, under.stated, []), node, problems, "spec", "concepts", name)
    return _Entry(merge(under.stated, node, []), merge(prune(under.defaults, node), defaults, []), mark)


def _finish_concept(name: str, entry: _Entry) -> tuple[Concept, dict[str, Mark]]:
    merged = entry.merged
    nodes = {key: merged.children[key] for key in ("phrases", "contrasts", "anchor", *_FIELDS) if key in merged.children}
    for kind, node in merged.children.get("examples", EMPTY).children.items():
        nodes[f"{kind}_examples"] = node
    values: dict[str, Any] = {key: node.plain() for key, node in nodes.items()}
    for key in ("phrases", "unsafe_examples", "safe_examples", "contrasts"):
        values[key] = tuple(values.get(key, ()))
    return Concept(name, **values), {key: node.mark for key, node in nodes.items()}
