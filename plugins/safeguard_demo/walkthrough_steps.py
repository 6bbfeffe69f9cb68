"""The acts of the walkthrough: each does one thing on the live pipeline and gives back what there is to show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safeguard.audit import AuditSink, Decision
from safeguard.errors import PolicyViolation, SafeguardError
from safeguard.evaluation.arms import Arm, ArmMethod, arms
from safeguard.evaluation.comparison import ImagePair
from safeguard.evaluation.harness import Harness
from safeguard.evaluation.prompt_sets import Cell, PromptCase, cells
from safeguard.evaluation.run import CellResult, evaluate, settings_of
from safeguard.evaluation.summary import SummaryRow, summarise
from safeguard.guard import Guard
from safeguard.policy import Policy, derive
from safeguard_demo.world import CONCEPTS

SPLIT = "test"


@dataclass(frozen=True, eq=False)
class Measured:
    """The first act: every cell without and with the policy, and under a negative prompt for its concept alone."""

    results: Sequence[CellResult]
    arms: Sequence[Arm]
    rows: Sequence[SummaryRow]
    count: int


def measure(
    studio: Harness, policy: Policy, title: str, count: int, audit: AuditSink, advance: Callable[[str, int], None]
) -> Measured:
    """``count`` prompts a cell, unprotected, under ``policy`` as it stands, and with each of its concepts alone as a negative
    prompt: of all together the text encoder does not read the end.
    """
    wanted = arms_of(policy, title)
    settings = settings_of(studio, SPLIT, count, 0, max(count, 8))
    results = evaluate(studio, wanted, settings, audit=audit, advance=advance)
    return Measured(results, wanted, summarise(results, wanted, CONCEPTS), count)


def arms_of(policy: Policy, title: str) -> list[Arm]:
    """What is painted besides unprotected pictures."""
    return [
        Arm(title, "policy", cells(CONCEPTS), policy, screened=True),
        *arms(ArmMethod("negative_prompt"), list(policy.concepts), ("alone",), policy),
    ]


def heat_maps(studio: Harness, policy: Policy, audit: AuditSink) -> dict[str, list[ImagePair]]:
    """An explicit and an implicit prompt of every concept, with that concept always on: where did it stand?"""
    pairs_by_concept: dict[str, list[ImagePair]] = {}
    for name in policy.concepts:
        asked = [studio.prompt_set.cases(Cell(kind, name), SPLIT, 1)[0] for kind in ("explicit", "implicit")]
        before = studio.paint(asked)
        own = derive(policy, name=f"only-{name}", concepts=[name], activation="always", action="erase")
        with studio.under(own, audit=audit) as running, _guarded(running).request(maps=True) as request:
            after = studio.paint(asked)
        pairs_by_concept[name] = [
            ImagePair(case.text, before[row], after[row], request.maps[row]) for row, case in enumerate(asked)
        ]
    return pairs_by_concept


def _guarded(guard: Guard | None) -> Guard:
    if guard is None:
        raise SafeguardError("a policy is needed here")
    return guard


@dataclass(frozen=True, eq=False)
class Turn:
    """One image of the running loop: the picture, and the decision that was recorded for it."""

    image: Any
    decision: Decision


@dataclass(frozen=True, eq=False)
class Swapped:
    """The loop: ``turns`` in order; the swap came while image ``during`` (0-based) was under way, at step ``step``."""

    prompt: str
    concept: str
    turns: Sequence[Turn]
    during: int
    step: int
    before: str
    after: str

    @property
    def kept_plan(self) -> bool:
        """Whether each image bears the revision that was active when it began."""
        wanted = [self.before if place <= self.during else self.after for place in range(len(self.turns))]
        return [turn.decision.policy_revision for turn in self.turns] == wanted


def swap_while_running(
    studio: Harness, policy: Policy, audit: AuditSink, *, images: int = 8, concept: str = "blood"
) -> Swapped:
    """A loop that makes one image after another. In the middle of one of them another thread swaps in ``policy``, which
    erases a ``concept`` that the policy before it let pass.
    """
    lenient = derive(policy, name=f"{policy.name}-lenient", concepts=[name for name in policy.concepts if name != concept])
    case = studio.prompt_set.cases(Cell("explicit", concept), SPLIT, 1)[0]
    during, step = images // 2 - 1, studio.steps // 2
    turns: list[Turn] = []
    with studio.under(lenient, screened=True, audit=audit) as running:
        guard = _guarded(running)
        for place in range(images):

            def at_step(pipe: Any, now: int, time: Any, values: dict[str, Any], place: int = place) -> dict[str, Any]:
                if (place, now) == (during, step):
                    swapping = threading.Thread(target=guard.swap, args=(policy,))
                    swapping.start()
                    swapping.join()
                return values

            with guard.request(request_id=f"loop-{place}") as request:
                image = studio.paint([case], callback_on_step_end=at_step)[0]
            turns.append(Turn(image, request.decisions[0]))
    return Swapped(case.text, concept, turns, during, step, lenient.revision, policy.revision)


@dataclass(frozen=True, eq=False)
class Refused:
    """A prompt that the policy blocks: what the caller got, and what was recorded."""

    prompt: str
    error: PolicyViolation
    decision: Decision


def block(studio: Harness, policy: Policy, audit: AuditSink, *, concept: str = "blood") -> Refused:
    """The policy with ``concept`` blocked instead of erased, and a prompt that asks for it.

    Raises SafeguardError if the prompt is let through.
    """
    strict = [replace(item, action="block") if name == concept else item for name, item in policy.concepts.items()]
    case: PromptCase = studio.prompt_set.cases(Cell("explicit", concept), SPLIT, 2)[1]
    with studio.under(derive(policy, name=f"{policy.name}-strict", concepts=strict), screened=True, audit=audit) as running:
        guard = _guarded(running)
        with guard.request(request_id="blocked") as request:
            try:
                studio.paint([case])
            except PolicyViolation as refusal:
                return Refused(case.text, refusal, request.decisions[0])
    raise SafeguardError(f"a prompt that names {concept!r} was not refused; look at its screening with 'safeguard screen'")
