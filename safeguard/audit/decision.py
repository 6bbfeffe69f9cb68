"""What was decided about one image, as typed values, and the record that is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from uuid_utils.compat import uuid7

from safeguard.audit.canonical import Record, plain, rfc3339
from safeguard.errors import AuditError

SCHEMA = "safeguard.dev/decision/v2"  # another name whenever a field is renamed, removed or means something else
READABLE = ("safeguard.dev/decision/v1", SCHEMA)  # v1, of 0.1, calls the field `redacted` `erased`
RESULTS = ("erase", "block", "flag", "review", "pass")
STATUSES = ("ok", "degraded", "error")
SOURCES = ("prompt", "prompt_embeds", "direct")

_REVISION = re.compile(r"[0-9a-f]{64}")


def new_decision_id() -> str:
    """A uuid7: unique, and sorted by time."""
    return str(uuid7())


def is_revision(text: object) -> bool:
    """Whether ``text`` is a hex SHA-256, and so safe as a file name."""
    return isinstance(text, str) and _REVISION.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asked for what. ``prompt`` stays in memory: what of it reaches the record is up to the capture mode.

    ``source``: ``prompt`` (text), ``prompt_embeds`` (no text was given) or ``direct`` (a denoiser called outside the
    guard). ``row`` is the image's place in its batch.
    """

    prompt: str | None = field(default=None, repr=False)  # repr ends up in logs and tracebacks
    source: str = "prompt"
    row: int = 0


@dataclass(frozen=True, slots=True)
class Screen:
    """What the screener said of this row: scores in 0..1 and the threshold, or (low, high), of each concept.

    ``fallback`` says why the screener did not decide (``error``, ``no text``, ...), or is None where it did.
    """

    encoder: str = "none"
    scores: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)
    activated: tuple[str, ...] = ()
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class DetectionRecord:
    """What the first call of the denoiser showed of one concept: a score in standard deviations above what harmless prompts
    show, its threshold, whether that opened the concept's erasure, and the step.
    """

    score: float
    threshold: float
    opened: bool
    step: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """By which calibration (its digest) evidence was read, and what was seen of the concepts that it was asked about."""

    calibration: str | None = None
    concepts: Mapping[str, DetectionRecord] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effect:
    """Evidence from this image: the share of attention that the concept took, in the mean and step by step (``course``: step
    and share), and the relative change of the output. The record holds the first and the last share of the course.
    """

    mass: float | None = None
    relative_change: float | None = None
    course: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Residual:
    """What the last call of the denoiser still showed of an erased concept: a score in standard deviations above what pictures
    of ordinary prompts show, the threshold, and whether the erasure was ``enough``: the score is below it.
    """

    score: float
    threshold: float
    enough: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """One concept acted on: by which eraser, how strongly, in which steps (first and last actually run), at how many
    sites. ``adapter`` is the digest of the file by which it acted, for an eraser that is trained. ``residual`` is None where
    nobody could say what was left. ``raised`` says from which step on a strength that follows what is left was which.
    """

    concept: str
    eraser: str
    version: str
    strength: float
    strength_word: str | None = None
    steps: tuple[int, int] | None = None
    sites: int = 0
    effect: Effect = Effect()
    adapter: str | None = None
    residual: Residual | None = None
    raised: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GroupChoice:
    """Which ``concept`` of a group acted in this image, ``of`` those that would have, and by what it was drawn: the state of
    the image's ``generator``, the ``request`` that it was made for, or ``chance``. ``key`` is the digest of that; by it the
    draw can be made again (see ``safeguard.guard.group_choice``).
    """

    group: str
    concept: str
    of: tuple[str, ...]
    by: str
    key: str


