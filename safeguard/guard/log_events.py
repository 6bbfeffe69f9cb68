"""The log lines of a guard: which policy is active, why one was refused, and one line at DEBUG for each request."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from safeguard._log import get_logger
from safeguard.audit import Metrics
from safeguard.errors import PolicyError
from safeguard.guard.request import Request
from safeguard.policy import Policy

_log: Final = get_logger("safeguard.guard")


def policy_activated(policy: Policy, pipeline: str, previous: Policy | None) -> None:
    """A policy holds from now on. ``previous`` held before, if any did."""
    _log.info(
        "policy_activated",
        policy=policy.name,
        revision=policy.revision,
        previous_revision=None if previous is None else previous.revision,
        pipeline=pipeline,
        concepts=len(policy.concepts),
    )


@contextmanager
def saying_why(source: Any, pipeline: str, active: Policy | None = None) -> Iterator[None]:
    """Write a line where the policy of ``source`` cannot be used, which is found inside. ``active`` stays, if there is one."""
    try:
        yield
    except Exception as fault:
        _log.warning(
            "policy_refused",
            source=source.name if isinstance(source, Policy) else str(source),
            error=type(fault).__name__,
            reason="; ".join(map(str, fault.problems)) if isinstance(fault, PolicyError) else str(fault),
            active_revision=None if active is None else active.revision,
            pipeline=pipeline,
        )
        raise


def policy_reload_failed(path: Any, fault: Exception) -> None:
    """A policy file changed and cannot be used; why is in the line before. It is tried again when a file changes."""
    _log.info("policy_reload_failed", source=str(path), error=type(fault).__name__)


def denoiser_called_directly(policy: Policy, pipeline: str) -> None:
    """The denoiser ran outside every guarded call: every row got the whole policy."""
    _log.info("denoiser_called_directly", revision=policy.revision, pipeline=pipeline)


@contextmanager
def request_line(request: Request, policy: Policy, pipeline: str) -> Iterator[None]:
    """Write one line when the call that runs inside is over: with images, or refused, or with an error."""
    if not logging.getLogger("safeguard.guard").isEnabledFor(logging.DEBUG):
        yield
        return
    earlier, begun, error = len(request.decisions), time.perf_counter(), None
    try:
        yield
    except BaseException as fault:
        error = type(fault).__name__
        raise
    finally:
        decisions = request.decisions[earlier:]
        metrics = decisions[0].metrics if decisions else Metrics()
        _log.debug(
            "request_ended",
            request_id=request.request_id,
            trace_id=request.trace_id,
            tenant=request.tenant,
            policy=policy.name,
            revision=policy.revision,
            pipeline=pipeline,
            decision_ids=[decision.decision_id for decision in decisions],
            results=dict(Counter(decision.result for decision in decisions)),
            statuses=dict(Counter(decision.status for decision in decisions)),
            applied=sum(len(decision.applied) for decision in decisions),
            screen_ms=_rounded(metrics.screen_ms),
            overhead_ms=_rounded(metrics.overhead_ms),
            total_ms=_rounded((time.perf_counter() - begun) * 1e3),
            error=error,
        )


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
