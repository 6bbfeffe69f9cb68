"""Decisions to log, and a policy that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from safeguard.audit import Applied, AuditLog, Decision, Effect, Metrics, Model, Output, Screen, Subject

SNAPSHOT = b'{"concepts":{"blood":{"phrases":["blood"]}},"name":"storefront"}'
REVISION = hashlib.sha256(SNAPSHOT).hexdigest()

MakeDecision = Callable[..., Decision]


@pytest.fixture
def make_decision() -> MakeDecision:
    """One full decision, any field of it replaced."""

    def make(prompt: str | None = "a red rose", **changes: object) -> Decision:
        values: dict[str, object] = {
            "policy_name": "storefront",
            "policy_revision": REVISION,
            "result": "erase",
            "subject": Subject(prompt=prompt),
            "model": Model("StableDiffusionPipeline", "acme/model", "main"),
            "screen": Screen("minilm:0123", {"blood": 0.8}, {"blood": (0.4, 0.9)}, ("blood",)),
            "applied": (Applied("blood", "eiup", "1", 2.0, "strong", (0, 24), 16, Effect(0.02, 0.1, ((0, 0.03), (24, 0.01)))),),
            "output": Output("ab" * 32, seed=7, size=(512, 512)),
            "metrics": Metrics(4.0, 9.5),
        }
        return Decision(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def new_log(tmp_path: Path) -> Callable[..., AuditLog]:
    """An audit log in ``tmp_path / "audit"`` with the policy archived."""

    def make(**options: object) -> AuditLog:
        log = AuditLog(tmp_path / "audit", **options)  # type: ignore[arg-type]
        log.store_policy(REVISION, SNAPSHOT)
        return log

    return make


@pytest.fixture
def five(new_log: Callable[..., AuditLog], make_decision: MakeDecision) -> Path:
    """A closed file: genesis (seq 0), five decisions (1 to 5), checkpoint (6)."""
    with new_log() as log:
        for _ in range(5):
            log.append([make_decision()])
    return next(log.folder.glob("*.jsonl"))
