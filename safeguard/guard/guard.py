"""The ``Guard`` of one pipeline: the walk of a request, swapping of policies, status and release."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from safeguard.audit import AuditLog, AuditSink, Decision, Model
from safeguard.errors import CapabilityError, PolicyError, PolicyViolation, Problem
from safeguard.guard import log_events, observers, records, request_run
from safeguard.guard.call_args import PipelineCall, read_call
from safeguard.guard.decide import CallVerdict, ScreenLike, chosen_screener, decide, in_force, refuses_embeds, undecided
from safeguard.guard.pipeline_class import unwrap, wrap
from safeguard.guard.records import CallFacts
from safeguard.guard.reload import Watcher
from safeguard.guard.request import Request
from safeguard.guard.status import Status
from safeguard.instrument import OFFERED, Attachment, SelfTest
from safeguard.plan.calibration import Calibration
from safeguard.plan.compile import Plan, compile_plan
from safeguard.plan.detectors import ProbeFinished
from safeguard.plan.registry import Registry
from safeguard.plan.request_state import RequestState
from safeguard.policy import Policy, load_policy

PolicySource = str | os.PathLike[str] | Policy
_guarded_denoisers: Final[weakref.WeakKeyDictionary[Any, str]] = weakref.WeakKeyDictionary()
_REQUEST: Final[ContextVar[Request | None]] = ContextVar("safeguard_request", default=None)


class Guard:
    """The guard of one pipeline. Made by `protect`; a context manager that releases at its end."""

    def __init__(
        self,
        pipe: Any,
        policy: PolicySource,
        audit: str | os.PathLike[str] | AuditSink | None,
        screener: ScreenLike | str | None,
        example: Mapping[str, Any] | None = None,
        calibration: str | os.PathLike[str] | Calibration | None = None,
        erasers: Sequence[type] = (),
    ) -> None:
        with log_events.saying_why(policy, type(pipe).__name__):
            first = loaded(policy)
        self._calibration = Calibration.load(calibration) if isinstance(calibration, (str, os.PathLike)) else calibration
        self._pipe = pipe
        self._registry = Registry(classes=erasers)
        self._screener = chosen_screener(screener)
        self._attachment = Attachment(pipe, example)
        for name, denoiser in self._attachment.denoisers.items():
            if denoiser in _guarded_denoisers:
                raise CapabilityError(
                    f"component {name!r} is shared with a {_guarded_denoisers[denoiser]} that is guarded already: calls "
                    "through this pipeline get that guard's whole policy in every row; release that guard to protect this one",
                    pipeline=type(pipe).__name__,
                    missing=name,
                )
        self._owns_audit = isinstance(audit, (str, os.PathLike))
        self._audit: AuditSink | None = AuditLog(audit) if isinstance(audit, (str, os.PathLike)) else audit
        self._swapping = threading.RLock()
        self._counting = threading.Lock()
        self._under_way = 0
        self._watchers: list[Watcher] = []
        self._last_request: str | None = None
        self._last_error: str | None = None
        self._direct_calls = 0
        self._released = False
        try:
            self._attachment.install()
            self._probe = SelfTest(self._attachment)
            with log_events.saying_why(policy, self._attachment.name):
                self._activate(self._prepared(first))
            self._attachment.hooks.on_direct = self._on_direct
            attachment = self._attachment
            wrap(pipe, self, self._call, attachment.number, attachment.encoding.lock, attachment.roles.note)
        except BaseException:
            self._attachment.hooks.plan = None
            self._attachment.remove()
            self._close_audit()
            raise
        for denoiser in self._attachment.denoisers.values():
            _guarded_denoisers[denoiser] = self._attachment.name

    def __repr__(self) -> str:
        state = "released" if self._released else f"policy {self.policy.name!r} {self.policy.revision[:12]}"
        return f"<Guard of {self._attachment.name}: {state}, {len(self._attachment.sites)} text sites>"

    @property
    def attachment(self) -> Attachment:
        """The seams of the pipeline as they were found."""
        return self._attachment

    # policies

    @property
    def policy(self) -> Policy:
        """The policy that new requests get."""
        return self._plan.policy

    def swap(self, policy: PolicySource) -> str:
        """Replace the policy. New requests get the new one; running requests keep the one that they started with. Stable.

        Args:
            policy: A path, ``builtin://NAME`` or a `Policy`. It is loaded, compiled and tested before it is used.

        Returns:
            The revision of the new policy.

        Raises:
            SafeguardError: What `protect` raises. Then the previous policy stays active, and the status has the error.
        """
        with self._swapping:
            self._require_attached()
            try:
                with log_events.saying_why(policy, self._attachment.name, self._plan.policy):
                    self._activate(self._prepared(loaded(policy)))
            except Exception as fault:
                self._last_error = f"{type(fault).__name__}: {fault}"
                raise
            return self._plan.policy.revision

    def watch(self, path: str | os.PathLike[str]) -> None:
        """Swap to the policy in a file now, and again whenever it, or a file that it extends, changes on disk. Stable.

        Args:
            path: The policy file. Later invalid versions are ignored; ``status().last_error`` says why.

        Raises:
            SafeguardError: What `swap` raises for the present version.
        """
        source = Path(path)

        def swap_in() -> tuple[Path, ...]:
            with self._swapping:
                self.swap(source)
                return self.policy.files

        watcher = Watcher(source, swap_in)
        with self._swapping:
            self._require_attached()
            self._watchers.append(watcher)
            watcher.start()

    def _prepared(self, policy: Policy) -> Plan:
        if self._calibration is not None:
            self._attachment.require(self._calibration)
        plan = compile_plan(policy, self._attachment, self._registry, OFFERED, self._calibration)
        self._probe.test(plan)
        prepare = getattr(self._screener, "prepare", None)
        if prepare is not None:
            prepare(policy.concepts)
        return plan

    def _activate(self, plan: Plan) -> None:
        if self._audit is not None:
            self._audit.store_policy(plan.policy.revision, plan.policy.canonical)
        self._attachment.serve(plan)
        previous = self._attachment.hooks.plan
        self._plan = plan
        self._attachment.hooks.plan = plan
        self._last_activation = _now()
        self._last_error = None
        log_events.policy_activated(plan.policy, self._attachment.name, None if previous is None else previous.policy)

    # requests

    @contextmanager
    def request(
        self,
        request_id: str | None = None,
        tenant: str | None = None,
        trace_id: str | None = None,
        *,
        maps: bool = False,
    ) -> Iterator[Request]:
        """Label the calls made inside the block, and collect what was decided about them. Stable.

        Args:
            request_id: Your name for the request; records have it.
            tenant: The customer that it is for; records have it.
            trace_id: The trace that it belongs to; records have it.
            maps: Also keep where in each image the concepts were, in ``request.maps``.

        Yields:
            The request. Its ``decisions`` has one decision for each image.
        """
        request = Request(request_id, tenant, trace_id, wants_maps=maps)
        token = _REQUEST.set(request)
        try:
            yield request
        finally:
            _REQUEST.reset(token)

    def look(self, *args: Any, at: str = "first", **kwargs: Any) -> list[dict[float, list[list[float]]]]:
        """The features (`safeguard.plan.detectors.ConceptProbe`) of each image of one call of the pipeline, which ends as soon
        as they are seen and gives no image: [watched concepts][features] by the share of the schedule. ``at`` is ``first`` for
        those that evidence is read by, or ``last`` for those that say what is left, on the way and at the end.
        """
        request = Request(only_looks=at)
        token = _REQUEST.set(request)
        try:
            self._pipe(*args, **kwargs)
        finally:
            _REQUEST.reset(token)
        return request.features

    def _call(self, pipe: Any, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The walk of one request: take a plan, decide, run, record."""
        with self._counted():
            plan, request = self._plan, _REQUEST.get() or Request()
            with log_events.request_line(request, plan.policy, self._attachment.name):
                return self._walk(plan, request, pipe, run, args, kwargs)

    def _walk(self, plan: Plan, request: Request, pipe: Any, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        begun = time.perf_counter()
        self._attachment.ensure(pipe)
        if self._calibration is not None and plan.watch is not None:
            self._attachment.require(self._calibration)
        self._last_request = _now()
        call = read_call(self._attachment.base, pipe, args, kwargs)
        if refuses_embeds(plan.policy, call):
            raise self._refusal(plan, call, CallVerdict((), (), "none", 0.0), request, "embeddings without text")
        verdict = decide(plan, call, self._screener, request.request_id, len(request.decisions))
        if any(row.result == "block" for row in verdict.rows):
            raise self._refusal(plan, call, verdict, request, "")
        states: list[RequestState] = []
        took = 0.0

        def started(verdict: CallVerdict) -> RequestState:
            states.append(request_run.begin(plan, call, verdict, self._attachment, request, pipe))
            return states[-1]

        def body() -> Any:
            nonlocal took
            before = time.perf_counter()
            output = run(*args, **kwargs)
            took = time.perf_counter() - before  # of two runs, one is what the pipeline would have taken
            return output

        try:
            ran = request_run.run(started, verdict, call, body)
        except ProbeFinished:
            request.features.extend(records.features_of(states[-1]))
            return None
        except Exception:
            self._record(plan, request, records.failed(self._facts(plan, call, verdict, request, pipe)))
            raise
        overhead = (time.perf_counter() - begun - took) * 1e3
        decisions = records.finished(self._facts(plan, call, verdict, request, pipe), ran, overhead)
        self._record(plan, request, decisions)
        if ran.withheld:
            raise _withheld(ran, decisions)
        if request.wants_maps:
            request.maps.extend(records.maps_of(plan, ran.state, len(decisions)))
        return ran.output

    def _facts(self, plan: Plan, call: PipelineCall, verdict: CallVerdict, request: Request, pipe: Any) -> CallFacts:
        return CallFacts(plan, call, verdict, self._model(pipe), request.who())

    def _model(self, pipe: Any) -> Model:
        return records.model_of(pipe, self._attachment.base)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the request as under way: while one is, a release leaves the hooks to it."""
        with self._counting:
            self._require_attached()
            self._under_way += 1
        try:
            yield
        finally:
            with self._counting:
                self._under_way -= 1
                last = self._released and self._under_way == 0
            if last:
                self._detach()

    def _refusal(self, plan: Plan, call: PipelineCall, verdict: CallVerdict, request: Request, reason: str) -> PolicyViolation:
        """Record a refusal, and make the error that tells of it."""
        rows = [index for index, row in enumerate(verdict.rows) if row.result == "block"]
        if not verdict.rows:
            rows = [index for index, row in enumerate(call.rows) if not row.readable]
            verdict = undecided(plan, call)
        decisions = records.refused(self._facts(plan, call, verdict, request, self._pipe), rows)
        self._record(plan, request, decisions)
        concepts = dict.fromkeys(name for row in rows for name in verdict.rows[row].blocked)
        ids = [decision.decision_id for decision in decisions]
        return PolicyViolation(
            list(concepts), plan.policy.revision, ids, reason and f"{reason} are refused by settings.prompt_embeds"
        )

    def _record(self, plan: Plan, request: Request, decisions: Sequence[Decision]) -> None:
        if self._audit is not None and decisions:
            self._audit.append(decisions, capture=plan.policy.settings.capture)
        request.decisions.extend(decisions)
        observers.tell(decisions)

    def _on_direct(self, plan: Plan) -> None:
        self._direct_calls += 1
        log_events.denoiser_called_directly(plan.policy, self._attachment.name)
        self._record(plan, Request(), [records.direct(plan, self._model(self._pipe))])

    # standing

    def status(self) -> Status:
        """The present state of this guard: policy, erasers, screener, last error. Stable."""
        plan = self._plan
        return Status(
            name=plan.policy.name,
            pipeline=self._attachment.name,
            active_revision=plan.policy.revision,
            last_request=self._last_request,
            last_successful_activation=self._last_activation,
            last_error=self._last_error,
            erasers=tuple(dict.fromkeys(f"{item.eraser.name} {item.eraser.version}" for item in plan.concepts)),
            screener=None if self._screener is None else self._screener.name,
            activations={name: in_force(plan, concept) for name, concept in plan.policy.concepts.items()},
            calibration=plan.calibration,
            sites=len(self._attachment.sites),
            direct_calls=self._direct_calls,
            released=self._released,
        )

    def release(self) -> None:
        """Remove every hook and restore the pipeline's class. Its weights were never changed. May be called twice. Stable.

        Running requests stay protected: the last of them removes the hooks when it ends.
        """
        with self._swapping, self._counting:
            if self._released:
                return
            self._released = True
            unwrap(self._pipe)
            idle = self._under_way == 0
        for watcher in self._watchers:
            watcher.stop()
        if idle:
            self._detach()

    def _detach(self) -> None:
        self._attachment.hooks.plan = None
        self._attachment.remove()
        for denoiser in self._attachment.denoisers.values():
            _guarded_denoisers.pop(denoiser, None)
        self._close_audit()

    def _close_audit(self) -> None:
        if self._owns_audit and self._audit is not None:
            self._audit.close()

    def _require_attached(self) -> None:
        if self._released:
            raise CapabilityError("this guard was released; protect the pipeline again", pipeline=self._attachment.name)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def loaded(policy: PolicySource) -> Policy:
    """The policy that a user means. Raises PolicyError."""
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, (str, os.PathLike)):
        raise PolicyError(
            [Problem(type(policy).__name__, 0, 0, "", "this is no policy", "give a path, builtin://NAME or a Policy")]
        )
    return load_policy(policy)


def _withheld(ran: request_run.Ran, decisions: Sequence[Decision]) -> PolicyViolation:
    """The error that tells of images in which too much of a concept was left."""
    concepts = list(dict.fromkeys(name for names in ran.withheld.values() for name in names))
    ids = [decision.decision_id for decision in decisions if decision.result == "block"]
    reason = f"too much is left of {', '.join(concepts)}, and on_residual withholds the images of the call"
    return PolicyViolation(concepts, ran.state.plan.policy.revision, ids, reason)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
