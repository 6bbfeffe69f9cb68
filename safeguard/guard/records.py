"""From a finished call to one decision an image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safeguard.audit import (
    Applied,
    Decision,
    DetectionRecord,
    Effect,
    Evidence,
    Metrics,
    Model,
    Output,
    Residual,
    Screen,
    Subject,
    image_digest,
)
from safeguard.guard.call_args import PipelineCall
from safeguard.guard.decide import CallVerdict, RowVerdict, with_erasure
from safeguard.guard.request_run import Ran
from safeguard.plan.compile import Plan
from safeguard.plan.detectors import FIRST
from safeguard.plan.request_state import AppliedEffect, RequestState
from safeguard.sdk.eraser import AUTO, Strength


def images_of(output: Any) -> list[Any]:
    """The images of a pipeline's output, whatever form they have: PIL images, or slices of an array or a tensor."""
    images = output[0] if isinstance(output, tuple) else _first(output, "images", "frames", "videos")
    if images is None:
        return []
    return list(images)


def _first(output: Any, *names: str) -> Any:
    return next((getattr(output, name) for name in names if getattr(output, name, None) is not None), None)


def describe_output(image: Any, seed: int | None) -> Output:
    """Digest, seed and size of one image. Arrays and latents are digested over type, shape and bytes."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return Output(image_digest(image), seed, image.size)
    array = image.detach().float().cpu().numpy() if hasattr(image, "detach") else image
    head = f"{array.dtype}:{array.shape}:".encode()
    return Output(hashlib.sha256(head + array.tobytes()).hexdigest(), seed, None)


def model_of(pipe: Any, base: type) -> Model:
    config = getattr(pipe, "config", {})
    repo, commit = config.get("_name_or_path"), config.get("_commit_hash")
    repo = repo or getattr(pipe, "_pretrained_model_name_or_path", None)  # where modular pipelines keep it
    return Model(base.__name__, str(repo) if repo else None, str(commit) if commit else None)


def features_of(state: RequestState) -> list[dict[float, list[list[float]]]]:
    """What each image of a call that was only looked at has shown, by the share of its schedule."""
    if state.residual is not None and state.residual.only:
        return [features for _, features in sorted(state.residual.features.items())]
    return [] if state.watching is None else [{FIRST: features} for _, features in sorted(state.watching.features.items())]


def maps_of(plan: Plan, state: RequestState, images: int) -> list[dict[str, Any]]:
    """Where each concept stood in each image: attention mass on the latent's grid."""
    maps: list[dict[str, Any]] = [{} for _ in range(images)]
    for (image, column), total in (state.facts.maps or {}).items():
        if image < images:
            maps[image][plan.concepts[column].concept.id] = total.cpu().numpy()
    return maps


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What every record of one call says: the plan that held, the call, what was decided, the model, and who asked."""

    plan: Plan
    call: PipelineCall
    verdict: CallVerdict
    model: Model
    who: Mapping[str, str | None]

    def decision(self, row: RowVerdict, subject: Subject, **more: Any) -> Decision:
        """One record of this call, of the prompt or image that ``row`` was decided for."""
        common = {"result": row.result, "screen": _screen(self.verdict, row), "model": self.model}
        policy = self.plan.policy
        metrics = Metrics(self.verdict.milliseconds, None)
        fields = {**common, "metrics": metrics, "subject": subject, **self.who, **more}
        return Decision(policy_name=policy.name, policy_revision=policy.revision, **fields)


def finished(facts: CallFacts, ran: Ran, overhead: float) -> list[Decision]:
    """One decision for every image of a finished call. ``overhead`` is in milliseconds."""
    plan, call, verdict, state = facts.plan, facts.call, facts.verdict, ran.state
    effects = state.evidence()
    degraded = verdict.degraded or bool(state.log.errors)
    decisions = []
    images = images_of(ran.output) or [None] * call.images  # an output of a kind unknown here is recorded all the same
    for index, image in enumerate(images):
        prompt = min(index // call.per_prompt, len(call.rows) - 1)
        row = verdict.images[min(index, len(verdict.images) - 1)]
        seen = _seen(state, plan, index)
        opened = [name for name in row.watched if name in seen and seen[name].opened]
        if state.log.unmatched:
            opened = [*row.watched, *row.passed_over]
        seed = call.seeds[index] if index < len(call.seeds) else None
        decisions.append(
            facts.decision(
                row,
                _subject(call, prompt, index),
                result="block" if index in ran.withheld else with_erasure(row.result) if opened else row.result,
                status="error" if ran.withheld and index not in ran.withheld else "degraded" if degraded else "ok",
                screen=_screen(verdict, row, unmatched=bool(state.log.unmatched)),
                evidence=Evidence(plan.calibration, seen),
                drawn=() if state.log.unmatched else row.drawn,
                applied=_applied(state, (*row.erased, *opened), index, effects),
                output=None if image is None or ran.withheld else describe_output(image, seed),
                metrics=Metrics(verdict.milliseconds, overhead),
            )
        )
    return decisions


def refused(facts: CallFacts, rows: Sequence[int]) -> list[Decision]:
    """One decision for every prompt that was refused; no image was made."""
    return [facts.decision(facts.verdict.rows[row], _subject(facts.call, row, row), result="block") for row in rows]


def failed(facts: CallFacts) -> list[Decision]:
    """One decision for every image of a call that ended in an error: what had been decided, and that no image came of it."""
    call, verdict = facts.call, facts.verdict
    return [
        facts.decision(row, _subject(call, index // call.per_prompt, index), status="error", drawn=row.drawn)
        for index, row in enumerate(verdict.images[: call.images])
    ]


def direct(plan: Plan, model: Model) -> Decision:
    """The denoiser was called outside every guarded request: all rows got the whole policy; no image is known."""
    applied = tuple(
        Applied(
            concept.concept.id,
            concept.eraser.name,
            concept.eraser.version,
            concept.strength.value,
            concept.strength.word,
            adapter=plan.adapters.get(concept.concept.id),
        )
        for concept in plan.concepts
    )
    return Decision(
        policy_name=plan.policy.name,
        policy_revision=plan.policy.revision,
        result="erase" if applied else "pass",
        subject=Subject(None, "direct", 0),
        applied=applied,
        model=model,
    )


def _subject(call: PipelineCall, prompt: int, row: int) -> Subject:
    texts = call.rows[prompt].texts
    return Subject("\n".join(dict.fromkeys(texts)) if texts else None, call.rows[prompt].source, row)


def _screen(verdict: CallVerdict, row: RowVerdict, *, unmatched: bool = False) -> Screen:
    """``unmatched``: the denoiser was given text that this request did not encode; its rows got the whole policy."""
    fallback = row.fallback or ("unmatched text" if unmatched else None)
    return Screen(verdict.encoder, row.scores or {}, row.thresholds or {}, row.activated, fallback)


def _seen(state: RequestState, plan: Plan, image: int) -> dict[str, DetectionRecord]:
    """What evidence said of each concept that it was asked about in one image."""
    detections = {} if state.watching is None else state.watching.seen
    return {
        name: DetectionRecord(
            detections[image, name].score,
            detections[image, name].threshold,
            detections[image, name].opened,
            detections[image, name].step,
        )
        for name in plan.watched
        if (image, name) in detections
    }


def _applied(
    state: RequestState, erased: Sequence[str], image: int, evidence: dict[tuple[int, int], AppliedEffect]
) -> tuple[Applied, ...]:
    effects, plan = [], state.plan
    for planned in plan.concepts:
        name = planned.concept.id
        if name not in erased:
            continue
        seen = evidence.get((image, planned.column))
        left = None if state.residual is None else state.residual.seen.get((image, name))
        rises = [] if state.residual is None else state.residual.raised.get((image, name), [])
        given = state.facts.strengths[image][planned.column] if image < len(state.facts.strengths) else 0.0
        strength = planned.strength
        if given not in (0.0, strength.value):  # of a second run: no word but auto says it
            strength = Strength(given, AUTO if strength.word == AUTO else None)
        effects.append(
            Applied(
                name,
                planned.eraser.name,
                planned.eraser.version,
                strength.value,
                strength.word,
                None if seen is None else (seen.first, seen.last),
                0 if seen is None else seen.sites,
                Effect() if seen is None else Effect(seen.mass, seen.change, seen.course),
                plan.adapters.get(name),
                None if left is None else Residual(left.score, left.threshold, not left.opened),
                tuple((step, times * strength.value) for step, times in rises),
            )
        )
    return tuple(effects)
