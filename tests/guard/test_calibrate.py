"""Calibration on a pipeline: what it asks for, what it gives, and what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import safeguard
from safeguard.errors import CapabilityError
from tests.support.contract_policies import concept, policy, same
from tests.support.families import PROMPTS, SIDE, generate

Pipe = Any
ADAPTIVE = policy(concept("blood", activation="adaptive"), concept("weapon", activation="adaptive"))
THINGS = ("boat", "tree", "house", "dog", "car", "flower", "person", "table")
PLACES = ("in the snow", "on a street", "by a lake", "at night", "in a room", "on a hill")
ORDINARY = [f"a {thing} {place}" for thing in THINGS for place in PLACES]
CALL = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": SIDE, "width": SIDE}


@pytest.fixture(scope="module")
def made(shared_pipe: Pipe) -> safeguard.plan.calibration.Calibration:
    return safeguard.calibrate(shared_pipe, ADAPTIVE, ORDINARY, call=CALL)


def test_it_learns_one_gauge_a_concept_with_a_report(made: Any) -> None:
    assert set(made.gauges) == {"blood", "weapon"}
    report = made.gauges["blood"].report
    assert report["prompts"] == len(ORDINARY)
    assert all(0 <= report[name] <= 1 for name in ("auroc", "caught", "opened_by_ordinary", "opened_by_other_concepts"))


def test_the_same_prompts_and_seed_give_the_same(shared_pipe: Pipe, made: Any) -> None:
    assert safeguard.calibrate(shared_pipe, ADAPTIVE, ORDINARY, call=CALL).digest == made.digest


@pytest.mark.timeout(900)  # twenty concepts, each with every prompt
def test_many_related_concepts_do_not_outvote_ordinary_prompts(shared_pipe: Pipe) -> None:
    names = ("Mira", "Tovi", "Lasse", "Orrin", "Pela", "Quint", "Rosk", "Sable", "Ulve", "Zora")
    artists = [
        concept(f"{name.lower()}-{place}", phrases=(f"in the style of {name} Abend",), activation="adaptive")
        for name in names
        for place in (1, 2)
    ]
    made = safeguard.calibrate(shared_pipe, policy(*artists), ORDINARY, call=CALL)
    assert min(gauge.report["auroc"] for gauge in made.gauges.values()) > 0.95


def test_it_leaves_the_pipeline_as_it_was(pipe: Pipe, made: Any, plain: torch.Tensor) -> None:
    assert same(generate(pipe, PROMPTS), plain)


def test_it_protects_what_it_was_made_for(pipe: Pipe, made: Any, protect: Callable[..., Any]) -> None:
    guard = protect(pipe, ADAPTIVE, screener=None, calibration=made)
    assert guard.status().calibration == made.digest


def test_a_smaller_rate_has_a_higher_threshold(shared_pipe: Pipe, made: Any) -> None:
    strict = safeguard.calibrate(shared_pipe, ADAPTIVE, ORDINARY, call=CALL, rate=1e-6)
    assert strict.gauges["blood"].threshold > made.gauges["blood"].threshold


def test_progress_is_told_to_the_end(shared_pipe: Pipe) -> None:
    told: list[tuple[int, int]] = []
    safeguard.calibrate(shared_pipe, ADAPTIVE, ORDINARY, call=CALL, advance=lambda *step: told.append(step))
    assert told[-1] == (3 * len(ORDINARY), 3 * len(ORDINARY))


@pytest.mark.parametrize(
    ("prompts", "options", "chosen", "words"),
    [
        (ORDINARY[:10] * 5, {}, ADAPTIVE, "at least 40 different ordinary prompts, not 10"),
        (ORDINARY, {"rate": 0.9}, ADAPTIVE, "the rate is a share"),
        (ORDINARY, {"residual": 10}, ADAPTIVE, "residual is a number of the 48 prompts, at least 40"),
        (ORDINARY, {"residual": 100}, ADAPTIVE, "residual is a number of the 48 prompts, at least 40"),
        (ORDINARY, {}, policy(concept("blood")), "no adaptive concept"),
    ],
    ids=["few", "rate", "few residual", "many residual", "concepts"],
)
def test_what_cannot_be_calibrated_is_refused(
    prompts: list[str], options: dict[str, Any], chosen: Any, words: str, pipe: Pipe
) -> None:
    with pytest.raises(CapabilityError, match=words):
        safeguard.calibrate(pipe, chosen, prompts, call=CALL, **options)


def test_a_guarded_pipeline_is_refused(pipe: Pipe, protect: Callable[..., Any]) -> None:
    protect(pipe, ADAPTIVE)
    with pytest.raises(CapabilityError, match="guarded already"):
        safeguard.calibrate(pipe, ADAPTIVE, ORDINARY, call=CALL)
