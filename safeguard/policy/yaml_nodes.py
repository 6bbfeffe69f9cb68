"""YAML text -> a tree of nodes that know their place.

Built from the parser's events, not with ``compose``: the composer recurses in C and reads to the end before anyone can
say stop. Here size, depth and aliases are bounded while reading. Scalars follow the YAML 1.2 core schema, so ``off``,
``no`` and ``12:30:00`` are words, and only ``true`` and ``false`` (in the core schema's spellings) are booleans.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import yaml

from safeguard.errors import Problem

MAX_BYTES = 1 << 20
MAX_NODES = 20_000  # with every alias written out
MAX_CHARACTERS = 1 << 20  # likewise
MAX_DEPTH = 24
MAX_TEXT = 4_096  # characters in one scalar
MAX_SAFE_INTEGER = 2**53 - 1  # beyond it, a JSON reader need not see the same number (RFC 8785)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

Scalar = str | int | float | bool | None


class Mark(NamedTuple):
    """A place in a document; line and column are 1-based, 0 where there is none."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(slots=True)
class Node:
    """A value and its place.

    ``keys`` holds the place of each key of a map, ``variable`` the environment variable that the value came from.
    ``nodes``, ``characters`` and ``height`` measure the value with its aliases written out.
    """

    value: Scalar | list[Node] | dict[str, Node]
    mark: Mark
    keys: dict[str, Mark] = field(default_factory=dict)
    variable: str = ""
    nodes: int = 1
    characters: int = 0
    height: int = 1

    @property
    def children(self) -> dict[str, Node]:
        """The entries of a map; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The entries of a list; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    def plain(self) -> Any:
        """The value in dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def problem(mark: Mark, path: str, message: str, hint: str = "") -> Problem:
    return Problem(mark.file, mark.line, mark.column, path, message, hint)


def read(data: bytes, file: str) -> tuple[Node | None, list[Problem]]:
    """The tree of one YAML document, and all that is wrong with it as YAML. No tree where nothing can be read."""
    try:
        return _read(data, file)
    except _Stop as stop:
        return None, stop.problems


