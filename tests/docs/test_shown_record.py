"""The decision record that README shows is one that was written, not one that was made up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safeguard.audit import AuditLog, Decision, Model, Subject
from safeguard.audit.chain import digest
from safeguard.policy import load_policy

README = Path(__file__).parents[2] / "README.md"


def _shown() -> dict[str, Any]:
    found = re.search(r"<!-- record -->\n```json\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    record: dict[str, Any] = json.loads(found[1])
    return record


def test_its_hash_holds() -> None:
    record = _shown()
    assert record["hash"] == digest(record)


def test_it_has_the_fields_of_today(tmp_path: Path) -> None:
    policy = load_policy("builtin://demo")
    with AuditLog(tmp_path) as log:
        log.store_policy(policy.revision, policy.canonical)
        decision = Decision(
            policy_name=policy.name,
            policy_revision=policy.revision,
            result="pass",
            subject=Subject("a red rose"),
            model=Model("StableDiffusionPipeline"),
        )
        (written,) = log.append([decision])
    assert set(_shown()) == set(written)


def test_it_holds_no_prompt() -> None:
    assert "prompt" not in _shown()["subject"]
    assert _shown()["subject"]["prompt_hmac"]
