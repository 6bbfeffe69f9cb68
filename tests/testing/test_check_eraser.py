"""``check_eraser`` passes what keeps the contract, and finds each kind of eraser that breaks it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from safeguard.errors import CapabilityError, PluginError, SafeguardError
from safeguard.policy import Concept
from safeguard.sdk import (
    Adapter,
    Edit,
    Pipeline,
    PredictionCall,
    PredictionEdit,
    Seam,
    SiteCall,
    SiteEffect,
    TextSiteEdit,
    find_adapter,
)
from safeguard.testing import ContractError, check_eraser, eraser_checks, tiny_pipeline
from safeguard.testing.eraser_checks import Check
from safeguard.testing.tiny_pipelines import denoiser
from safeguard.testing.trial import BreachError, Trial
from safeguard.training import Task, Trainer
from safeguard.training.frozen_pipeline import FrozenPipeline

Act = Callable[[PredictionCall, Tensor], Tensor]


def shrunk(call: PredictionCall, strength: Tensor) -> Tensor:
    """A prediction that is made smaller: keeps the contract."""
    return call.prediction * (1 - 0.1 * strength)


class _Acting(PredictionEdit):
    def __init__(self, concepts: Sequence[str], act: Act) -> None:
        self.concepts, self._act = tuple(concepts), act

    def __call__(self, call: PredictionCall) -> Tensor:
        return self._act(call, call.strengths.amax(1)[:, None, None, None].to(call.prediction))


class Shrink:
    """Makes the prediction smaller; each wrong eraser below changes one thing of it."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "shrink"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.PREDICTION})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 1.0, "strong": 2.0, "max": 4.0}
    params: ClassVar[Mapping[str, Any]] = {}

    def act(self) -> Act:
        return shrunk

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Acting([concept.id for concept in concepts], self.act())]


class IgnoresHowStrong(Shrink):
    def act(self) -> Act:
        return lambda call, strength: call.prediction * (1 - 0.1 * (strength > 0).to(strength))


class MixesRows(Shrink):
    def act(self) -> Act:
        return lambda call, strength: call.prediction - 0.1 * strength * call.prediction.mean(0, keepdim=True)


class KeepsStateOnItself(Shrink):
    def act(self) -> Act:
        calls: list[int] = []

        def counting(call: PredictionCall, strength: Tensor) -> Tensor:
            calls.append(1)
            return call.prediction * (1 - 0.01 * len(calls) * strength)

        return counting


class LeavesEditsToChance(Shrink):
    def act(self) -> Act:
        amount = float(torch.rand(()))
        return lambda call, strength: call.prediction * (1 - amount * strength)


class RemembersTheWrongRow(Shrink):
    def act(self) -> Act:
        def gaining(call: PredictionCall, strength: Tensor) -> Tensor:
            last = call.memory.of_row(len(call.prediction) - 1)
            last["calls"] = last.get("calls", 0) + 1
            return call.prediction * (1 - 0.1 * last["calls"] * strength)

        return gaining


class SilentWithoutGuidance(Shrink):
    def act(self) -> Act:
        return lambda call, strength: call.prediction if call.unconditional is None else shrunk(call, strength)


class KnowsOneSize(Shrink):
    def act(self) -> Act:
        pattern = torch.ones(16, 16)
        return lambda call, strength: call.prediction - strength * pattern.to(call.prediction)


class NeedsFloat32(Shrink):
    def act(self) -> Act:
        mix = torch.eye(16)
        return lambda call, strength: call.prediction @ (mix * 0.9)


class DeclaresMore(Shrink):
    seams = frozenset({Seam.PREDICTION, Seam.TEXT_SITE})


class DoesNothing(Shrink):
    def act(self) -> Act:
        return lambda call, strength: call.prediction


class RefusesAll(Shrink):
    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        raise CapabilityError("not on such a pipeline", eraser=self.name)


class LacksAWord(Shrink):
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "strong": 2.0}


class WordsFall(Shrink):
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 2.0, "strong": 1.0, "max": 4.0}


class RisesDown(Shrink):
    strengths: ClassVar[Mapping[str, float]] = {**Shrink.strengths, "auto": 0.1}


class _Narrow(TextSiteEdit):
    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = tuple(concepts)

    def select(self, columns: Sequence[int]) -> _Narrow:
        return _Narrow([self.concepts[column] for column in columns])

    def __call__(self, call: SiteCall) -> SiteEffect:
        return SiteEffect(call.output[..., :1])


class WrongShape(Shrink):
    seams = frozenset({Seam.TEXT_SITE})

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Narrow([concept.id for concept in concepts])]


def run(kind: type[Shrink], check: Check) -> None:
    """One check of an eraser on the tiny UNet pipeline."""
    with Trial(kind(), tiny_pipeline("unet"), {}, [kind]) as trial:
        check(trial)


