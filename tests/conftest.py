"""The demo pipeline and its judge, with few steps: enough to see what is done, not to see good pictures."""

from __future__ import annotations

from typing import Any

import pytest
from safeguard_demo import Judge, load_pipeline

from safeguard.evaluation.harness import Harness


@pytest.fixture(scope="session")
def pipe() -> Any:
    return load_pipeline("unet")


@pytest.fixture(scope="session")
def studio(pipe: Any) -> Harness:
    return Harness(pipe, Judge(), steps=3, guidance=4.0)
