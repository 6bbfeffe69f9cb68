"""The self-test: before a plan may serve, it has to show on the real denoiser that it acts where it should and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.attaching.attachment import Attachment
from safeguard.attaching.encode import catch_call
from safeguard.attaching.hooks import Arguments, with_rows
from safeguard.attaching.sites import inner
from safeguard.erasing import Plan, Seam
from safeguard.erasing.activation import Running, running
from safeguard.errors import CapabilityError

EDGE: Final = 16  # latent pixels a side: enough for every place to see some image
TEXTS: Final = ("", "a picture of a person", "a picture of a house")  # unconditional twin, active row, idle row


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the self-test saw: sites reached of all, and the relative change of the active row."""

    sites: int
    reached: int
    change: float


class Probe:
    """A small call of a denoiser, caught from the pipeline itself and kept for every later swap."""

    def __init__(self, pipe: Any, attachment: Attachment) -> None:
        self._attachment = attachment
        self._calls = {name: _small(*catch_call(pipe, attachment.base, name, list(TEXTS))) for name in attachment.denoisers}

    @torch.no_grad()
    def test(self, plan: Plan) -> ProbeResult:
        """Run the plan on three rows. Raises CapabilityError where it does not act, acts on a row that it must not touch,
        or gives numbers that are not finite.
        """
        full = plan.full_strengths
        change, reached = 0.0, set[int]()
        for name, (args, kwargs) in self._calls.items():
            denoiser = inner(self._attachment.denoisers[name])
            states: Tensor = Arguments(denoiser).get("encoder_hidden_states", args, kwargs)
            idle = Running(plan, [[0.0] * len(full)] * 2)
            state = Running(plan, [full, [0.0] * len(full)], texts=TEXTS[1:], negative_texts=("", ""))
            state.positive, state.negative = [states[1:3]], [states[0:1]]
            state.memory["schedule"] = {float(Arguments(denoiser).get("timestep", args, kwargs)): 0}
            with running(idle):
                before: Tensor = denoiser(*args, **kwargs)[0]
            with running(state):
                after: Tensor = denoiser(*args, **kwargs)[0]
            reached |= {site for act in state.acts for site in act.sites}
            change = max(change, self._judge(plan, before, after))
        sites = len(self._attachment.sites)
        wants_sites = any(edit.seam is Seam.TEXT_SITE for edit in plan.edits) and any(full)
        if wants_sites and len(reached) < sites and _starts_at_once(plan):
            lost = [site.name for site in self._attachment.sites if site.index not in reached]
            self._refuse(f"{len(lost)} of {sites} text sites were never reached, the first is {lost[0]}", "text sites")
        return ProbeResult(sites, len(reached), change)

    def _judge(self, plan: Plan, before: Tensor, after: Tensor) -> float:
        if not torch.isfinite(after).all():
            self._refuse("the edits give numbers that are not finite", "finite output")
        if not torch.equal(before[2], after[2]):
            self._refuse("the edits change a row that they must not touch", "independent rows")
        change = ((after[:2] - before[:2]).float().norm() / before[:2].float().norm().clamp_min(1e-12)).item()
        if change == 0.0 and any(plan.full_strengths) and _starts_at_once(plan):
            self._refuse("the edits change nothing", "an effect")
        return change

    def _refuse(self, what: str, missing: str) -> None:
        raise CapabilityError(
            f"self-test on {self._attachment.name}: {what}; this pipeline would not be protected, so it is refused",
            pipeline=self._attachment.name,
            missing=missing,
        )


def _starts_at_once(plan: Plan) -> bool:
    """Whether something acts in the first step, which is the one that the probe runs."""
    return any(one.concept.steps[0] == 0.0 and one.strength.value > 0 for one in plan.concepts)


def _small(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call on a corner of the latent, on noise that is the same every time."""
    generator = torch.Generator().manual_seed(0)

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() == 4 and min(value.shape[-2:]) > 1:
            value = value[..., :EDGE, :EDGE]
            return torch.randn(value.shape, generator=generator).to(value)
        return value

    args = tuple(cut(value) for value in args)
    kwargs = {name: cut(value) for name, value in kwargs.items()}
    return with_rows(args, slice(None), -1), kwargs