def test_an_eraser_that_keeps_the_contract_passes_every_check() -> None:
    report = check_eraser(Shrink, families=["unet"])
    assert (report.failed, report.refused) == ((), ())
    assert {result.check for result in report.results if result.family == "unet"} == set(eraser_checks.CHECKS)


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        (IgnoresHowStrong, eraser_checks.strength_scale, "give the same images"),
        (MixesRows, eraser_checks.rows_apart, "active in another row"),
        (KeepsStateOnItself, eraser_checks.same_again, "keep state only in call.memory"),
        (KeepsStateOnItself, eraser_checks.interrupted, "interrupted"),
        (LeavesEditsToChance, eraser_checks.swapped_and_back, "pure function"),
        (RemembersTheWrongRow, eraser_checks.memory_of_rows, "begins in another row half way"),
        (SilentWithoutGuidance, eraser_checks.without_guidance, "nothing changes in row 0"),
        (DeclaresMore, eraser_checks.recorded, "0 text sites"),
    ],
)
def test_a_breach_is_found_with_concept_and_shape(kind: type[Shrink], check: Check, message: str) -> None:
    with pytest.raises(BreachError, match=message) as raised:
        run(kind, check)
    assert raised.value.concept == "blood"


def test_an_eraser_that_knows_one_size_fails_in_another() -> None:
    with pytest.raises(Exception, match="must match the size"):
        run(KnowsOneSize, eraser_checks.in_another_size)


def test_an_eraser_that_needs_float32_fails_in_half_precision() -> None:
    with pytest.raises(PluginError, match="failed"):
        run(NeedsFloat32, eraser_checks.in_half_precision)


def test_overwritten_weights_are_found() -> None:
    pipe = tiny_pipeline("unet")

    class Overwrites(Shrink):
        def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
            with torch.no_grad():
                denoiser(pipe).conv_out.bias.add_(0.1)
            return super().edits(concepts, params, pipeline)

    with (
        Trial(Overwrites(), pipe, {}, [Overwrites]) as trial,
        pytest.raises(BreachError, match=r"conv_out\.bias was overwritten"),
    ):
        eraser_checks.released(trial)


@pytest.mark.parametrize(
    ("kind", "message"), [(LacksAWord, "lacks medium, max"), (WordsFall, "never fall"), (RisesDown, "below 'strong'")]
)
def test_strength_words_are_checked(kind: type[Shrink], message: str) -> None:
    with pytest.raises(BreachError, match=message):
        eraser_checks.require_strength_words(kind())


def test_an_eraser_without_effect_fails_and_no_pipeline_is_blamed() -> None:
    with pytest.raises(ContractError, match="the edits change nothing") as raised:
        check_eraser(DoesNothing, families=["unet"])
    assert (raised.value.eraser, raised.value.concept, raised.value.seam) == ("shrink", "blood", "prediction")


def test_a_wrong_edit_is_told_with_seam_site_and_shape() -> None:
    with pytest.raises(ContractError) as raised:
        check_eraser(WrongShape, families=["unet"])
    error = raised.value
    assert (error.eraser, error.concept, error.seam) == ("shrink", "blood", "text site")
    assert "attn2" in error.site
    assert error.shape[-1] == 1
    assert error.site in str(error)


def test_one_that_refuses_every_pipeline_fails() -> None:
    with pytest.raises(ContractError, match="refuses every pipeline"):
        check_eraser(RefusesAll)


def test_a_class_that_is_no_eraser_is_refused_at_once() -> None:
    class Empty:
        name = "empty"

    with pytest.raises(PluginError, match="lacks api"):
        check_eraser(Empty)


def test_an_eraser_that_is_installed_can_be_checked() -> None:
    from safeguard_plugins.vsf import VSF

    assert check_eraser(VSF, families=["unet"]).failed == ()


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(SafeguardError, match="unet or joint"):
        tiny_pipeline("video")


def test_a_tiny_pipeline_is_the_same_every_time() -> None:
    before = torch.get_rng_state()
    weights = [denoiser(tiny_pipeline("joint")).state_dict() for _ in range(2)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert torch.equal(torch.get_rng_state(), before)


class OfItsConcept(Shrink):
    """Of a file that holds one concept, as a trainer writes it that learns a vector of each."""

    name: ClassVar[str] = "of_its_concept"
    params: ClassVar[Mapping[str, Any]] = {"adapter": ""}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        for concept in concepts:
            if concept.id not in find_adapter(params["adapter"], concept, self.name, pipeline).tensors:
                raise CapabilityError(f"the adapter has nothing of {concept.id!r}", missing="adapter")
        return super().edits(concepts, params, pipeline)


def one_vector(task: Task) -> Adapter:
    (concept,) = task.concepts
    frozen = FrozenPipeline(task.pipe)
    return Adapter(OfItsConcept.name, frozen.attachment.fingerprint, {concept.id: torch.ones(1)}, {"concept": concept.id})


def test_a_trainer_makes_a_file_of_each_concept_of_the_checks() -> None:
    """Then no check counts as refused for want of a file."""
    report = check_eraser(OfItsConcept, trainer=Trainer(OfItsConcept.name, one_vector, prompts=True), families=["unet"])
    assert (report.failed, report.refused) == ((), ())


def test_no_test_framework_and_no_demo_is_imported() -> None:
    script = "import sys, safeguard.testing; print({'pytest', 'safeguard_demo', 'safeguard_plugins'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
