"""What ``ccrt`` learns, stage by stage, how it mines prompts, and which edits its adapters make."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safeguard_plugins.ccrt.eraser import CCRT
from safeguard_plugins.ccrt.train import Alignment, CCRTSettings, Removal
from safeguard_plugins.esd import train as esd_training

from safeguard.errors import CapabilityError, SafeguardError
from safeguard.policy import Concept
from safeguard.training.delta_hooks import added
from safeguard.training.frozen_pipeline import FrozenPipeline, weights_frozen
from safeguard.training.mining import Misalignment, Search, mine
from safeguard.training.text_pairs import TextPair
from tests.support.students import FEW, PAIRS, Pipe, adapter, frozen, numbers, training
from tests.support.worded_denoisers import delta_of

LESSONS = {"blood": PAIRS, "weapon": [TextPair("a red boat", "a red boat with a weapon")]}
ENTITIES = ["a dog", "a boat", "in the snow", "at night"]
BRIEF = CCRTSettings(probe=1, pool=3, mined=2, tolerance=9.0)


class StoppedError(RuntimeError):
    """What a test stops a training with."""


def removal(beside: FrozenPipeline, own: CCRTSettings = BRIEF, file: Path | None = None, concepts: int = 2) -> Removal:
    lessons = dict(list(LESSONS.items())[:concepts])
    return Removal(beside, lessons, FEW, esd_training.recipe(), own, ENTITIES, file)


def silent(what: str) -> Any:
    return lambda done, whole: None


def test_one_concept_that_nothing_is_held_against_is_esd() -> None:
    beside = frozen()
    with weights_frozen(beside.denoiser):
        made = removal(beside, replace(BRIEF, hold=0.0), concepts=1).run(silent)
        expected = training(esd_training.recipe(), beside).run()
    assert all(torch.equal(made[name], delta) for name, delta in expected.items())


def test_what_is_held_is_where_it_was_at_the_start() -> None:
    beside = frozen()
    aligned = Alignment(beside, ENTITIES, FEW)
    assert aligned.loss(0, {}).item() == 0.0
    with weights_frozen(beside.denoiser):
        assert aligned.loss(0, training(esd_training.recipe(), beside).run()).item() > 0.0


def test_with_nothing_to_remove_what_is_held_keeps_it_there() -> None:
    beside = frozen()
    aligned = Alignment(beside, ENTITIES, FEW)
    with weights_frozen(beside.denoiser):
        made = training(
            replace(esd_training.recipe(0.0), held=lambda step, deltas: 1e6 * aligned.loss(step, deltas)), beside
        ).run()
    assert all(not delta.any() for delta in made.values())


def test_holding_keeps_other_prompts_nearer() -> None:
    beside = frozen()
    aligned = Alignment(beside, ENTITIES, FEW)
    found = []
    with weights_frozen(beside.denoiser):
        for hold in (0.0, 10.0):
            recipe = replace(esd_training.recipe(), held=lambda step, deltas, hold=hold: hold * aligned.loss(step, deltas))
            made = training(recipe, beside, updates=15).run()
            found.append(aligned.loss(10**6, made).item())
    assert found[1] < found[0]


def test_only_the_layers_of_the_text_change() -> None:
    beside = frozen()
    before = {name: value.clone() for name, value in beside.denoiser.state_dict().items()}
    with weights_frozen(beside.denoiser):
        made = removal(beside).run(silent)
    assert all(".attn2.to_" in name for name in made)
    assert all(torch.equal(before[name], value) for name, value in beside.denoiser.state_dict().items())


def test_a_later_stage_goes_on_from_the_one_before() -> None:
    beside = frozen()
    with weights_frozen(beside.denoiser):
        first = removal(beside, concepts=1).run(silent)
        begun: list[dict[str, Any]] = []
        work = removal(beside)
        stage = work._stage

        def watched(number: int, concept: str, start: Any, told: Any) -> Any:
            begun.append({name: delta.clone() for name, delta in start.items()})
            return stage(number, concept, start, told)

        work._stage = watched  # type: ignore[method-assign]
        work.run(silent)
    assert not begun[0]
    assert all(torch.equal(begun[1][name], delta) for name, delta in first.items())


def test_an_earlier_concept_that_comes_back_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = frozen()
    work = removal(beside, replace(BRIEF, hold=0.0, tolerance=0.1))
    monkeypatch.setattr(work, "_stage", lambda number, concept, start, told: {} if number else trained)
    with weights_frozen(beside.denoiser):
        trained = training(esd_training.recipe(), beside, updates=20).run()
        with pytest.raises(SafeguardError, match=r"taking 'weapon' brought 'blood' back, from .* of its guidance to 1\.00"):
            work.run(silent)


def test_a_sequence_that_was_stopped_goes_on(tmp_path: Path) -> None:
    def stopped(what: str) -> Any:
        def progress(done: int, whole: int) -> None:
            if what == "weapon: updates":
                raise StoppedError

        return progress

    whole: list[str] = []
    beside = frozen()
    with weights_frozen(beside.denoiser):
        expected = removal(beside).run(silent)
        with pytest.raises(StoppedError):
            removal(beside, file=tmp_path / "a.checkpoint").run(stopped)
        made = removal(beside, file=tmp_path / "a.checkpoint").run(lambda what: whole.append(what) or silent(what))  # type: ignore[func-returns-value]
    assert whole == ["weapon: probe", "weapon: updates"]
    assert all(torch.equal(made[name], delta) for name, delta in expected.items())
    assert [file.name for file in tmp_path.iterdir()] == ["a.checkpoint"]


def distance(beside: FrozenPipeline, deltas: Any) -> Misalignment:
    def changed() -> Any:
        return added(beside.denoiser, deltas) if deltas else contextlib.nullcontext()

    return Misalignment(beside, changed, steps=2, guidance=3.0, batch=2, seed=0)


def test_where_nothing_is_changed_the_distance_is_nothing() -> None:
    assert distance(frozen(), {})(ENTITIES) == [0.0] * 4


def test_the_distance_of_a_prompt_is_its_own() -> None:
    beside = frozen()
    deltas = {name: 0.1 * numbers(*delta.shape) for name, delta in training(esd_training.recipe(), beside).student.items()}
    asked = distance(beside, deltas)
    together, alone = asked(ENTITIES[:3]), asked(ENTITIES[2:3])
    assert all(one > 0 for one in together)
    assert together[2:] == pytest.approx(alone, rel=1e-3)


def test_the_prompts_that_changed_most_are_found() -> None:
    measured: list[str] = []

    def words(prompts: Sequence[str]) -> list[float]:
        measured.extend(prompts)
        return [float(("dog" in prompt) + ("snow" in prompt)) for prompt in prompts]

    found = mine(ENTITIES, words, random.Random(0), Search(keep=3, generations=6))
    assert found[0] == ("a dog, in the snow", 2.0)
    assert [much for _, much in found] == sorted((much for _, much in found), reverse=True)
    assert len(found) == 3
    assert len(measured) == len(set(measured))


def test_none_is_longer_than_wanted() -> None:
    found = mine(list("abcdefgh"), lambda prompts: [len(one) for one in prompts], random.Random(0), Search(8, 6, longest=2))
    assert {prompt.count(",") for prompt, _ in found} <= {0, 1}


def test_fewer_entities_than_are_kept_are_all_kept() -> None:
    assert [prompt for prompt, _ in mine(["a"], lambda prompts: [1.0] * len(prompts), random.Random(0))] == ["a"]


def edits(file: Path, *names: str) -> Any:
    return CCRT().edits([Concept(name, (name,)) for name in names], {"adapter": str(file)}, Pipe())  # type: ignore[arg-type]


def test_one_delta_is_for_all_concepts_at_the_largest_strength(tmp_path: Path) -> None:
    made = adapter("ccrt")
    made.save(tmp_path / "a")
    (edit,) = edits(tmp_path / "a", "blood", "weapon")
    assert edit.adapters == {"blood": made.digest, "weapon": made.digest}
    inputs, delta = numbers(2, 4), made.tensors["unet.a.up"] @ made.tensors["unet.a.down"]
    found = delta_of(edit, inputs, torch.tensor([[0.5, 1.0], [2.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0], [2.0]]) * (inputs @ delta.T))


def test_a_concept_that_the_sequence_does_not_hold_is_refused(tmp_path: Path) -> None:
    adapter("ccrt").save(tmp_path / "a")
    with pytest.raises(CapabilityError, match=r"concept 'fish': .* takes blood, weapon; train one with safeguard train ccrt"):
        edits(tmp_path / "a", "blood", "fish")


def test_an_adapter_without_a_sequence_is_refused(tmp_path: Path) -> None:
    adapter("ccrt", settings={"concept": "blood"}).save(tmp_path / "a")
    with pytest.raises(CapabilityError, match="does not say which concepts"):
        edits(tmp_path / "a", "blood")
