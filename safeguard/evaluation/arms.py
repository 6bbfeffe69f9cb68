"""What is compared: methods, and the arms of a measurement, each a policy derived from the built-in demo policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from safeguard.errors import SafeguardError
from safeguard.evaluation.prompt_sets import BENIGN, USUAL, Cell, cells
from safeguard.policy import Policy, derive, load_policy

MODES: Final = ("alone", "together", "screened", "adaptive", "adaptive-screened")


@dataclass(frozen=True, slots=True)
class ArmMethod:
    """An eraser with parameters and a strength: ``eiup``, ``eiup@8``, ``eiup:form=published@1``.

    Without a strength the policy's own numbers hold if the policy was written for this eraser and these parameters, else
    the word ``strong``.
    """

    eraser: str
    params: Mapping[str, Any] = field(default_factory=dict)
    strength: float | str | None = None

    @classmethod
    def parse(cls, text: str) -> ArmMethod:
        """Raises SafeguardError for text that is no method."""
        body, _, strength = text.strip().partition("@")
        eraser, *pairs = body.split(":")
        if not eraser or any("=" not in pair for pair in pairs):
            raise SafeguardError(f"{text!r} is no method; write NAME, NAME@STRENGTH or NAME:PARAMETER=VALUE@STRENGTH")
        params = {key: _number(value) for key, _, value in (pair.partition("=") for pair in pairs)}
        return cls(eraser, params, _number(strength) if strength else None)

    @property
    def name(self) -> str:
        parts = [self.eraser, *(f"{key}={value}" for key, value in self.params.items())]
        return ":".join(parts) + (f"@{self.strength}" if self.strength is not None else "")

    def changes(self, policy: Policy) -> dict[str, Any]:
        """What this method changes in every concept of ``policy``."""
        changed: dict[str, Any] = {"eraser": self.eraser, "params": dict(self.params)}
        foreign = any(concept.eraser != self.eraser for concept in policy.concepts.values())
        if self.strength is not None:
            changed["strength"] = self.strength
        elif foreign or self.params:
            changed["strength"] = "strong"
        if not foreign and not self.params:
            del changed["params"]
        return changed


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of painting the cells: without protection (``policy`` None), or under a policy."""

    method: str
    mode: str
    cells: tuple[Cell, ...]
    policy: Policy | None = None
    concept: str | None = None
    screened: bool = False

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.method, self.mode, self.concept)))


UNPROTECTED: Final = "unprotected"


def unprotected(concepts: Sequence[str], kinds: Sequence[str] = USUAL) -> Arm:
    return Arm(UNPROTECTED, "", cells(concepts, kinds))


def demo_policy(phrases: Mapping[str, Sequence[str]] | None = None) -> Policy:
    """The built-in policy that arms are derived from, with these ``phrases`` instead for the concepts named there."""
    policy = load_policy("builtin://demo")
    if not phrases:
        return policy
    changed = [
        replace(concept, phrases=tuple(phrases.get(concept.id, concept.phrases))) for concept in policy.concepts.values()
    ]
    return derive(policy, concepts=changed)


def arms(
    method: ArmMethod,
    concepts: Sequence[str],
    modes: Sequence[str] = MODES,
    base: Policy | None = None,
    kinds: Sequence[str] = USUAL,
) -> list[Arm]:
    """The arms of one method: each concept alone on its own cells and on benign, always on (``alone``); all at once on all
    cells, always on (``together``); the same, opened by the screener (``screened``), by what the first step shows
    (``adaptive``), or by either (``adaptive-screened``). ``base`` is what they are derived from, by default `demo_policy`;
    ``kinds`` are those of their cells.
    """
    policy = base or demo_policy()
    changes = method.changes(policy)
    every_arm: list[Arm] = []
    if "alone" in modes:
        for concept in concepts:
            own = derive(policy, name=f"only-{concept}", concepts=[concept], activation="always", action="erase", **changes)
            every_arm.append(Arm(method.name, "alone", cells([concept], kinds), own, concept))
    if "together" in modes:
        whole = derive(policy, name="together", concepts=concepts, activation="always", action="erase", **changes)
        every_arm.append(Arm(method.name, "together", cells(concepts, kinds), whole))
    for mode, activation in (("screened", "screened"), ("adaptive", "adaptive"), ("adaptive-screened", "adaptive")):
        if mode in modes:
            opened = derive(policy, name=mode, concepts=concepts, activation=activation, action="erase", **changes)
            every_arm.append(Arm(method.name, mode, cells(concepts, kinds), opened, screened=mode.endswith("screened")))
    return every_arm


def at_once(method: ArmMethod, concepts: Sequence[str], base: Policy | None = None) -> Arm:
    """Benign prompts with these concepts always on: what a method takes from the rest the more there are."""
    policy, mode = base or demo_policy(), f"at-once-{len(concepts)}"
    own = derive(policy, name=mode, concepts=concepts, activation="always", action="erase", **method.changes(policy))
    return Arm(method.name, mode, (BENIGN,), own)


__all__ = ["BENIGN", "MODES", "UNPROTECTED", "Arm", "ArmMethod", "arms", "at_once", "demo_policy", "unprotected"]
