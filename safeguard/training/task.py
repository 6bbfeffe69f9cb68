"""What every training is given, and which methods have one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from safeguard.erasing import Adapter
from safeguard.errors import SafeguardError
from safeguard.evaluation.studio import Studio
from safeguard.policy import Concept, Policy
from safeguard.training.words import Word

Made: TypeAlias = Adapter | Word
"""An adapter, or a learned word where that is all that is trained."""


@dataclass(frozen=True, slots=True)
class Method:
    """How an eraser is trained: ``call`` is a function of a `Task` that gives back what is `Made`.

    ``count`` and ``batch`` hold where a task names none. ``settings`` are the numbers that a task may change besides; and not
    every training goes by ``prompts`` that it is given, or by ``feedback``, or ``resumes`` at a checkpoint.
    """

    call: str
    count: int
    batch: int
    settings: tuple[str, ...] = ()
    prompts: bool = False
    resumes: bool = False
    feedback: bool = False


_DELTAS: Final = ("updates", "rate", "steps", "guidance", "reuse", "rank", "strict", "context")

METHODS: Final = {
    "ccrt": Method(
        "safeguard.training.ccrt:train",
        48,
        4,
        (*_DELTAS, "eta", "sdd", "hold", "probe", "pool", "mined", "tolerance"),
        prompts=True,
        resumes=True,
    ),
    "esd": Method("safeguard.training.esd:train", 48, 4, (*_DELTAS, "eta"), prompts=True, resumes=True),
    "geom_erasing": Method("safeguard.training.geom_erasing:train", 96, 8, ("updates", "rate", "side", "alpha"), resumes=True),
    "gie": Method("safeguard.training.gie:train", 16, 20),
    "hfi": Method(
        "safeguard.training.hfi:train",
        160,
        4,
        (*_DELTAS[:-1], "average", "moving", "beta", "vectors", "best", "inversion", "inversion_rate"),
        resumes=True,
        feedback=True,
    ),
    "sdd": Method("safeguard.training.sdd:train", 48, 4, (*_DELTAS, "average", "moving"), prompts=True, resumes=True),
    "self_discovery": Method(
        "safeguard.training.self_discovery:train",
        96,
        16,
        ("updates", "rate", "steps", "guidance", "towards"),
        prompts=True,
        resumes=True,
    ),
}
"""Each eraser that can be trained, and how."""


class Advance(Protocol):
    """Is told what is under way, how much more of it is done, and of how much where that is known: pictures, or updates."""

    def __call__(self, what: str, more: int, whole: int | None = None) -> None: ...


class Keep(Protocol):
    """Takes what a training makes besides its adapter: the bytes of a file, and what it is (``word``)."""

    def __call__(self, what: str, data: bytes) -> None: ...


def _unkept(what: str, data: bytes) -> None:
    pass


def _unheard(what: str, more: int, whole: int | None = None) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Task:
    """What to train on: a pipeline with a judge of its pictures (``studio``), the concepts of ``policy``, how many prompts of
    each kind, and how many pictures at once (0: what the method has); all that is drawn comes from ``seed``.

    ``settings`` are a method's own. ``prompts`` are ordinary ones to learn from instead of the demo world's; ``feedback`` is a
    store of what people said, ``reward`` the file of what was learnt from it. At ``checkpoint`` a training that was stopped
    goes on, where there is one, and leaves one.
    """

    studio: Studio
    policy: Policy
    count: int = 0
    seed: int = 0
    batch: int = 0
    settings: Mapping[str, float] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    feedback: Path | None = None
    reward: Path | None = None
    checkpoint: Path | None = None
    advance: Advance = _unheard
    keep: Keep = _unkept

    @property
    def concepts(self) -> Sequence[Concept]:
        return list(self.policy.concepts.values())


def method_of(name: str) -> Method:
    """How the eraser of that name is trained. Raises SafeguardError for one that has no training."""
    if name not in METHODS:
        raise SafeguardError(f"eraser {name!r} has no training; there is one for {', '.join(METHODS)}")
    return METHODS[name]


def check(
    name: str, *, settings: Mapping[str, float], prompts: bool = False, resumes: bool = False, feedback: bool = False
) -> None:
    """Raises SafeguardError where a training is asked for what it does not have."""
    method = method_of(name)
    unknown = [setting for setting in settings if setting not in method.settings]
    if unknown:
        known = f"it has {', '.join(method.settings)}" if method.settings else "it has none"
        raise SafeguardError(f"training of {name} has no setting {unknown[0]!r}; {known}")
    small = [setting for setting, number in settings.items() if not 0 < number < float("inf")]
    if small:
        raise SafeguardError(f"training of {name}: {small[0]} is a number above 0")
    if prompts and not method.prompts:
        raise SafeguardError(f"training of {name} goes by the prompts of the demo world; leave the file of prompts out")
    if feedback and not method.feedback:
        raise SafeguardError(f"training of {name} goes by no feedback; leave --feedback and --reward out")
    if resumes and not method.resumes:
        raise SafeguardError(f"training of {name} keeps no checkpoint; start it without one")


def train(name: str, task: Task) -> Made:
    """Train what the eraser ``name`` needs. Raises SafeguardError for one that has no training, or not such a one."""
    judged = (task.feedback, task.reward) != (None, None)
    check(name, settings=task.settings, prompts=bool(task.prompts), resumes=task.checkpoint is not None, feedback=judged)
    method = METHODS[name]
    module, _, function = method.call.partition(":")
    whole = replace(task, count=task.count or method.count, batch=task.batch or method.batch)
    made: Made = getattr(importlib.import_module(module), function)(whole)
    return made
