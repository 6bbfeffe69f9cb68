"""From a finished call to one decision an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
    Screen,
    Subject,
    image_digest,
)
from safeguard.errors import CapabilityError
from safeguard.guard.call_args import PipelineCall
from safeguard.guard.decide import CallVerdict, RowVerdict, with_erasure
from safeguard.plan.compile import Plan
from safeguard.plan.request_state import AppliedEffect, RequestState
from safeguard.sdk.seams import Seam


def images_of(output: Any) -> list[Any]:
    """The images of a pipeline's output, whatever form they have: PIL images, or slices of an array or a tensor."""
    images = output[0] if isinstance(output, tuple) else getattr(output, "images", getattr(output, "frames", None))
    if images is None:
        return []
    return list(images)


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
    return Model(base.__name__, str(repo) if repo else None, str(commit) if commit else None)


def require_evidence(state: RequestState) -> None:
    """A call that was to be protected and passed no hook was not protected, whatever the reason: its image is withheld. So is
    one that was to be looked at and was not, and one in which a concept was seen too late for anything to be done.
    """
    watched = state.watching is not None and any(any(row) for row in state.watching.strengths)
    if not watched and not any(any(row) for row in state.strengths):
        return
    seams = {edit.seam for edit in state.plan.edits}
    if not state.calls or ((watched or Seam.TEXT_SITE in seams) and not state.visits):
        raise CapabilityError(
            "the denoiser ran without passing the hooks that protect it, so the image is withheld; "
            "release the guard and protect the pipeline again",
            missing="hooks",
        )
    if state.watching is None or state.unmatched:  # rows that match nothing got the whole policy
        return
    if state.watching.pending:
        raise CapabilityError(
            "the denoiser ran without showing all of its text sites, so what the image shows is not known and it is withheld; "
            "leave calibration out: then adaptive concepts act in every image",
            missing="evidence",
        )
    due = max(state.watching.step, state.first_step)
    for (image, name), sighting in state.watching.seen.items():
        if not sighting.opened or not state.watching.strength(image, name):
            continue
        never = sighting.step == state.step and not state.asked(image, state.plan.columns[name])
        if never or sighting.step > due:
            raise CapabilityError(
                f"concept {name!r} was seen in step {sighting.step}, too late to be erased, so the image is withheld; use more "
                "steps, or leave calibration out: then adaptive concepts act in every image",
                missing="a step to act in",
            )


def features_of(state: RequestState) -> list[list[list[float]]]:
    """What each image of a call that was only looked at has shown."""
    return [] if state.watching is None else [found for _, found in sorted(state.watching.features.items())]


def maps_of(plan: Plan, state: RequestState, images: int) -> list[dict[str, Any]]:
    """Where each concept stood in each image: attention mass on the latent's grid."""
    found: list[dict[str, Any]] = [{} for _ in range(images)]
    for (image, column), total in (state.maps or {}).items():
        if image < images:
            found[image][plan.concepts[column].concept.id] = total.cpu().numpy()
    return found


