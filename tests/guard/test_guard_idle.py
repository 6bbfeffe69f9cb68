"""An eraser that finds nothing to do in a text: its concept was active all the same, and the record says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from safeguard.plan.registry import GROUP
from safeguard.policy import Concept
from safeguard.sdk.calls import StatesCall
from safeguard.sdk.pipeline import Pipeline
from safeguard.sdk.seams import Edit, Seam, TextStatesEdit
from tests.support.contract_policies import calibrated, concept, policy, same
from tests.support.families import PROMPTS, generate

Pipe = Any
Protect = Callable[..., Any]


class _Picky(TextStatesEdit):
    """Takes every text away but those that tests paint."""

    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = tuple(concepts)
        self.adapters = dict.fromkeys(self.concepts, "ad" * 32)

    def __call__(self, call: StatesCall) -> Tensor:
        acts = call.strengths.amax(-1)[:, None, None] > 0
        return call.states if set(call.texts) <= set(PROMPTS) else torch.where(acts, 0.0, call.states)


class Picky:
    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "picky"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_STATES})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}
    params: ClassVar[Mapping[str, Any]] = {}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Picky([one.id for one in concepts])]


@pytest.fixture(autouse=True)
def picky_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "picky-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: picky\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\npicky = {__name__}:Picky\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_concept_that_was_active_is_in_the_record_though_nothing_was_to_be_done(
    pipe: Pipe, protect: Protect, plain: torch.Tensor
) -> None:
    guard = protect(pipe, policy(concept("blood", eraser="picky")))
    with guard.request() as request:
        assert same(generate(pipe, PROMPTS), plain)
    assert [decision.result for decision in request.decisions] == ["pass", "erase", "pass"]
    (applied,) = request.decisions[1].applied
    assert (applied.concept, applied.eraser, applied.strength, applied.steps) == ("blood", "picky", 2.0, None)


def test_nothing_to_do_in_the_only_step_is_not_an_eraser_that_came_too_late(pipe: Pipe, protect: Protect) -> None:
    adaptive = policy(concept("blood", eraser="picky", activation="adaptive"))
    calibration = calibrated(pipe, adaptive, opens=(2,))
    guard = protect(pipe, adaptive, screener=None, calibration=calibration)
    with guard.request() as request:
        generate(pipe, PROMPTS, num_inference_steps=1)
    assert [[one.concept for one in decision.applied] for decision in request.decisions] == [[], [], ["blood"]]


def test_the_record_names_the_adapter_by_which_a_concept_was_erased(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood", eraser="picky"), concept("snow")))
    with guard.request() as request:
        generate(pipe, ["blood on snow"])
    found = {one.concept: one.adapter for one in request.decisions[0].applied}
    assert found == {"blood": "ad" * 32, "snow": None}
