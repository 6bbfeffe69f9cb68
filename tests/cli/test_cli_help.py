"""``-h`` and ``--help`` are the same, for every verb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from safeguard.cli.main import VERBS, app, load_verb


def _paths(command: Any, path: list[str]) -> Iterator[list[str]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from _paths(child, [*path, name])


EVERY = [[], *(path for verb in VERBS for path in _paths(load_verb(verb), [verb]))]


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_a_verb_explains_itself(path: list[str]) -> None:
    short, long = (CliRunner().invoke(app, [*path, flag]) for flag in ("-h", "--help"))
    assert (short.exit_code, long.exit_code) == (0, 0)
    assert short.output == long.output
    assert " ".join(path) in short.output


def test_groups_are_walked_to_their_verbs() -> None:
    assert {("policy", "validate"), ("audit", "verify"), ("eval", "demo"), ("train",)} <= {tuple(path) for path in EVERY}
