from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from safeguard.errors import PolicyError, Problem
from safeguard.policy import Policy, load_policy

HEAD = "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: test}\n"

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes ``spec`` (the body under ``spec:``) as a policy file and gives its path."""

    def to_file(spec: str, name: str = "policy.yaml") -> Path:
        body = textwrap.indent(textwrap.dedent(spec).strip() or "{}", "  ")
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEAD}spec:\n{body}\n", "utf-8")
        return path

    return to_file


@pytest.fixture
def load(write: Write) -> Callable[..., Policy]:
    """Loads ``spec`` as a policy; other documents by name, written beside it, may follow."""

    def from_text(spec: str, **others: str) -> Policy:
        for name, body in others.items():
            write(body, f"{name}.yaml")
        return load_policy(write(spec, "policy.yaml"))

    return from_text


@pytest.fixture
def problems(load: Callable[..., Policy]) -> Callable[..., tuple[Problem, ...]]:
    """The problems of a policy that must not load."""

    def of(spec: str, **others: str) -> tuple[Problem, ...]:
        with pytest.raises(PolicyError) as raised:
            load(spec, **others)
        return raised.value.problems

    return of