def made(
    plan: Plan,
    asked: PipelineCall,
    decided: CallVerdict,
    state: RequestState,
    output: Any,
    model: Model,
    overhead: float,
    who: dict[str, str | None],
) -> list[Decision]:
    """One decision for every image of a finished call. ``overhead`` is in milliseconds."""
    evidence = state.evidence()
    degraded = decided.degraded or bool(state.errors)
    decisions = []
    images = images_of(output) or [None] * asked.images  # an output of a kind unknown here is recorded all the same
    for index, image in enumerate(images):
        prompt = min(index // asked.per_prompt, len(asked.rows) - 1)
        row = decided.images[min(index, len(decided.images) - 1)]
        seen = _seen(state, plan, index)
        opened = [name for name in row.watched if name in seen and seen[name].opened]
        if state.unmatched:
            opened = [*row.watched, *row.passed_over]
        seed = asked.seeds[index] if index < len(asked.seeds) else None
        decisions.append(
            Decision(
                policy_name=plan.policy.name,
                policy_revision=plan.policy.revision,
                result=with_erasure(row.result) if opened else row.result,
                status="degraded" if degraded else "ok",
                subject=_subject(asked, prompt, index),
                screen=_screen(decided, row, unmatched=bool(state.unmatched)),
                evidence=Evidence(plan.calibration, seen),
                drawn=() if state.unmatched else row.drawn,
                applied=_applied(plan, (*row.erased, *opened), index, evidence),
                model=model,
                output=None if image is None else describe_output(image, seed),
                metrics=Metrics(decided.milliseconds, overhead),
                **who,  # type: ignore[arg-type]
            )
        )
    return decisions


def refused(
    plan: Plan, asked: PipelineCall, decided: CallVerdict, rows: Sequence[int], model: Model, who: dict[str, str | None]
) -> list[Decision]:
    """One decision for every prompt that was refused; no image was made."""
    return [
        Decision(
            policy_name=plan.policy.name,
            policy_revision=plan.policy.revision,
            result="block",
            subject=_subject(asked, row, row),
            screen=_screen(decided, decided.rows[row]),
            model=model,
            metrics=Metrics(decided.milliseconds, None),
            **who,  # type: ignore[arg-type]
        )
        for row in rows
    ]


def failed(plan: Plan, asked: PipelineCall, decided: CallVerdict, model: Model, who: dict[str, str | None]) -> list[Decision]:
    """One decision for every image of a call that ended in an error: what had been decided, and that no image came of it."""
    prompts = [index // asked.per_prompt for index in range(asked.images)]
    return [
        Decision(
            policy_name=plan.policy.name,
            policy_revision=plan.policy.revision,
            result=decided.images[index].result,
            status="error",
            subject=_subject(asked, prompt, index),
            screen=_screen(decided, decided.images[index]),
            drawn=decided.images[index].drawn,
            model=model,
            metrics=Metrics(decided.milliseconds, None),
            **who,  # type: ignore[arg-type]
        )
        for index, prompt in enumerate(prompts)
    ]


def direct(plan: Plan, model: Model) -> Decision:
    """The denoiser was called outside every guarded request: all rows got the whole policy; no image is known."""
    applied = tuple(
        Applied(
            one.concept.id,
            one.eraser.name,
            one.eraser.version,
            one.strength.value,
            one.strength.word,
            adapter=plan.adapters.get(one.concept.id),
        )
        for one in plan.concepts
    )
    return Decision(
        policy_name=plan.policy.name,
        policy_revision=plan.policy.revision,
        result="erase" if applied else "pass",
        subject=Subject(None, "direct", 0),
        applied=applied,
        model=model,
    )


def _subject(asked: PipelineCall, prompt: int, row: int) -> Subject:
    texts = asked.rows[prompt].texts
    return Subject("\n".join(dict.fromkeys(texts)) if texts else None, asked.rows[prompt].source, row)


def _screen(decided: CallVerdict, row: RowVerdict, *, unmatched: bool = False) -> Screen:
    """``unmatched``: the denoiser was given text that this request did not encode; its rows got the whole policy."""
    fallback = row.fallback or ("unmatched text" if unmatched else None)
    return Screen(decided.encoder, row.scores or {}, row.thresholds or {}, row.activated, fallback)


def _seen(state: RequestState, plan: Plan, image: int) -> dict[str, DetectionRecord]:
    """What evidence said of each concept that it was asked about in one image."""
    found = {} if state.watching is None else state.watching.seen
    return {
        name: DetectionRecord(
            found[image, name].score, found[image, name].threshold, found[image, name].opened, found[image, name].step
        )
        for name in plan.watched
        if (image, name) in found
    }


def _applied(
    plan: Plan, erased: Sequence[str], image: int, evidence: dict[tuple[int, int], AppliedEffect]
) -> tuple[Applied, ...]:
    found = []
    for planned in plan.concepts:
        name = planned.concept.id
        if name not in erased:
            continue
        seen = evidence.get((image, planned.column))
        found.append(
            Applied(
                name,
                planned.eraser.name,
                planned.eraser.version,
                planned.strength.value,
                planned.strength.word,
                None if seen is None else (seen.first, seen.last),
                0 if seen is None else seen.sites,
                Effect() if seen is None else Effect(seen.mass, seen.change, seen.course),
                plan.adapters.get(name),
            )
        )
    return tuple(found)