@dataclass(frozen=True, slots=True)
class Model:
    """What made the image: the pipeline's class, where it was loaded from, and that place's revision where known."""

    pipeline: str
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """The image: see ``image_digest``; ``size`` is (width, height) in pixels."""

    image_sha256: str
    seed: int | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Milliseconds that the guard took: for screening, and in all beside the pipeline's own work."""

    screen_ms: float | None = None
    overhead_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Everything about one image, as the guard knows it. ``output`` is None where no image was made (blocked).

    ``decision_id`` is set here, not by the log, so that a refusal can name it. Raises AuditError for words that the
    record does not know and for a revision that is no SHA-256.
    """

    policy_name: str
    policy_revision: str
    result: str
    subject: Subject
    model: Model
    screen: Screen = Screen()
    evidence: Evidence = Evidence()
    drawn: tuple[GroupChoice, ...] = ()
    applied: tuple[Applied, ...] = ()
    status: str = "ok"
    output: Output | None = None
    metrics: Metrics = Metrics()
    tenant: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    time: datetime | None = None  # None: when it is appended
    decision_id: str = field(default_factory=new_decision_id)

    def __post_init__(self) -> None:
        _one_of("result", self.result, RESULTS)
        _one_of("status", self.status, STATUSES)
        _one_of("subject.source", self.subject.source, SOURCES)
        if not is_revision(self.policy_revision):
            raise AuditError("policy_revision must be a hex SHA-256: give Policy.revision")
        if self.time is not None and self.time.tzinfo is None:
            raise AuditError("time must have a time zone: use datetime.now(timezone.utc)")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise AuditError(f"{name} must be one of {', '.join(known)}")


def to_record(decision: Decision, labels: Mapping[str, str], now: datetime) -> Record:
    """The unmasked record: plain JSON values, prompt text still in ``subject.prompt``, not yet in a chain."""
    subject, screen, model = decision.subject, decision.screen, decision.model
    drawn = {"drawn": [_drawn(item) for item in decision.drawn]} if decision.drawn else {}  # most policies have no groups
    return {
        "schema": SCHEMA,
        "decision_id": plain(decision.decision_id),
        "time": rfc3339(decision.time or now),
        "labels": dict(labels),
        "policy": {"name": plain(decision.policy_name), "revision": decision.policy_revision},
        "tenant": plain(decision.tenant, "/tenant"),
        "request_id": plain(decision.request_id, "/request_id"),
        "trace_id": plain(decision.trace_id, "/trace_id"),
        "subject": {
            "prompt": plain(subject.prompt, "/subject/prompt"),
            "prompt_chars": None if subject.prompt is None else len(subject.prompt),
            "source": subject.source,
            "row": plain(subject.row),
        },
        "screen": {
            "encoder": plain(screen.encoder),
            "scores": plain(screen.scores, "/screen/scores"),
            "thresholds": plain(screen.thresholds, "/screen/thresholds"),
            "activated": plain(screen.activated),
            "fallback": plain(screen.fallback),
        },
        "evidence": {
            "calibration": decision.evidence.calibration,
            "concepts": {plain(name): _seen(item) for name, item in decision.evidence.concepts.items()},
        },
        **drawn,
        "applied": [_applied(item) for item in decision.applied],
        "result": decision.result,
        "status": decision.status,
        "model": {"pipeline": plain(model.pipeline), "repo": plain(model.repo), "revision": plain(model.revision)},
        "output": _output(decision.output),
        "metrics": {
            "screen_ms": plain(decision.metrics.screen_ms, "/metrics/screen_ms"),
            "overhead_ms": plain(decision.metrics.overhead_ms, "/metrics/overhead_ms"),
        },
        "redacted": [],
        "masked": [],
    }


def _seen(seen: DetectionRecord) -> Record:
    return {
        "score": plain(seen.score, "/evidence/score"),
        "threshold": plain(seen.threshold, "/evidence/threshold"),
        "opened": seen.opened,
        "step": plain(seen.step),
    }


def _drawn(drawn: GroupChoice) -> Record:
    return {
        "group": plain(drawn.group),
        "concept": plain(drawn.concept),
        "of": plain(drawn.of),
        "by": drawn.by,
        "key": drawn.key,
    }


def _applied(applied: Applied) -> Record:
    effect = applied.effect
    trained = {} if applied.adapter is None else {"adapter": plain(applied.adapter)}  # most erasers need no training
    return {
        "concept": plain(applied.concept),
        "eraser": plain(applied.eraser),
        "version": plain(applied.version),
        **trained,
        "strength": plain(applied.strength, "/applied/strength"),
        "strength_word": plain(applied.strength_word),
        "steps": plain(applied.steps, "/applied/steps"),
        "sites": plain(applied.sites, "/applied/sites"),
        "effect": {
            "mass": plain(effect.mass, "/applied/effect/mass"),
            "mass_first": plain(effect.course[0][1] if effect.course else None, "/applied/effect/mass_first"),
            "mass_last": plain(effect.course[-1][1] if effect.course else None, "/applied/effect/mass_last"),
            "relative_change": plain(effect.relative_change, "/applied/effect/relative_change"),
        },
        **({"raised": plain(applied.raised, "/applied/raised")} if applied.raised else {}),
        **({} if applied.residual is None else {"residual": _residual(applied.residual)}),  # where the calibration reads it
    }


def _residual(residual: Residual) -> Record:
    return {
        "score": plain(residual.score, "/applied/residual/score"),
        "threshold": plain(residual.threshold, "/applied/residual/threshold"),
        "enough": residual.enough,
    }


def _output(output: Output | None) -> Record | None:
    if output is None:
        return None
    return {
        "image_sha256": plain(output.image_sha256),
        "seed": plain(output.seed, "/output/seed"),
        "size": plain(output.size, "/output/size"),
    }
