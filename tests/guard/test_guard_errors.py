"""When a part fails: the policy says whether the request does; nothing that was promised is dropped in silence."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.audit import AuditLog, MemorySink, verify
from safeguard.errors import AuditError, CapabilityError, PolicyViolation, ScreenError
from safeguard.plan.registry import GROUP
from safeguard.plan.request_state import current_request
from safeguard.sdk.calls import SiteEffect
from safeguard.sdk.seams import PredictionEdit, Seam, TextSiteEdit, TextStatesEdit
from tests.support.contract_policies import Words, concept, policy, rows_changed, same
from tests.support.families import PROMPTS, denoiser_call, generate

Pipe = Any
Protect = Callable[..., Any]


class FaultyError(RuntimeError):
    """What the erasers of these tests raise."""


def fail_in_requests() -> None:
    """Raise in requests; the self-test, which goes through no schedule, is let through."""
    state = current_request()
    if state is not None and state.facts.scheduler is not None:
        raise FaultyError("an edit that fails")


class _SiteFault(TextSiteEdit):
    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = tuple(concepts)

    def select(self, columns: Sequence[int]) -> TextSiteEdit:
        return self

    def __call__(self, call: Any) -> Any:
        fail_in_requests()
        return SiteEffect(torch.ones_like(call.output) * call.strengths.amax())


class _StatesFault(TextStatesEdit):
    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = tuple(concepts)

    def __call__(self, call: Any) -> Any:
        fail_in_requests()
        return call.states + call.strengths.amax()


class _PredictionFault(PredictionEdit):
    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = tuple(concepts)

    def __call__(self, call: Any) -> Any:
        fail_in_requests()
        return call.prediction + call.strengths.amax()


class _Faulty:
    api = (1, 0)
    version = "1"
    strengths = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}  # noqa: RUF012
    params: dict[str, Any] = {}  # noqa: RUF012
    kind: Any

    def edits(self, concepts: Sequence[Any], params: Any, pipeline: Any) -> Sequence[Any]:
        return [self.kind([one.id for one in concepts])]


class SiteFaulty(_Faulty):
    name, kind, seams = "site_faulty", _SiteFault, frozenset({Seam.TEXT_SITE})


class StatesFaulty(_Faulty):
    name, kind, seams = "states_faulty", _StatesFault, frozenset({Seam.TEXT_STATES})


class PredictionFaulty(_Faulty):
    name, kind, seams = "prediction_faulty", _PredictionFault, frozenset({Seam.PREDICTION})


FAULTY = [SiteFaulty, StatesFaulty, PredictionFaulty]


@pytest.fixture
def faulty_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution on the path that registers the faulty erasers."""
    info = tmp_path / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n", "utf-8")
    lines = [f"{kind.name} = {__name__}:{kind.__name__}" for kind in FAULTY]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("faulty_installed")
