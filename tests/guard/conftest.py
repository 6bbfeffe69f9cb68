"""One tiny pipeline for the tests of the guard, and ``protect`` with a release at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import safeguard
from tests.support.contract_policies import protecting
from tests.support.families import FAMILIES, PROMPTS, generate

HEAD = "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: shop}\nspec:\n"


@pytest.fixture(scope="session")
def shared_pipe() -> Any:
    return FAMILIES["sd1"]()


@pytest.fixture(scope="session")
def plain(shared_pipe: Any) -> torch.Tensor:
    """What the unprotected pipeline gives for ``PROMPTS``."""
    return generate(shared_pipe, PROMPTS)


@pytest.fixture
def pipe(shared_pipe: Any, plain: torch.Tensor) -> Any:
    """The pipeline, unprotected: whatever the last test did with it."""
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in shared_pipe.unet.modules())
    return shared_pipe


@pytest.fixture
def protect() -> Iterator[Callable[..., safeguard.Guard]]:
    with protecting() as protect:
        yield protect


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a policy file: ``spec`` is what stands under ``spec:``."""

    def to_file(spec: str, name: str = "policy.yaml") -> Path:
        path = tmp_path / name
        path.write_text(HEAD + textwrap.indent(textwrap.dedent(spec).strip(), "  ") + "\n", "utf-8")
        return path

    return to_file
