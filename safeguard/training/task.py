"""What every training is given, and which methods have one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from safeguard.errors import SafeguardError
from safeguard.evaluation.harness import Harness
from safeguard.policy import Concept, Policy
from safeguard.sdk.adapter import Adapter
from safeguard.training.textual_inversion import LearnedWord

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Numbers = TypeVar("Numbers", bound="DataclassInstance")
Made: TypeAlias = Adapter | LearnedWord
"""An adapter, or a learned word where that is all that is trained."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Of which numbers a setting is one: in words, by a test, and as what it is kept."""

    said: str
    holds: Callable[[float], bool]
    kept: Callable[[float], float]


REAL: Final = Kind("a number above 0", lambda number: 0 < number < float("inf"), float)
WHOLE: Final = Kind("a whole number above 0", lambda number: number > 0 and number % 1 == 0, int)
FLAG: Final = Kind("0 or 1", lambda number: number in (0, 1), int)
WAY: Final = Kind("0, 1 or 2", lambda number: number in (0, 1, 2), int)


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """How an eraser is trained: ``call`` is a function of a `Task` that gives back what is `Made`.

    ``count`` and ``batch`` hold where a task names none. ``settings`` are the numbers that a task may change besides, and of
    which kind each is; and not every training goes by ``prompts`` that it is given, or by ``feedback``, or ``resumes`` at a
    checkpoint.
    """

    call: str
    count: int
    batch: int
    settings: Mapping[str, Kind] = field(default_factory=dict)
    prompts: bool = False
    resumes: bool = False
    feedback: bool = False


_PICTURES: Final = {"updates": WHOLE, "rate": REAL, "steps": WHOLE, "guidance": REAL}
_LAYERS: Final = {**_PICTURES, "reuse": WHOLE, "rank": WHOLE, "strict": FLAG}
_DELTAS: Final = {**_LAYERS, "context": FLAG}
_MEANS: Final = {"average": REAL, "moving": FLAG}
_SEQUENCE: Final = {"eta": REAL, "sdd": FLAG, "hold": REAL, "probe": WHOLE, "pool": WHOLE, "mined": WHOLE, "tolerance": REAL}
_WORD: Final = {"beta": WHOLE, "vectors": WHOLE, "best": WHOLE, "inversion": WHOLE, "inversion_rate": REAL}
_BINS: Final = {"updates": WHOLE, "rate": REAL, "side": WHOLE, "alpha": REAL}

METHODS: Final = {
    "ccrt": TrainingMethod("safeguard_plugins.ccrt.train:train", 48, 4, {**_DELTAS, **_SEQUENCE}, prompts=True, resumes=True),
    "esd": TrainingMethod("safeguard_plugins.esd.train:train", 48, 4, {**_DELTAS, "eta": REAL}, prompts=True, resumes=True),
    "geom_erasing": TrainingMethod("safeguard_plugins.geom_erasing.train:train", 96, 8, _BINS, resumes=True),
    "gie": TrainingMethod("safeguard_plugins.gie.train:train", 16, 20),
    "hfi": TrainingMethod(
        "safeguard_plugins.hfi.train:train", 160, 4, {**_LAYERS, **_MEANS, **_WORD}, resumes=True, feedback=True
    ),
    "sdd": TrainingMethod(
        "safeguard_plugins.sdd.train:train", 48, 4, {**_DELTAS, **_MEANS, "joined": WAY}, prompts=True, resumes=True
    ),
    "self_discovery": TrainingMethod(
        "safeguard_plugins.self_discovery.train:train", 96, 16, {**_PICTURES, "towards": FLAG}, prompts=True, resumes=True
    ),
}
"""Each eraser that can be trained, and how."""


class Advance(Protocol):
    """Is told what is under way, how much more of it is done (0 when it begins), and of how much where that is known: pictures,
    or updates, of which every ``anew`` ones begin with pictures.
    """

    def __call__(self, what: str, more: int, whole: int | None = None, anew: int | None = None) -> None: ...


class Keep(Protocol):
    """Takes what a training makes besides its adapter: the bytes of a file, and what it is (``word``)."""

    def __call__(self, what: str, data: bytes) -> None: ...


def _unkept(what: str, data: bytes) -> None:
    pass


def _unheard(what: str, more: int, whole: int | None = None, anew: int | None = None) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Task:
    """What to train on: a pipeline with a judge of its pictures (``studio``), the concepts of ``policy``, how many prompts of
    each kind, and how many pictures at once (0: what the method has); all that is drawn comes from ``seed``.

    ``settings`` are a method's own. ``prompts`` are ordinary ones to learn from instead of the demo world's; ``feedback`` is a
    store of what people said, ``reward`` the file of what was learnt from it. At ``checkpoint`` a training that was stopped
    goes on, where there is one, and leaves one.
    """

    studio: Harness
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

    def numbers(self, usual: Numbers) -> Numbers:
        """Of the fields of ``usual`` what the task says, ``batch`` and ``seed`` among them; the others as they are."""
        said: dict[str, Any] = {"batch": self.batch, "seed": self.seed, **self.settings}
        return replace(usual, **{one.name: said[one.name] for one in fields(usual) if one.name in said})


def method_of(name: str) -> TrainingMethod:
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
    for setting, number in settings.items():
        kind = method.settings[setting]
        if not kind.holds(number):
            raise SafeguardError(f"training of {name}: {setting} is {kind.said}, not {number:g}")
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
    settings = {setting: method.settings[setting].kept(number) for setting, number in task.settings.items()}
    whole = replace(task, count=task.count or method.count, batch=task.batch or method.batch, settings=settings)
    made: Made = getattr(importlib.import_module(module), function)(whole)
    return made