@pytest.mark.parametrize("kind", FAULTY, ids=lambda kind: kind.name)
def test_an_edit_that_fails_fails_the_request(kind: Any, pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    protect(pipe, policy(concept("blood", eraser=kind.name)), audit=sink)
    with pytest.raises(FaultyError):
        generate(pipe, PROMPTS)
    assert [record["status"] for record in sink.records] == ["error"] * 3


@pytest.mark.usefixtures("faulty_installed")
@pytest.mark.parametrize("kind", FAULTY, ids=lambda kind: kind.name)
def test_an_edit_that_fails_is_passed_over_where_errors_are_allowed(
    kind: Any, pipe: Pipe, protect: Protect, plain: torch.Tensor
) -> None:
    """The others go on, and the record does not say that all was well."""
    guard = protect(pipe, policy(concept("blood", eraser=kind.name), concept("snow"), on_error="allow"))
    with guard.request() as request:
        found = generate(pipe, PROMPTS)
    assert rows_changed(found, plain) == [False, True, False]
    assert {decision.status for decision in request.decisions} == {"degraded"}
    applied = {one.concept: one.steps for one in request.decisions[1].applied}
    assert applied == {"blood": None, "snow": (0, 1)}


@pytest.mark.usefixtures("faulty_installed")
def test_where_no_edit_failed_the_record_is_not_degraded(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood"), concept("fish", eraser="site_faulty"), on_error="allow"))
    with guard.request() as request:
        generate(pipe, PROMPTS)
    assert {decision.status for decision in request.decisions} == {"ok"}


class Full(MemorySink):
    """A disk that is full from the first decision on."""

    def append(self, decisions: Any, *, capture: str = "hmac") -> Any:
        raise AuditError("no space left on device; make room")


def test_what_cannot_be_recorded_is_not_returned(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood")), audit=Full())
    with guard.request() as request, pytest.raises(AuditError, match="no space left"):
        generate(pipe, PROMPTS)
    assert request.decisions == []


def test_a_refusal_that_cannot_be_recorded_is_an_audit_error(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood", action="block")), audit=Full())
    with pytest.raises(AuditError):
        generate(pipe, ["very blood"])


def test_a_direct_call_that_cannot_be_recorded_is_stopped(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood")), audit=Full())
    with pytest.raises(AuditError), torch.no_grad():
        pipe.unet(torch.zeros(1, 4, 16, 16), 500, torch.zeros(1, 7, 32))


FAR = policy(concept("weapon", eraser="uce", steps=(0.9, 1.0)))  # in no step that a denoiser call at 500 belongs to


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_direct_call_that_was_refused_leaves_forward_protected(compiled: bool, pipe: Pipe, protect: Protect) -> None:
    """What is known of a call ends with it: forward called by itself afterwards is no part of it."""
    call, denoiser = denoiser_call(pipe), torch.compile(pipe.unet, backend="eager") if compiled else pipe.unet
    with torch.no_grad():
        unprotected = pipe.unet.forward(**call).sample
        guard = protect(pipe, policy(concept("weapon", eraser="negative_prompt")))
        with pytest.raises(CapabilityError):
            denoiser(**call)
        guard.swap(FAR)
        assert rows_changed(pipe.unet.forward(**call).sample, unprotected) == [True, True]


def test_a_direct_call_that_failed_leaves_forward_protected(pipe: Pipe, protect: Protect) -> None:
    call = denoiser_call(pipe)
    with torch.no_grad():
        unprotected = pipe.unet.forward(**call).sample
        protect(pipe, FAR)
        with pytest.raises(RuntimeError):
            pipe.unet(**{**call, "sample": call["sample"][:, :3]})
        assert rows_changed(pipe.unet.forward(**call).sample, unprotected) == [True, True]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called: from here on no file takes another byte."""

    def write(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    yield lambda: monkeypatch.setattr(os, "write", write)
    monkeypatch.undo()


def test_a_full_disk_withholds_the_image_and_the_log_stays_sound(
    pipe: Pipe, protect: Protect, tmp_path: Path, full_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditLog(tmp_path) as log:
        protect(pipe, policy(concept("blood")), audit=log)
        generate(pipe, PROMPTS)
        full_disk()
        with pytest.raises(AuditError):
            generate(pipe, PROMPTS)
        monkeypatch.undo()
        generate(pipe, PROMPTS)
    assert verify(tmp_path).ok


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs a size limit on files")
def test_a_limit_on_file_size_withholds_the_image(pipe: Pipe, protect: Protect, tmp_path: Path) -> None:
    import resource
    import signal

    protect(pipe, policy(concept("blood")), audit=tmp_path)
    generate(pipe, PROMPTS)
    (log,) = tmp_path.glob("audit-*.jsonl")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10, hard))
        with pytest.raises(AuditError):
            generate(pipe, PROMPTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    generate(pipe, PROMPTS)
    assert verify(tmp_path).ok


def test_without_hooks_in_the_run_no_image_is_returned(pipe: Pipe, protect: Protect) -> None:
    """Whatever took them off: here a denoiser called through forward() past them, by a class of its own."""
    guard = protect(pipe, policy(concept("blood", eraser="negative_prompt")))
    call, forward = type(pipe.unet).__call__, type(pipe.unet).forward
    try:
        type(pipe.unet).__call__ = forward
        with pytest.raises(CapabilityError, match="by itself"):
            generate(pipe, PROMPTS)
    finally:
        type(pipe.unet).__call__ = call
    guard.release()


SECRET = "zanzibar-9431"


class Gossip(Words):
    """Fails, and quotes the prompt as it does."""

    def screen(self, texts: Any, concepts: Any = None) -> Any:
        raise ValueError(f"cannot read {texts}")


def everything_said(caught: BaseException, records: Sequence[logging.LogRecord]) -> str:
    import traceback

    said = "".join(traceback.format_exception(caught)) + repr(caught)
    return said + "".join(record.getMessage() + repr(vars(record)) for record in records)


@pytest.mark.parametrize(
    ("screener", "options", "kind"),
    [
        (Words(), {"prompts": [f"very blood {SECRET}"]}, PolicyViolation),
        (Gossip(), {"prompts": [f"a boat {SECRET}"]}, ScreenError),
        (Words(), {"prompts": [f"blood {SECRET}"], "audit": Full()}, AuditError),
        (Words(), {"prompts": [f"a boat {SECRET}"], "negative_prompt": [SECRET], "audit": Full()}, AuditError),
    ],
    ids=["refused", "screener", "audit", "negative"],
)
def test_no_prompt_in_an_error_or_a_log_line(
    screener: Any,
    options: dict[str, Any],
    kind: type[Exception],
    pipe: Pipe,
    protect: Protect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = dict(options)
    prompts, audit = options.pop("prompts"), options.pop("audit", None)
    protect(pipe, policy(concept("blood", action="block")), screener=screener, audit=audit)
    with caplog.at_level(logging.DEBUG), pytest.raises(kind) as raised:
        generate(pipe, prompts, **options)
    assert SECRET not in everything_said(raised.value, caplog.records)


def test_no_prompt_in_the_log_of_a_finished_request(pipe: Pipe, protect: Protect, caplog: pytest.LogCaptureFixture) -> None:
    sink = MemorySink()
    guard = protect(pipe, policy(concept("blood")), audit=sink)
    with caplog.at_level(logging.DEBUG), guard.request() as request:
        generate(pipe, [f"blood {SECRET}"])
    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["request_ended"]
    assert SECRET not in "".join(record.getMessage() + repr(vars(record)) for record in caplog.records)
    assert SECRET not in repr(request.decisions) + repr(sink.records) + repr(guard.status())


def test_the_images_of_a_failed_call_do_not_change_the_next(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood")))
    expected = generate(pipe, PROMPTS)
    with pytest.raises(ValueError, match="divisible by 8"):
        generate(pipe, PROMPTS, height=33)
    assert same(generate(pipe, PROMPTS), expected)
