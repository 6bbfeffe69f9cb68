"""What an erased concept has left: read in the last step, put on record, and what the policy does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.audit import MemorySink
from safeguard.errors import CapabilityError, PolicyViolation
from safeguard.guard.calibrate import FEWEST, calibrate
from safeguard.plan.calibration import Calibration, Detector
from safeguard.plan.detectors import LAST
from safeguard.policy import Policy, derive, load_policy

Pipe = Any
Protect = Callable[..., Any]
BLOODY, BENIGN = "a blue car covered in blood", "a blue car on a street"
STEPS: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def pipe() -> Pipe:
    """The trained pipeline: of a tiny one with random weights there is nothing to see in a picture."""
    from safeguard_demo import load_pipeline

    return load_pipeline("unet")


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    from safeguard_demo.pipelines import calibration as file_of

    return Calibration.load(file_of("unet"))


@pytest.fixture
def strict(calibration: Calibration) -> Calibration:
    """The same, by which nothing that is left is little enough."""
    gauges = {name: replace(gauge, threshold=-1e9) for name, gauge in calibration.residuals.items()}
    return replace(calibration, residuals=gauges)


def blood(**changes: Any) -> Policy:
    return derive(load_policy("builtin://demo"), concepts=["blood"], **changes)


def paint(pipe: Pipe, *prompts: str, seed: int = 5) -> Any:
    generators = [torch.Generator().manual_seed(seed + place) for place in range(len(prompts))]
    return pipe(list(prompts), generator=generators, output_type="np", **STEPS).images


def test_the_record_says_what_is_left_of_an_erased_concept_and_that_it_was_enough(
    pipe: Pipe, protect: Protect, calibration: Calibration
) -> None:
    sink = MemorySink()
    guard = protect(pipe, blood(), calibration=calibration, screener=None, audit=sink)
    with guard.request() as request:
        paint(pipe, BLOODY, BENIGN)
    erased, untouched = request.decisions
    residual = erased.applied[0].residual
    assert residual is not None
    assert residual.enough
    assert residual.score < residual.threshold
    assert untouched.applied == ()
    assert sink.records[0]["applied"][0]["residual"]["enough"] is True


def test_an_erasure_that_is_too_weak_was_not_enough(pipe: Pipe, protect: Protect, calibration: Calibration) -> None:
    guard = protect(pipe, blood(strength=0.05), calibration=calibration, screener=None)
    with guard.request() as request:
        paint(pipe, BLOODY)
    (weak,) = request.decisions[0].applied
    assert weak.residual is not None
    assert not weak.residual.enough


def test_reading_what_is_left_changes_no_picture(pipe: Pipe, protect: Protect, calibration: Calibration) -> None:
    with protect(pipe, blood(), calibration=calibration, screener=None):
        read = paint(pipe, BLOODY, BENIGN)
    with protect(pipe, blood(), calibration=replace(calibration, residuals={}), screener=None):
        assert (paint(pipe, BLOODY, BENIGN) == read).all()


def test_without_residuals_in_the_calibration_the_record_says_nothing_of_them(
    pipe: Pipe, protect: Protect, calibration: Calibration
) -> None:
    sink = MemorySink()
    protect(pipe, blood(), calibration=replace(calibration, residuals={}), screener=None, audit=sink)
    paint(pipe, BLOODY)
    assert "residual" not in sink.records[0]["applied"][0]


def test_withhold_raises_and_no_image_stands_on_record(pipe: Pipe, protect: Protect, strict: Calibration) -> None:
    sink = MemorySink()
    guard = protect(pipe, blood(on_residual="withhold"), calibration=strict, screener=None, audit=sink)
    with guard.request() as request, pytest.raises(PolicyViolation, match="too much is left of blood") as raised:
        paint(pipe, BLOODY, BENIGN)
    withheld, beside = request.decisions
    assert (withheld.result, withheld.output, beside.status, beside.output) == ("block", None, "error", None)
    assert raised.value.decision_ids == (withheld.decision_id,)
    assert len(sink.records) == 2


def test_withhold_lets_pass_what_was_erased_and_what_never_was_asked_for(
    pipe: Pipe, protect: Protect, calibration: Calibration
) -> None:
    protect(pipe, blood(on_residual="withhold"), calibration=calibration, screener=None)
    assert len(paint(pipe, BLOODY, BENIGN)) == 2


def test_again_runs_from_the_same_noise_and_stronger_where_too_much_is_left(
    pipe: Pipe, protect: Protect, calibration: Calibration
) -> None:
    weak = 0.5
    once = replace(calibration, residuals={"blood": replace(calibration.residuals["blood"], threshold=-1.0)})
    with protect(pipe, blood(strength=1.5 * weak, activation="always"), screener=None):
        stronger = paint(pipe, BLOODY)
    guard = protect(pipe, blood(strength=weak, on_residual="again"), calibration=once, screener=None)
    with guard.request() as request, pytest.raises(PolicyViolation):
        paint(pipe, BLOODY)
    assert request.decisions[0].applied[0].strength == pytest.approx(1.5 * weak)
    enough = request.decisions[0].applied[0].residual
    assert enough is not None
    guard.release()
    passing = replace(once, residuals={"blood": replace(once.residuals["blood"], threshold=enough.score + 1e-6)})
    guard = protect(pipe, blood(strength=weak, on_residual="again"), calibration=passing, screener=None)
    with guard.request() as request:
        image = paint(pipe, BLOODY)
    (applied,) = request.decisions[0].applied
    assert (applied.strength, applied.strength_word) == (pytest.approx(1.5 * weak), None)
    assert (image == stronger).all()


def test_again_without_a_generator_starts_from_the_noise_of_the_process(
    pipe: Pipe, protect: Protect, strict: Calibration
) -> None:
    last: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        last.append(values["latents"].clone())
        return values

    guard = protect(pipe, blood(on_residual="again"), calibration=strict, screener=None)
    torch.manual_seed(3)
    with pytest.raises(PolicyViolation):
        pipe(BLOODY, callback_on_step_end=keep, **STEPS)
    guard.release()
    again = last[-1]
    with protect(pipe, blood(strength=1.5, activation="always"), screener=None):
        torch.manual_seed(3)
        pipe(BLOODY, callback_on_step_end=keep, **STEPS)
    assert len(last) == 3 * STEPS["num_inference_steps"]
    assert torch.equal(again, last[-1])


def test_a_policy_that_must_know_what_is_left_is_refused_where_nothing_tells_it(
    pipe: Pipe, protect: Protect, calibration: Calibration
) -> None:
    needing = blood(on_residual="withhold")
    with pytest.raises(CapabilityError, match="needs to know what is left"):
        protect(pipe, needing, screener=None)
    with pytest.raises(CapabilityError, match="needs to know what is left"):
        protect(pipe, needing, screener=None, calibration=replace(calibration, residuals={}))
    with pytest.raises(CapabilityError, match="activation: adaptive"):
        protect(pipe, derive(needing, activation="always"), screener=None, calibration=calibration)


def test_a_schedule_that_is_not_run_to_its_end_is_withheld_where_it_must_be_known(
    pipe: Pipe, protect: Protect, calibration: Calibration
) -> None:
    def stop(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 4
        return values

    protect(pipe, blood(on_residual="withhold"), calibration=calibration, screener=None)
    with pytest.raises(CapabilityError, match="could not be read in the last step"):
        pipe(BLOODY, callback_on_step_end=stop, **STEPS)


def test_a_calibration_learns_it_from_the_last_step_and_keeps_it_in_its_file(pipe: Pipe, tmp_path: Path) -> None:
    from safeguard_demo.captions import prompts

    ordinary = [prompt.text for prompt in prompts("train", "benign", None, FEWEST)]
    call = {"num_inference_steps": 4, "guidance_scale": 4.0}
    told: list[tuple[int, int]] = []
    made = calibrate(
        pipe, blood(on_residual="again"), ordinary, residual=FEWEST, call=call, advance=lambda *now: told.append(now)
    )
    assert told[-1][0] == told[-1][1]
    assert made.residuals["blood"].report["auroc"] > 0.9
    made.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json").residuals == made.residuals
    assert Calibration.load(tmp_path / "calibration.json").digest == made.digest != replace(made, residuals={}).digest


def test_image_tokens_lean_to_the_concept_that_they_show(pipe: Pipe, protect: Protect, calibration: Calibration) -> None:
    guard = protect(pipe, blood(), calibration=calibration, screener=None)
    images = [torch.Generator().manual_seed(place) for place in range(2)]
    looks = guard.look([BLOODY, BENIGN], at="last", generator=images, **STEPS)
    (bloody,), (benign,) = (shown[LAST] for shown in looks)
    assert len(bloody) == len(benign) == 2 * sum(site.heads for site in guard.attachment.sites)
    assert calibration.residuals["blood"].score(bloody) > calibration.residuals["blood"].score(benign) + 3


@pytest.fixture
def greedy(calibration: Calibration) -> Calibration:
    """A calibration by which too much is left at every reading on the way."""
    return replace(calibration, midway=_all_at(calibration, -1e9))


@pytest.fixture
def content(calibration: Calibration) -> Calibration:
    """A calibration by which nothing is left at any reading on the way."""
    return replace(calibration, midway=_all_at(calibration, 1e9))


def _all_at(calibration: Calibration, threshold: float) -> dict[float, dict[str, Detector]]:
    return {
        share: {name: replace(gauge, threshold=threshold) for name, gauge in gauges.items()}
        for share, gauges in calibration.midway.items()
    }


def test_auto_acts_as_strong_where_little_is_left(pipe: Pipe, protect: Protect, content: Calibration) -> None:
    with protect(pipe, blood(strength="strong"), calibration=content, screener=None):
        strong = paint(pipe, BLOODY, BENIGN)
    guard = protect(pipe, blood(strength="auto"), calibration=content, screener=None)
    with guard.request() as request:
        assert (paint(pipe, BLOODY, BENIGN) == strong).all()
    (applied,) = request.decisions[0].applied
    assert (applied.strength, applied.strength_word, applied.raised) == (1.0, "auto", ())


def test_auto_rises_to_its_bound_where_too_much_is_left_and_the_record_says_when(
    pipe: Pipe, protect: Protect, greedy: Calibration
) -> None:
    sink = MemorySink()
    with protect(pipe, blood(strength="strong"), calibration=greedy, screener=None):
        strong = paint(pipe, BLOODY, BENIGN)
    protect(pipe, blood(strength="auto"), calibration=greedy, screener=None, audit=sink)
    raised = paint(pipe, BLOODY, BENIGN)
    assert (raised[0] != strong[0]).any()
    raised_at = sink.records[0]["applied"][0]["raised"]  # after the readings in steps 1 and 3; that in step 6 finds the bound
    assert raised_at == [[2, pytest.approx(3**0.5)], [4, pytest.approx(3.0)]]


def test_auto_leaves_images_in_which_nothing_is_open_as_they_are(pipe: Pipe, protect: Protect, greedy: Calibration) -> None:
    bare = paint(pipe, BLOODY, BENIGN)
    protect(pipe, blood(strength="auto"), calibration=greedy, screener=None)
    assert (paint(pipe, BLOODY, BENIGN)[1] == bare[1]).all()


def test_a_strength_rises_in_each_image_by_itself(pipe: Pipe, protect: Protect, greedy: Calibration) -> None:
    protect(pipe, blood(strength="auto"), calibration=greedy, screener=None)
    together = paint(pipe, BLOODY, BENIGN, BLOODY)
    alone = paint(pipe, BLOODY)
    assert abs(together[0] - alone[0]).max() < 1e-3


def test_the_status_says_where_auto_has_nothing_to_follow(pipe: Pipe, protect: Protect, calibration: Calibration) -> None:
    guard = protect(pipe, blood(strength="auto"), calibration=replace(calibration, midway={}), screener=None)
    assert "stays at strong" in guard.status().activations["blood"]


def test_an_eraser_without_a_bound_has_no_auto(pipe: Pipe, protect: Protect, calibration: Calibration) -> None:
    with pytest.raises(CapabilityError, match="has no strength 'auto'"):
        protect(pipe, blood(strength="auto", eraser="negative_prompt"), calibration=calibration, screener=None)


def test_again_of_auto_begins_higher_and_rises_higher(pipe: Pipe, protect: Protect, greedy: Calibration) -> None:
    strict = replace(greedy, residuals={"blood": replace(greedy.residuals["blood"], threshold=-1e9)})
    guard = protect(pipe, blood(strength="auto", on_residual="again"), calibration=strict, screener=None)
    with guard.request() as request, pytest.raises(PolicyViolation):
        paint(pipe, BLOODY)
    (applied,) = request.decisions[0].applied
    assert (applied.strength, applied.strength_word) == (1.5, "auto")
    assert applied.raised[-1][1] == pytest.approx(4.5)
