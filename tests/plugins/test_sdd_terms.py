"""What ``sdd`` learns, term by term, and which edits its adapters make."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch
from packaging.version import Version
from safeguard_plugins.sdd.eraser import SDD
from safeguard_plugins.sdd.train import joined, recipe, train

from safeguard.errors import CapabilityError, SafeguardError
from safeguard.policy import Concept
from safeguard.training.delta_hooks import added
from safeguard.training.frozen_pipeline import Course, weights_frozen
from safeguard.training.task import Task
from safeguard.training.text_pairs import TextPair
from tests.support.families import denoiser
from tests.support.installed_adapters import install_adapters
from tests.support.students import PAIRS, Pipe, adapter, exam, factors, frozen, numbers, training
from tests.support.worded_denoisers import delta_of

OLD_FILES = Version(safetensors.__version__) < Version("0.5")  # 0.4.3 is the lowest that is supported


@pytest.fixture(params=[False, True], ids=["unchanged", "moving"])
def moving(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_an_empty_concept_has_no_loss_and_changes_nothing(moving: bool) -> None:
    work = training(recipe(moving=moving), None, [TextPair("", "")])
    assert work.loss(work.batch(0)).item() == 0.0
    assert all(not delta.any() for delta in work.run().values())
    assert all(not delta.any() for delta in work.student.values())


def test_the_gradient_goes_through_what_is_said_to_the_concept_alone(moving: bool) -> None:
    beside = frozen()
    with weights_frozen(beside.denoiser):
        work = training(recipe(moving=moving), beside)
        work.run()  # away from zero, where student and base are one
        batch = work.batch(0)
        with torch.no_grad(), added(beside.denoiser, work.student if moving else {}):
            target = beside.predict(work._values, batch.shown, batch.noisy, batch.time)
        with added(beside.denoiser, work.student):
            expected = (beside.predict(work._values, batch.said, batch.noisy, batch.time) - target).square().mean()
        deltas = list(work.student.values())
        found = torch.autograd.grad(work.loss(batch), deltas)
        for one, other in zip(found, torch.autograd.grad(expected, deltas), strict=True):
            torch.testing.assert_close(one, other)


def test_a_teacher_of_nothing_new_stays_as_it_was() -> None:
    work = training(recipe(average=1.0))
    assert all(not delta.any() for delta in work.run().values())
    assert any(delta.any() for delta in work.student.values())


def test_a_teacher_without_a_past_is_the_student() -> None:
    work = training(recipe(average=0.0))
    for name, delta in work.run().items():
        assert torch.equal(delta, work.student[name])


@pytest.mark.parametrize("strict", [0, 1])
def test_the_layers_of_the_text_are_learnt_and_no_weight_changes(strict: int) -> None:
    beside = frozen()
    before = copy.deepcopy(denoiser(beside.pipe).state_dict())
    with weights_frozen(beside.denoiser):
        made = training(recipe(), beside, strict=strict).run()
    assert all(".attn2.to_" in name for name in made)
    assert {name.rpartition(".to_")[2] for name in made} == ({"k", "v"} if strict else {"k", "v", "q", "out.0"})
    assert all(torch.equal(before[name], value) for name, value in beside.denoiser.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in beside.denoiser.modules())


@pytest.mark.parametrize(
    ("way", "painted", "said"),
    [(0, ["sword", "knife"], ["sword", "knife"]), (1, ["sword, knife"] * 2, ["sword", "knife"]),
     (2, ["sword", "knife"], ["sword, knife"] * 2)],
)  # fmt: skip
def test_phrases_are_joined_in_the_pictures_or_in_what_is_learnt(way: int, painted: list[str], said: list[str]) -> None:
    beside, asked = frozen(), list[str]()
    course = beside.course

    def watched(prompts: Sequence[str], *rest: Any) -> Course:
        asked.extend(prompts)
        return course(prompts, *rest)

    beside.course = watched  # type: ignore[method-assign]
    work = training(recipe(), beside, joined([TextPair("", "sword"), TextPair("", "knife")], way))
    texts = list(work._numbers)
    assert [texts[number] for number in work.batch(0).said] == said
    assert asked == painted


def test_phrases_are_joined_in_no_whole_texts() -> None:
    unread: Any = SimpleNamespace()  # settings are looked at before pipeline and policy
    task = Task(unread, unread, settings={"joined": 1, "context": 1})
    with pytest.raises(SafeguardError, match="joined is for phrases alone"):
        train(task)


def test_less_of_the_concept_is_left() -> None:
    beside = frozen()
    asked = exam(beside)
    assert asked.marks({})["left"] == pytest.approx(1.0)
    with weights_frozen(beside.denoiser):
        made = training(recipe(average=0.0), beside, updates=15, rate=2e-3).run()
    assert asked.marks(made)["left"] < 0.95


def edits(file: Path, *names: str) -> Any:
    return SDD().edits([Concept(name, (name,)) for name in names], {"adapter": str(file)}, Pipe())  # type: ignore[arg-type]


def test_an_edit_adds_its_delta_times_the_strength(tmp_path: Path) -> None:
    made = adapter("sdd")
    made.save(tmp_path / "a")
    (edit,) = edits(tmp_path / "a", "blood")
    assert (edit.module, edit.concepts, edit.adapters) == ("unet.a", ("blood",), {"blood": made.digest})
    inputs, delta = numbers(2, 5, 4), made.tensors["unet.a.up"] @ made.tensors["unet.a.down"]
    found = delta_of(edit, inputs, torch.tensor([[0.0], [2.0]]))
    assert not found[0].any()
    torch.testing.assert_close(found[1], 2 * inputs[1] @ delta.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_keeps_the_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    adapter("sdd").save(tmp_path / "a")
    (edit,) = edits(tmp_path / "a", "blood")
    assert delta_of(edit, numbers(1, 4).to(dtype), torch.ones(1, 1)).dtype == dtype


def test_every_concept_has_its_own_deltas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_adapters(tmp_path, monkeypatch)
    for name in ("blood", "weapon"):
        adapter("sdd", settings={"concept": name}).save(tmp_path / f"sdd-pipe-{name}.safetensors")
    concepts = [Concept(name, (name,)) for name in ("blood", "weapon")]
    made = SDD().edits(concepts, {"adapter": "default"}, Pipe())  # type: ignore[arg-type]
    assert [edit.concepts for edit in made] == [("blood",), ("weapon",)]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        pytest.param({}, "not all there", marks=pytest.mark.skipif(OLD_FILES, reason="reads no file without tensors")),
        ({"unet.a.down": numbers(2, 4)}, "unet.a.up"),
        ({**factors(), "unet.a.bias": numbers(3)}, "not all there"),
        ({"unet.a.down": numbers(2, 4), "unet.a.up": numbers(3, 5)}, "do not fit one another"),
        ({"unet.a.down": torch.full((2, 4), float("inf")), "unet.a.up": numbers(3, 2)}, "finite"),
    ],
    ids=["none", "half", "more", "widths", "finite"],
)
def test_an_adapter_that_holds_something_else_is_refused(tensors: dict[str, Any], words: str, tmp_path: Path) -> None:
    adapter("sdd", tensors=tensors).save(tmp_path / "a")
    with pytest.raises(CapabilityError, match=f"this is no adapter of sdd .*{words}"):
        edits(tmp_path / "a", "blood")


def test_pairs_are_what_the_student_learns_from() -> None:
    work = training(recipe())
    batch = work.batch(0)
    texts = {place: text for text, place in work._numbers.items()}
    assert [(texts[shown], texts[said]) for shown, said in zip(batch.shown, batch.said, strict=True)] == [
        (pair.shown, pair.said) for pair in PAIRS
    ]
