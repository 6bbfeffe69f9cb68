"""Which concepts act in which row, and whether the request may run at all."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from safeguard.audit import GroupChoice
from safeguard.errors import CapabilityError, SafeguardError, ScreenError
from safeguard.guard.call_args import PipelineCall, PromptRow
from safeguard.guard.group_choice import Key, choose, keys_of
from safeguard.plan.compile import Plan
from safeguard.plan.detectors import LAST, SHARES, ProbeRun, ResidualRun
from safeguard.policy import Concept, Policy
from safeguard.sdk.eraser import AUTO

RESULTS: Final = ("block", "review", "erase", "flag", "pass")  # the first that holds is the result


class ScreenLike(Protocol):
    """Whatever screens prompts: ``safeguard.screening.Screener``, or an object of the user's."""

    @property
    def name(self) -> str: ...

    def screen(self, texts: Sequence[str], concepts: Mapping[str, Concept] | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """What was decided for one prompt, or one image. ``strengths`` has one number a concept of the plan; ``watched`` are the
    concepts that evidence may still open, ``passed_over`` those that do not act because another of their group was ``drawn``.
    """

    result: str
    strengths: tuple[float, ...]
    erased: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    drawn: tuple[GroupChoice, ...] = ()
    passed_over: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    activated: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None
    thresholds: Mapping[str, tuple[float, float]] | None = None
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class CallVerdict:
    """The decisions of one call, for each prompt and for each image (for which one of a group is drawn), and what screening
    took. ``degraded``: a part failed and the policy lets the call go on.
    """

    rows: tuple[RowVerdict, ...]
    images: tuple[RowVerdict, ...]
    encoder: str
    milliseconds: float
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    """What the screener said of one row: scores, and concepts over the low and over the high threshold."""

    scores: Mapping[str, float]
    low: frozenset[str]
    severe: frozenset[str]


def decide(
    plan: Plan, asked: PipelineCall, screener: ScreenLike | None, request_id: str | None = None, earlier: int = 0
) -> CallVerdict:
    """Decide every row of a call, made for a request in which ``earlier`` images were made before.

    Raises ScreenError if prompts cannot be screened and the policy's ``on_error`` is ``block``; with ``allow`` the whole
    policy acts instead, and the record says so.
    """
    begun = time.perf_counter()
    policy = plan.policy
    watched = {name: concept for name, concept in policy.concepts.items() if concept.activation != "off"}
    readings: list[_Found | None] = [None] * len(asked.rows)
    thresholds: dict[str, tuple[float, float]] = {}
    encoder, fallback = "none", "no screener" if screener is None else None
    if screener is not None and watched:
        try:
            encoder, thresholds, readings = _screen(screener, watched, asked)
        except Exception as fault:  # noqa: BLE001 - it decides whether the request goes on
            if policy.settings.on_error == "block":
                raise _as_screen_error(fault) from None  # what a screener raises may quote the prompt
            fallback = "error"

    def row_of(prompt: int, key: Key | None) -> RowVerdict:
        return _decide_row(plan, watched, asked.rows[prompt], readings[prompt], thresholds, fallback, key)

    rows = tuple(row_of(prompt, None) for prompt in range(len(asked.rows)))
    images = tuple(row for row in rows for _ in range(asked.per_prompt))
    if policy.groups:
        keys = keys_of(asked, request_id, earlier)
        images = tuple(row_of(image // asked.per_prompt, key) for image, key in enumerate(keys))
    return CallVerdict(rows, images, encoder, (time.perf_counter() - begun) * 1e3, degraded=fallback == "error")


def _as_screen_error(fault: Exception) -> Exception:
    if isinstance(fault, SafeguardError):
        return fault
    return ScreenError(
        f"the screener failed ({type(fault).__name__}), so the request is refused; "
        "mend the screener, or set settings.on_error: allow to go on with the whole policy active"
    )


def _screen(
    screener: ScreenLike, watched: Mapping[str, Concept], asked: PipelineCall
) -> tuple[str, dict[str, tuple[float, float]], list[_Found | None]]:
    """One encode for every text field of every row. A negative text opens erasure; it is severe if guidance is turned round."""
    texts = list(dict.fromkeys(text for row in asked.rows for text in (*row.texts, *row.negative)))
    if not texts:
        return "none", {}, [None] * len(asked.rows)
    place = {text: index for index, text in enumerate(texts)}
    seen = screener.screen(texts, watched)
    _check(seen, watched, len(texts))
    thresholds = {name: (float(low), float(high)) for name, low, high in zip(seen.concepts, seen.low, seen.high, strict=True)}
    rows: list[_Found | None] = []
    for row in asked.rows:
        if not row.texts:
            rows.append(None)
            continue
        fields = [place[text] for text in (*row.texts, *row.negative)]
        own = fields if asked.inverted else [place[text] for text in row.texts]
        scores = {name: max(float(seen.scores[field][k]) for field in fields) for k, name in enumerate(seen.concepts)}
        low = frozenset(name for field in fields for name in seen.activated(field))
        severe = frozenset(name for field in own for name in seen.severe(field))
        rows.append(_Found(scores, low, severe))
    return str(seen.encoder), thresholds, rows


def _check(seen: Any, watched: Mapping[str, Concept], texts: int) -> None:
    """A screener that answers for fewer texts or concepts than it was asked, or without a number, has not screened."""
    left_out = [name for name in watched if name not in seen.concepts]
    if left_out:
        raise ScreenError(f"the screener gave no score for concept {left_out[0]!r}; mend the screener")
    if len(seen.scores) != texts:
        raise ScreenError(f"the screener was asked about {texts} texts and answered for {len(seen.scores)}; mend the screener")
    if not all(math.isfinite(score) for row in seen.scores for score in row):
        raise ScreenError("the screener gave a score that is not a finite number; mend the screener")


def _decide_row(
    plan: Plan,
    watched: Mapping[str, Concept],
    row: PromptRow,
    reading: _Found | None,
    thresholds: Mapping[str, tuple[float, float]],
    fallback: str | None,
    key: Key | None,
) -> RowVerdict:
    """``key``: of the image that this is for, by which one of each group is drawn; without one all of them act."""
    strengths = [0.0] * len(plan.concepts)
    acting, looked_for, results = list[str](), list[str](), {"pass"}
    severe = reading.severe if reading is not None else frozenset()
    for name, concept in watched.items():
        opened = not row.readable or fallback == "error" or (reading is not None and name in reading.low)
        acts = opened or reading is None or concept.activation in ("always", "adaptive")
        if concept.action == "block" and name in severe:
            results.add("block")
        if concept.action == "review" and name in severe:
            results.add("review")
        if concept.action == "flag":
            results |= {"flag"} if reading is not None and name in reading.low else set()
        elif name in plan.watched and not opened:
            looked_for.append(name)
        elif name in plan.columns and acts:
            acting.append(name)
    drawn = () if key is None else choose(_groups(plan.policy, acting), key)
    passed_over = tuple(name for choice in drawn for name in choice.of if name != choice.concept)
    for name in acting:
        if name not in passed_over:
            planned = plan.concepts[plan.columns[name]]
            strengths[planned.column] = planned.strength.value
    erased = tuple(name for name in acting if strengths[plan.columns[name]] > 0)
    results |= {"erase"} if erased else set()
    return RowVerdict(
        result=next(result for result in RESULTS if result in results),
        strengths=tuple(strengths),
        erased=erased,
        watched=tuple(looked_for),
        drawn=drawn,
        passed_over=passed_over,
        blocked=tuple(name for name, concept in watched.items() if concept.action == "block" and name in severe),
        activated=tuple(name for name in watched if reading is not None and name in reading.low),
        scores=None if reading is None else reading.scores,
        thresholds=thresholds,
        fallback=fallback if fallback is not None else (None if row.readable else "no text"),
    )


def _groups(policy: Policy, names: Collection[str]) -> dict[str, list[str]]:
    """The groups of a policy, of these concepts alone."""
    groups = {group: [name for name in members if name in names] for group, members in policy.groups.items()}
    return {group: members for group, members in groups.items() if members}


def with_erasure(result: str) -> str:
    """The result of a row in which something is erased besides."""
    return min(result, "erase", key=RESULTS.index)


def watching(plan: Plan, decided: CallVerdict, per_prompt: int, sites: int, *, only: bool) -> ProbeRun | None:
    """What evidence may still open in each image of a call; with ``only`` nothing is opened."""
    if plan.watch is None:
        return None
    full = {name: plan.concepts[plan.columns[name]].strength.value for name in plan.watched}
    prompts = [[full[name] if name in row.watched else 0.0 for name in plan.watched] for row in decided.rows]
    images = [strengths for strengths in prompts for _ in range(per_prompt)]
    return ProbeRun(plan.watch, plan.gauges, images, sites, only, plan.watched_step)


def reading(plan: Plan, sites: int, *, only: bool) -> ResidualRun | None:
    """What is read of the concepts that acted, in the last step and where the strength of one of them follows it, on the way;
    with ``only`` of all images, and nothing is judged.
    """
    if plan.watch is None or not (only or plan.residuals):
        return None
    bounds = [plan.concepts[plan.columns[name]].strength.bound for name in plan.watched]
    if only:
        return ResidualRun(plan.watch, dict.fromkeys((*SHARES, LAST), (None,) * len(bounds)), bounds, sites, only)
    follows = any(bound > 1 for bound in bounds)
    gauges = {share: of for share, of in plan.residuals.items() if follows or share == LAST}
    return ResidualRun(plan.watch, gauges, bounds, sites)


def in_force(plan: Plan, concept: Concept) -> str:
    """How a concept is activated under a plan, in words, and what it lacks."""
    if concept.activation == "adaptive" and concept.id in plan.columns and concept.id not in plan.watched:
        words = "adaptive (not calibrated: acts in every image)"
    else:
        words = concept.activation if concept.one_of is None else f"{concept.activation}, one of {concept.one_of}"
    if concept.strength == AUTO and concept.id in plan.columns and not plan.follows(concept.id):
        words += ", strength auto stays at strong (nothing reads on the way what is left)"
    return words


def refuses_embeds(policy: Policy, asked: PipelineCall) -> bool:
    """Whether the policy refuses this call because a row brings embeddings, or no text."""
    return policy.settings.prompt_embeds == "refuse" and any(not row.readable for row in asked.rows)


def undecided(plan: Plan, asked: PipelineCall) -> CallVerdict:
    """What stands on record of a call that is refused because there is no text to decide by."""
    row = RowVerdict("block", (0.0,) * len(plan.concepts), fallback="no text")
    return CallVerdict((row,) * len(asked.rows), (row,) * asked.images, "none", 0.0)


def chosen_screener(screener: ScreenLike | str | None) -> ScreenLike | None:
    """The screener that `protect` was asked for. Raises CapabilityError for a word that names none."""
    if isinstance(screener, str):
        if screener != "default":
            raise CapabilityError('screener must be None, "default", or an object with name and screen(texts, concepts)')
        from safeguard.screening import Screener

        return Screener()
    return screener
