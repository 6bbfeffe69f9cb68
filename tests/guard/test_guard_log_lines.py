"""What a guard logs: which policy is active, why one is refused, and one line a request that holds no prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeguard.errors import PolicyError, PolicyViolation, SafeguardError
from tests.support.contract_policies import Words, concept, policy
from tests.support.families import PROMPTS, generate

Protect = Callable[..., Any]


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[Any]:
    return [record for record in caplog.records if getattr(record, "event", None) == name]


@pytest.fixture(autouse=True)
def at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "safeguard")


def test_an_activated_policy_is_logged_with_the_one_before(
    pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = policy(concept("blood")), policy(concept("weapon"), name="second")
    protect(pipe, first).swap(second)
    at_protect, at_swap = events(caplog, "policy_activated")
    assert (at_protect.revision, at_protect.previous_revision, at_protect.concepts) == (first.revision, None, 1)
    assert (at_swap.policy, at_swap.revision, at_swap.previous_revision) == ("second", second.revision, first.revision)


def test_a_refused_policy_says_why_and_which_one_stays(
    pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture, write: Callable[..., Path]
) -> None:
    guard = protect(pipe, policy(concept("blood")))
    path = write("concepts:\n  blood: {strenght: 2}")
    with pytest.raises(PolicyError):
        guard.swap(path)
    (line,) = events(caplog, "policy_refused")
    assert (line.levelname, line.source, line.error) == ("WARNING", str(path), "PolicyError")
    assert "strenght" in line.reason
    assert line.active_revision == guard.policy.revision


@pytest.mark.parametrize(
    ("first", "error"),
    [("no such file.yaml", "PolicyError"), (policy(concept("blood", eraser="nobody")), "PluginError")],
    ids=["unread", "unusable"],
)
def test_the_first_policy_may_be_refused_too(
    first: Any, error: str, pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SafeguardError):
        protect(pipe, first)
    (line,) = events(caplog, "policy_refused")
    assert (line.error, line.active_revision, line.pipeline) == (error, None, "StableDiffusionPipeline")


def test_a_request_is_one_line(pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture) -> None:
    guard = protect(pipe, policy(concept("blood")), screener=Words())
    with guard.request(request_id="r-1", tenant="shop", trace_id="t-1") as request:
        generate(pipe, ["blood", "a boat"])
    (line,) = events(caplog, "request_ended")
    assert (line.request_id, line.tenant, line.trace_id) == ("r-1", "shop", "t-1")
    assert line.revision == guard.policy.revision
    assert line.decision_ids == [decision.decision_id for decision in request.decisions]
    assert (line.results, line.statuses, line.applied) == ({"erase": 1, "pass": 1}, {"ok": 2}, 1)
    assert line.screen_ms is not None
    assert line.total_ms >= line.overhead_ms
    assert line.error is None


def test_a_second_call_of_a_request_counts_its_own_decisions(
    pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture
) -> None:
    guard = protect(pipe, policy(concept("blood")), screener=Words())
    with guard.request():
        generate(pipe, ["blood"])
        generate(pipe, ["a boat"])
    assert [line.results for line in events(caplog, "request_ended")] == [{"erase": 1}, {"pass": 1}]


def test_a_refused_request_is_one_line_with_its_error(pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture) -> None:
    protect(pipe, policy(concept("blood", action="block")), screener=Words())
    with pytest.raises(PolicyViolation) as refusal:
        generate(pipe, ["very blood"])
    (line,) = events(caplog, "request_ended")
    assert (line.error, line.results, line.decision_ids) == ("PolicyViolation", {"block": 1}, list(refusal.value.decision_ids))


def test_a_failed_request_is_one_line_with_its_error(pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture) -> None:
    protect(pipe, policy(concept("blood")), screener=Words())
    with pytest.raises(ValueError, match="divisible by 8"):
        generate(pipe, PROMPTS, height=33)
    (line,) = events(caplog, "request_ended")
    assert (line.error, line.statuses) == ("ValueError", {"error": len(PROMPTS)})


def test_no_line_is_made_where_nobody_listens(pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture) -> None:
    protect(pipe, policy(concept("blood")), screener=Words())
    caplog.set_level(logging.INFO, "safeguard")
    generate(pipe, ["blood"])
    assert events(caplog, "request_ended") == []


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.text(st.characters(categories=["Lu", "Ll"]), min_size=9, max_size=20))
def test_no_prompt_is_in_a_record(words: str, pipe: Any, protect: Protect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    guard = protect(pipe, policy(concept("blood"), concept("weapon", action="block")), screener=Words())
    generate(pipe, [f"blood {words}"], negative_prompt=[words])
    with pytest.raises(PolicyViolation):
        generate(pipe, [f"very weapon {words}"])
    guard.release()
    assert len(events(caplog, "request_ended")) == 2
    assert words not in "".join(record.getMessage() + repr(vars(record)) for record in caplog.records)
