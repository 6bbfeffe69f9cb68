"""`protect` protects a pipeline with a policy; `guard_of` finds the guard of a pipeline again."""

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
    """Protect a diffusers pipeline with a policy.

    After this, ``pipe(...)`` is guarded. Its type and its signature stay the same. Call it last, when device, dtype, adapters
    and scheduler are set as in production. If it raises an error, nothing is attached. Stable.

    Args:
        pipe: The pipeline. It must not be guarded already.
        policy: A path, ``builtin://NAME`` or a `Policy`.
        audit: A folder, a sink, or None for no log.
        screener: ``"default"``, an object with ``name`` and ``screen(texts, concepts)``, or None. With None, each concept acts
            on every request unless evidence decides for it.
        example: What a call with one prompt needs besides the prompt, if the pipeline cannot run on a prompt and a blank image:
            ``{"ip_adapter_image": image}``, ``{"video": frames}``. Only trial runs use it.
        calibration: The result of `calibrate` for this pipeline, or its file. With it, ``adaptive`` concepts act only in images
            for which the first step shows them. Adaptive concepts that it does not cover act in every image.
        erasers: Eraser classes that no distribution registers, for a notebook. This policy and later ones may name them.

    Returns:
        The guard. ``guard.release()`` gives the pipeline back as it was.

    Raises:
        PolicyError: If the policy is invalid.
        CapabilityError: If the pipeline cannot be protected as the policy asks, or is guarded already.
        PluginError: If an eraser cannot be loaded, or one of ``erasers`` has the name of an installed one.
        AuditError: If the log cannot be written.
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
