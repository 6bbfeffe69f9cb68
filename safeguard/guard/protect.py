"""``protect``: the one way to put a policy in force on a pipeline; and ``guard_of``, which finds the guard again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from safeguard.audit import AuditSink
from safeguard.errors import CapabilityError
from safeguard.guard.decide import ScreenLike
from safeguard.guard.guard import Guard, PolicySource
from safeguard.guard.pipeline_class import guard_of_class, is_guarded
from safeguard.plan.calibration import Calibration


def protect(
    pipe: Any,
    policy: PolicySource,
    *,
    audit: str | os.PathLike[str] | AuditSink | None = None,
    screener: ScreenLike | str | None = "default",
    example: Mapping[str, Any] | None = None,
    calibration: str | os.PathLike[str] | Calibration | None = None,
    erasers: Sequence[type] = (),
) -> Guard:
    """Protect a live diffusers pipeline with a policy. From here on ``pipe(...)`` is guarded; its type and signature stay.

    ``policy``: a path, ``builtin://NAME`` or a `Policy`. ``audit``: a folder, a sink, or None for no log. ``screener``:
    ``"default"``, an object with ``name`` and ``screen(texts, concepts)``, or None: then every concept acts on every request
    that does not go by evidence.
    ``example``: what a call of one prompt needs besides the prompt, where the pipeline cannot be tried on a prompt and a blank
    picture: ``{"ip_adapter_image": image}``, ``{"video": frames}``. Only trials see it. ``calibration``: what `calibrate` made
    for this pipeline, or its file: by it the concepts that are ``adaptive`` open where the first step shows them; those that it
    does not cover act in every image. ``erasers``: eraser classes that no distribution registers, as a notebook has them; this
    policy and those that are swapped in later may name them. One of the same name as an installed eraser is refused.

    Raises PolicyError, CapabilityError (the pipeline cannot be protected as the policy asks), PluginError or AuditError; then
    nothing is attached.
    """
    if is_guarded(pipe):
        raise CapabilityError(
            f"this {type(pipe).__name__} is guarded already; use guard.swap(policy) to change its policy",
            pipeline=type(pipe).__name__,
        )
    if not hasattr(pipe, "components") or not callable(pipe):
        raise CapabilityError(f"{type(pipe).__name__} is not a diffusers pipeline", pipeline=type(pipe).__name__)
    return Guard(pipe, policy, audit, screener, example, calibration, erasers)


def guard_of(pipe: Any) -> Guard | None:
    """The guard of a pipeline, for code that did not call `protect` itself.

    Args:
        pipe: Any diffusers pipeline.

    Returns:
        Its guard; None where the pipeline is not protected, or not any more.
    """
    guard: Guard | None = guard_of_class(pipe)
    return guard