def _read(data: bytes, file: str) -> tuple[Node | None, list[Problem]]:
    text = _decode(data, file)
    reader = _Reader(file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        message = ", ".join(part for part in (error.context, error.problem) if part)
        place = error.problem_mark or error.context_mark
        reader.report(_mark(file, place) if place else Mark(file, 1, 1), f"this is not YAML: {message}")
        return None, reader.problems
    except yaml.YAMLError:
        reader.report(Mark(file, 1, 1), "this is not YAML")
        return None, reader.problems
    if reader.root is None and not reader.problems:
        reader.report(Mark(file, 1, 1), "the file is empty", "begin with 'apiVersion: safeguard.dev/v1'")
    return reader.root, reader.problems


def _decode(data: bytes, file: str) -> str:
    if len(data) > MAX_BYTES:
        raise _Stop([problem(Mark(file, 1, 1), "", f"the file is larger than {MAX_BYTES // 1024} KiB", "split it")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        mark = _mark_after(file, before)
        raise _Stop([problem(mark, "", "this byte is not UTF-8", "save the file as UTF-8")]) from None
    if match := _UNPRINTABLE.search(text):
        mark = _mark_after(file, text[: match.start()])
        message = f"the control character U+{ord(match.group()):04X} cannot stand in YAML"
        raise _Stop([problem(mark, "", message, "remove it")])
    return text


def _mark_after(file: str, before: str) -> Mark:
    return Mark(file, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _mark(file: str, mark: Any) -> Mark:
    return Mark(file, mark.line + 1, mark.column + 1)


class _Stop(Exception):  # noqa: N818 - control flow inside this module
    """The document must not be read any further."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems


@dataclass(slots=True)
class _Frame:
    """A map or list that is still open. ``key`` is the key whose value comes next, ``drop`` says to forget it."""

    node: Node
    anchor: str | None
    key: str | None = None
    drop: bool = False

    @property
    def wants_key(self) -> bool:
        return isinstance(self.node.value, dict) and self.key is None and not self.drop


class _Reader:
    """Takes the events one by one and builds the tree, without recursion."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self._stack: list[_Frame] = []
        self._anchors: dict[str, Node | None] = {}  # None while the anchored node is open
        self._documents = self._nodes = self._characters = 0

    def report(self, mark: Mark, message: str, hint: str = "") -> None:
        self.problems.append(problem(mark, self._path(), message, hint))

    def take(self, event: Any) -> None:
        mark = _mark(self.file, event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            self._check_tag(event, mark)
            self._leaf(event, mark)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._check_tag(event, mark)
            self._open(event, mark)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(str(event.anchor), mark)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(mark, "a second document begins here", "one file holds one document; use 'extends'")

    def _leaf(self, event: Any, mark: Mark) -> None:
        text: str = event.value
        if len(text) > MAX_TEXT:
            self._stop(mark, f"a text of {len(text)} characters", f"at most {MAX_TEXT} are allowed")
        plain = event.implicit[0] and not event.tag
        if self._stack and self._stack[-1].wants_key:
            self._spend(mark, 1, len(text))
            self._take_key(text, plain, mark)
            if event.anchor:
                self._anchors[event.anchor] = Node(text, mark, characters=len(text))
            return
        value = self._resolve(text, mark) if plain else text
        node = Node(value, mark, characters=len(text))
        self._spend(mark, 1, len(text))
        if event.anchor:
            self._anchors[event.anchor] = node
        self._attach(node)

    def _resolve(self, text: str, mark: Mark) -> Scalar:
        """A plain scalar by the YAML 1.2 core schema."""
        if text in _WORDS:
            return _WORDS[text]
        number: int | float
        if _DECIMAL.fullmatch(text):
            number = int(text)
        elif _OCTAL_OR_HEX.fullmatch(text):
            number = int(text, 0)
        elif _FLOAT.fullmatch(text):
            number = float(text)
        elif _NOT_FINITE.fullmatch(text):
            number = math.nan
        else:
            return text
        if isinstance(number, float) and not math.isfinite(number):
            self.report(mark, "a number must be finite", "write a number, or put the word in quotes")
            return 0
        if abs(number) > MAX_SAFE_INTEGER:
            # Floats too: RFC 8785 writes them without a point up to 1e21, and they would come back as integers.
            self.report(mark, "a number that JSON readers cannot keep exactly", "write it in quotes or make it smaller")
            return 0
        return number

    def _open(self, event: Any, mark: Mark) -> None:
        if len(self._stack) >= MAX_DEPTH:
            self._stop(mark, f"nested deeper than {MAX_DEPTH} levels", "no policy needs that; flatten it")
        self._spend(mark, 1, 0)
        node = Node({} if isinstance(event, yaml.MappingStartEvent) else [], mark)
        if event.anchor:
            self._anchors[event.anchor] = None
        self._stack.append(_Frame(node, event.anchor))

    def _close(self) -> None:
        frame = self._stack.pop()
        node = frame.node
        children = list(node.children.values()) or node.items
        node.nodes += sum(child.nodes for child in children) + len(node.keys)
        node.characters = sum(child.characters for child in children) + sum(len(key) for key in node.keys)
        node.height += max((child.height for child in children), default=0)
        if frame.anchor:
            self._anchors[frame.anchor] = node
        self._attach(node)

    def _alias(self, anchor: str, mark: Mark) -> None:
        if anchor not in self._anchors:
            self._stop(mark, "an alias without an anchor", "define the anchor (&name) above it")
        target = self._anchors[anchor]
        if target is None:
            self._stop(mark, "an alias to the value that it stands in", "write the value out")
        elif len(self._stack) + target.height > MAX_DEPTH:
            self._stop(mark, f"with its aliases written out nested deeper than {MAX_DEPTH} levels", "flatten it")
        else:
            self._spend(mark, target.nodes, target.characters)
            self._attach(replace(target, mark=mark))

    def _attach(self, node: Node) -> None:
        if not self._stack:
            self.root = node
            return
        frame = self._stack[-1]
        parent = frame.node
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif frame.wants_key:
            self.report(node.mark, "a key must be plain text", "write a word before the colon")
            frame.drop = True
        else:
            if frame.key is not None and not frame.drop and isinstance(parent.value, dict):
                parent.value[frame.key] = node
            frame.key, frame.drop = None, False

    def _take_key(self, text: str, plain: bool, mark: Mark) -> None:
        frame = self._stack[-1]
        keys = frame.node.keys
        frame.drop = True
        if plain and text == "<<":
            self.report(mark, "merge keys ('<<') are not read", "use 'spec.extends', or write the values out")
        elif plain and not isinstance(self._resolve(text, mark), str):
            self.report(mark, "a key must be text", "put it in quotes")
        elif text in keys:
            self.report(mark, f"the key {shown(text)} stands twice", f"the first is in line {keys[text].line}")
        else:
            keys[text] = mark
            frame.key, frame.drop = text, False

    def _check_tag(self, event: Any, mark: Mark) -> None:
        if event.tag:
            self.report(mark, "tags (!...) are not read", "remove the tag; for text, use quotes")

    def _spend(self, mark: Mark, nodes: int, characters: int) -> None:
        self._nodes += nodes
        self._characters += characters
        if self._nodes > MAX_NODES or self._characters > MAX_CHARACTERS:
            message = f"with aliases written out, more than {MAX_NODES} values or {MAX_CHARACTERS} characters"
            self._stop(mark, message, "split the file, or drop the aliases")

    def _stop(self, mark: Mark, message: str, hint: str) -> None:
        self.report(mark, message, hint)
        raise _Stop(self.problems)

    def _path(self) -> str:
        return join(*self._steps())

    def _steps(self) -> Iterator[str | int]:
        for frame in self._stack:
            if isinstance(frame.node.value, list):
                yield len(frame.node.value)
            elif frame.key is not None:
                yield frame.key


def join(*steps: str | int) -> str:
    """The path of a place inside a document: ``spec.concepts.blood.phrases[1]``."""
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step[:64]}" if path else step[:64]
    return path


def shown(text: str, limit: int = 64) -> str:
    """A word of a document as a message quotes it: on one line, and never long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
