"""The self-test: before a plan may serve, it has to show on the real denoiser that it acts where it should and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from safeguard.attaching.attachment import Attachment
from safeguard.attaching.encode import catch_call
from safeguard.attaching.hooks import Arguments
from safeguard.attaching.timing import follow, moment_of
from safeguard.erasing import Plan
from safeguard.erasing.activation import Running, running
from safeguard.errors import CapabilityError, SafeguardError

EDGE: Final = 8  # latent pixels a side: a UNet of four levels still sees one pixel in its middle
TEXTS: Final = ("", "a picture of a person", "a picture of a house")  # unconditional twin, active row, idle row


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the self-test saw: sites reached of all, and the relative change of the active row."""

    sites: int
    reached: int
    change: float


class Probe:
    """A small call of each denoiser, caught from the pipeline itself and kept, with what it gives, for every later swap."""

    def __init__(self, pipe: Any, attachment: Attachment) -> None:
        self._attachment = attachment
        self._calls = {
            name: _small(*catch_call(pipe, attachment.base, name, list(TEXTS)), Arguments(denoiser))
            for name, denoiser in attachment.denoisers.items()
        }
        self._unedited: dict[str, list[Tensor]] = {}

    def test(self, plan: Plan) -> ProbeResult:
        """Run the plan on three rows. Raises CapabilityError where it does not act, acts on a row that it must not touch,
        gives numbers that are not finite, or cannot be run at all.
        """
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self._test(plan)
        except SafeguardError:
            raise
        except Exception as fault:  # noqa: BLE001 - raised as a CapabilityError
            self._refuse(f"the denoiser cannot be run with the edits ({type(fault).__name__}: {fault})", "a self-test", fault)

    def _test(self, plan: Plan) -> ProbeResult:
        full = plan.full_strengths
        change, reached = 0.0, set[int]()
        for name in self._calls:
            state, after = self._run(name, plan, full)
            before = self._unedited.get(name)
            if before is None or not _equal_at(2, before, after):  # the weights may have changed since
                _, before = self._run(name, plan, [0.0] * len(full))
                self._unedited[name] = before
            reached |= {site for act in state.acts for site in act.sites}
            change = max(change, self._judge(before, after))
        if change == 0.0 and any(full) and _starts_at_once(plan):
            self._refuse("the edits change nothing", "an effect")
        sites = self._attachment.sites
        if len(reached) < len(sites) and _sites_at_once(plan):
            lost = [site.name for site in sites if site.index not in reached]
            self._refuse(f"{len(lost)} of {len(sites)} text sites were never reached, the first is {lost[0]}", "text sites")
        return ProbeResult(len(sites), len(reached), change)

    def _run(self, name: str, plan: Plan, strengths: list[float]) -> tuple[Running, list[Tensor]]:
        """The unconditional twin, the row that ``strengths`` act on, and one that is left alone."""
        args, kwargs = self._calls[name]
        denoiser = self._attachment.denoisers[name]
        arguments = Arguments(denoiser)
        states: Tensor = arguments.get("encoder_hidden_states", args, kwargs)
        state = Running(
            plan,
            [strengths, [0.0] * len(strengths)],
            self._attachment.number,
            texts=TEXTS[1:],
            negative_texts=("", ""),
            positive=[states[1:3]],
            negative=[states[0:1]],
        )
        follow(state, [moment_of(arguments.get("timestep", args, kwargs))])
        with running(state):
            return state, _tensors(denoiser(*args, **kwargs))

    def _judge(self, before: list[Tensor], after: list[Tensor]) -> float:
        if not all(torch.isfinite(part).all() for part in after):
            self._refuse("the edits give numbers that are not finite", "finite output")
        if not _equal_at(2, before, after):
            self._refuse("the edits change a row that they must not touch", "independent rows")
        old, new = (torch.cat([part[:2].float().flatten() for part in parts]) for parts in (before, after))
        return float((new - old).norm() / old.norm().clamp_min(1e-12))

    def _refuse(self, what: str, missing: str, fault: Exception | None = None) -> NoReturn:
        raise CapabilityError(
            f"self-test on {self._attachment.name}: {what}; this pipeline would not be protected, so it is refused",
            pipeline=self._attachment.name,
            missing=missing,
        ) from fault


def _starts_at_once(plan: Plan) -> bool:
    """Whether something acts in the first step, which is the one that the probe runs."""
    return any(one.concept.steps[0] == 0.0 and one.strength.value > 0 for one in plan.concepts)


def _sites_at_once(plan: Plan) -> bool:
    """Whether something acts at text sites in the first step."""
    ids = {concept for edit in plan.site_edits for concept in edit.concepts}
    return any(one.concept.id in ids and one.concept.steps[0] == 0.0 and one.strength.value > 0 for one in plan.concepts)


def _tensors(output: Any) -> list[Tensor]:
    """Every tensor of a denoiser's output: a UNet gives one, a ControlNet one a level."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _equal_at(row: int, one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a[row], b[row]) for a, b in zip(one, other, strict=True))


def _small(args: tuple[Any, ...], kwargs: dict[str, Any], arguments: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call on a smaller latent, on noise that is the same every time. Images in the call shrink alike."""
    generator = torch.Generator().manual_seed(0)
    sample = arguments.get("sample", args, kwargs)
    scale = min(1.0, EDGE / max(sample.shape[-2:])) if isinstance(sample, Tensor) and sample.dim() == 4 else 1.0

    def shrink(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() == 4:
            height, width = (max(1, round(side * scale)) for side in value.shape[-2:])
            shape = (*value.shape[:2], height, width)
            return torch.randn(shape, generator=generator).to(value) if min(height, width) > 1 else value[..., :height, :width]
        if isinstance(value, dict):
            return {key: shrink(item) for key, item in value.items()}
        return type(value)(map(shrink, value)) if isinstance(value, (list, tuple)) else value

    return tuple(map(shrink, args)), {name: shrink(value) for name, value in kwargs.items()}
