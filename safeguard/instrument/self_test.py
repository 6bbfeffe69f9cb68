"""The self-test: before a plan may serve, it has to show on the real denoiser that it acts where it should and nowhere else."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safeguard.errors import CapabilityError, SafeguardError
from safeguard.instrument.apply import edit_checks
from safeguard.instrument.apply.schedule import follow, moment_of
from safeguard.instrument.attachment import Attachment
from safeguard.instrument.call_values import fresh, pick, stacked
from safeguard.instrument.discover.dry_run import TEXTS
from safeguard.instrument.discover.nan_trace import tensors_of
from safeguard.instrument.discover.tokens import ROOM
from safeguard.plan.compile import Plan
from safeguard.plan.detectors import ConceptProbe, ProbeFinished, ProbeRun
from safeguard.plan.request_state import RequestCaches, RequestFacts, RequestState, request_scope
from safeguard.policy import Concept


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """What the self-test saw: sites reached of all, and the relative change of the active row."""

    sites: int
    reached: int
    change: float


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of one call, as torch counts them; and those of attention on a CPU, which torch leaves out."""

    def attend(query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **others: Any) -> int:
        return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attend}) as counter:
        call()
    return int(counter.get_total_flops())


class SelfTest:
    """Runs a plan on a small call of each denoiser, caught from the pipeline itself; keeps what it gives without edits."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._unedited: dict[str, list[Tensor]] = {}

    def test(self, plan: Plan) -> SelfTestResult:
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

    def operations(self, plan: Plan) -> float:
        """Floating-point operations of the plan's denoiser calls, as torch counts them, as a multiple of what they are without
        edits: on two active rows and one unconditional. For the plan that `test` saw last, which recorded its texts.
        """
        counts = [0, 0]
        with torch.inference_mode(False), torch.no_grad():
            for name in self._attachment.parts:
                most, *_ = (list(state.facts.strengths[0]) for state, _ in self._acting(name, plan))
                for place, strengths in enumerate((most, [0.0] * len(most))):
                    counts[place] += flops(functools.partial(self._run, name, plan, strengths, strengths))
        return counts[0] / max(1, counts[1])

    def _test(self, plan: Plan) -> SelfTestResult:
        full = plan.full_strengths
        change, reached = 0.0, set[int]()
        self._attachment.serve(plan)
        for edit in plan.site_edits:
            edit_checks.selected(plan, edit, [len(edit.concepts) - 1])
        for name in self._attachment.parts:
            for state, after in self._acting(name, plan, trial=True):
                before = self._unedited.get(name)
                if before is None or not _equal_at(2, before, after):  # the weights may have changed since
                    _, before = self._run(name, plan, [0.0] * len(full))
                    self._unedited[name] = before
                reached |= {site for act in state.log.acts for site in act.sites}
                change = max(change, self._judge(before, after))
        if change == 0.0 and any(full):
            self._refuse("the edits change nothing", "an effect")
        if plan.watch is not None:
            self._look(plan, plan.watch)
        sites = self._attachment.sites
        if len(reached) < len(sites) and _acts_at_sites(plan):
            lost = [site.name for site in sites if site.index not in reached]
            self._refuse(f"{len(lost)} of {len(sites)} text sites were never reached, the first is {lost[0]}", "text sites")
        return SelfTestResult(len(sites), len(reached), change)

    def _acting(self, name: str, plan: Plan, *, trial: bool = False) -> list[tuple[RequestState, list[Tensor]]]:
        """Runs with all concepts at once; where these are more words than are read, and need not act together, with those that
        always act and each of the others in turn. Images in which too many act are refused when they are made.
        """
        full, always = plan.full_strengths, [_always_acts(plan, concept.concept) for concept in plan.concepts]
        try:
            return [self._run(name, plan, full, trial=trial)]
        except CapabilityError as fault:
            if fault.missing != ROOM or all(always):
                raise
        turns = [place for place, acts in enumerate(always) if not acts]
        shares = ([amount if always[k] or k == turn else 0.0 for k, amount in enumerate(full)] for turn in turns)
        return [self._run(name, plan, strengths, trial=trial) for strengths in shares]

    def _look(self, plan: Plan, watch: ConceptProbe) -> None:
        """Evidence must be there to take at every site, and be what the gauges were made for."""
        watching = ProbeRun(
            watch, plan.gauges, [[1.0] * len(watch.concepts)] * 2, len(self._attachment.watched_sites), only=True
        )
        with contextlib.suppress(ProbeFinished):
            self._run(self._attachment.main, plan, [0.0] * len(plan.concepts), watching=watching)
        if watching.pending:
            self._refuse("its text sites cannot all be looked at for evidence; leave calibration out", "evidence")
        for image in watching.features.values():
            for gauge, features in zip(plan.gauges, image, strict=True):
                if gauge.weights:  # none yet, where it is being calibrated
                    gauge.score(features)

    def _run(
        self,
        name: str,
        plan: Plan,
        strengths: list[float],
        others: list[float] | None = None,
        watching: ProbeRun | None = None,
        *,
        trial: bool = False,
    ) -> tuple[RequestState, list[Tensor]]:
        """The unconditional twin, the row that ``strengths`` act on, and one on which ``others`` act: none, unless given."""
        part = self._attachment.parts[name]
        states = stacked(pick(part.values, part.text.states))
        facts = RequestFacts(
            plan,
            [strengths, others or [0.0] * len(strengths)],
            self._attachment.number,
            texts=TEXTS[1:],
            negative_texts=("", ""),
            whole=True,
            trial=trial,
        )
        known = RequestCaches(positive=[states[part.stride :: part.stride][:2]], negative=[states[0:1]])
        state = RequestState(facts, watching, caches=known)
        follow(state, [float("nan")] * 99 + [moment_of(part.time_of(part.values))])  # late: whatever warms up has done so
        with request_scope(state):
            return state, tensors_of(part.module(**fresh(part.values)), part.rows)

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


def _acts_at_sites(plan: Plan) -> bool:
    ids = {concept for edit in plan.site_edits for concept in edit.concepts}
    return any(item.concept.id in ids and item.strength.value > 0 for item in plan.concepts)


def _always_acts(plan: Plan, concept: Concept) -> bool:
    """Whether it is active in every image, as an adaptive one is that nobody calibrated."""
    uncalibrated = concept.activation == "adaptive" and concept.id not in plan.watched
    return concept.one_of is None and (concept.activation == "always" or uncalibrated)


def _equal_at(row: int, left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a[row], b[row]) for a, b in zip(left, right, strict=True))
