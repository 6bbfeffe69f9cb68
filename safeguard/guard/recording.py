"""From a finished call to one decision an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from safeguard.audit import Applied, Decision, Effect, Metrics, Model, Output, Screen, Subject, image_digest
from safeguard.erasing import Plan
from safeguard.erasing.activation import Evidence, Running
from safeguard.guard.asking import Asked
from safeguard.guard.deciding import Decided, RowDecision


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


def made(
    plan: Plan,
    asked: Asked,
    decided: Decided,
    state: Running,
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
        row = decided.rows[prompt]
        seed = asked.seeds[index] if index < len(asked.seeds) else None
        decisions.append(
            Decision(
                policy_name=plan.policy.name,
                policy_revision=plan.policy.revision,
                result=row.result,
                status="degraded" if degraded else "ok",
                subject=_subject(asked, prompt, index),
                screen=_screen(decided, row, unmatched=bool(state.unmatched)),
                applied=_applied(plan, row, index, evidence),
                model=model,
                output=None if image is None else describe_output(image, seed),
                metrics=Metrics(decided.milliseconds, overhead),
                **who,  # type: ignore[arg-type]
            )
        )
    return decisions


def refused(
    plan: Plan, asked: Asked, decided: Decided, rows: Sequence[int], model: Model, who: dict[str, str | None]
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


def failed(plan: Plan, asked: Asked, decided: Decided, model: Model, who: dict[str, str | None]) -> list[Decision]:
    """One decision for every image of a call that ended in an error: what had been decided, and that no image came of it."""
    prompts = [index // asked.per_prompt for index in range(asked.images)]
    return [
        Decision(
            policy_name=plan.policy.name,
            policy_revision=plan.policy.revision,
            result=decided.rows[prompt].result,
            status="error",
            subject=_subject(asked, prompt, index),
            screen=_screen(decided, decided.rows[prompt]),
            model=model,
            metrics=Metrics(decided.milliseconds, None),
            **who,  # type: ignore[arg-type]
        )
        for index, prompt in enumerate(prompts)
    ]


def direct(plan: Plan, model: Model) -> Decision:
    """The denoiser was called outside every guarded request: all rows got the whole policy; no image is known."""
    applied = tuple(
        Applied(one.concept.id, one.eraser.name, one.eraser.version, one.strength.value, one.strength.word)
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


def _subject(asked: Asked, prompt: int, row: int) -> Subject:
    texts = asked.rows[prompt].texts
    return Subject("\n".join(dict.fromkeys(texts)) if texts else None, asked.rows[prompt].source, row)


def _screen(decided: Decided, row: RowDecision, *, unmatched: bool = False) -> Screen:
    """``unmatched``: the denoiser was given text that this request did not encode; its rows got the whole policy."""
    fallback = row.fallback or ("unmatched text" if unmatched else None)
    return Screen(decided.encoder, row.scores or {}, row.thresholds or {}, row.activated, fallback)


def _applied(plan: Plan, row: RowDecision, image: int, evidence: dict[tuple[int, int], Evidence]) -> tuple[Applied, ...]:
    found = []
    for name in row.erased:
        planned = plan.concepts[plan.columns[name]]
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
                Effect() if seen is None else Effect(seen.mass, None, seen.change),
            )
        )
    return tuple(found)
