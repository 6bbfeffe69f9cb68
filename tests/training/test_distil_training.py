"""Distilling beside a frozen pipeline: what it learns on, on every kind of denoiser, the same each time; what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safeguard_plugins.esd.train import recipe as esd
from safeguard_plugins.sdd.train import recipe as sdd

from safeguard.errors import CapabilityError, SafeguardError
from safeguard.training.delta_hooks import layers_of
from safeguard.training.frozen_pipeline import Course, FrozenPipeline, weights_frozen
from safeguard.training.memory_check import kept_for_backward
from tests.support.families import FAMILIES, denoiser
from tests.support.students import FEW, PAIRS, frozen, training


class StoppedError(RuntimeError):
    """What a test stops a training with."""


def test_pictures_begin_as_pure_noise() -> None:
    """Before the first step nothing was painted yet: what comes into the denoiser does not depend on the text."""
    beside = frozen()
    one, other = (beside.course([text], [7], 3, 3.0) for text in ("a tree", "blood"))
    assert torch.equal(one.latents[0], other.latents[0])
    assert not torch.equal(one.latents[1], other.latents[1])
    assert abs(one.latents[0].std().item() - 1) < 0.1


def test_a_course_has_what_the_denoiser_is_given_at_each_step() -> None:
    beside = frozen()
    course = beside.course(["a tree", "blood"], [7, 8], 3, 3.0)
    assert course.latents.shape == (3, 2, 4, 16, 16)
    assert course.times.tolist() == beside.pipe.scheduler.timesteps.tolist()


def test_a_time_is_of_the_interval_of_its_step() -> None:
    course = Course(torch.arange(6.0).reshape(3, 2, 1), torch.tensor([999, 666, 333]))
    latents, time = course.at([0, 2], torch.tensor([0.0, 0.999]))
    assert latents.flatten().tolist() == [0.0, 5.0]
    assert time.tolist() == [999, 1]
    assert 666 < course.at([0, 0], torch.tensor([0.5, 0.9999]))[1].min().item() <= 999


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3"])
def test_every_kind_of_denoiser_learns(family: str) -> None:
    pipe = FAMILIES[family]()
    options: dict[str, Any] = {"max_sequence_length": 0} if hasattr(pipe, "transformer") else {}
    beside = FrozenPipeline(pipe, options)
    with weights_frozen(beside.denoiser):
        made = training(sdd(), beside).run()
    assert made
    for name, delta in made.items():
        layer = denoiser(pipe).get_submodule(name)
        assert delta.shape == (layer.out_features, layer.in_features)
    assert all(bool(delta.isfinite().all()) for delta in made.values())
    assert any(delta.any() for delta in made.values())


def test_a_denoiser_that_is_called_with_other_rows_is_refused() -> None:
    with pytest.raises(CapabilityError, match="does not call its unet with one row a text"):
        training(sdd(), frozen("pag"))


def test_joint_attentions_are_trained_with_what_first_reads_the_text() -> None:
    beside = frozen("sd3")
    whole, strict = layers_of(beside, strict=False), layers_of(beside, strict=True)
    assert set(strict) < set(whole)
    assert strict == ["time_text_embed.text_embedder.linear_1", "context_embedder"]
    assert "transformer_blocks.0.attn.add_k_proj" in whole


def test_the_same_seed_gives_the_same_deltas() -> None:
    one, other = (training(esd()).run() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("recipe", [sdd(), esd()], ids=["sdd", "esd"])
def test_a_training_that_was_stopped_goes_on(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard.training.distillation.SAVED", 2)

    def stop(done: int, whole: int) -> None:
        if done == 5:
            raise StoppedError

    kept = {"checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(StoppedError):
        training(recipe, more=kept, updates=6).run(stop)
    steps: list[int] = []
    made = training(recipe, more=kept, updates=6).run(lambda done, whole: steps.append(done))
    assert steps == [5, 6]
    expected = training(recipe, updates=6).run()
    assert all(torch.equal(made[name], delta) for name, delta in expected.items())


def test_a_checkpoint_of_another_training_is_passed_over(tmp_path: Path) -> None:
    kept, steps = {"checkpoint": tmp_path / "checkpoint"}, list[int]()
    training(esd(), more=kept).run()
    training(esd(1.0), more=kept).run(lambda done, whole: steps.append(done))
    assert steps == [1, 2, 3]


def test_layers_that_are_fused_away_are_refused() -> None:
    beside = frozen()
    beside.denoiser.fuse_qkv_projections()
    with pytest.raises(CapabilityError, match=r"layer unet\..* is not run in a call of its denoiser"):
        training(esd(), beside).run()


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard.training.memory_check.free_memory", lambda device: 1000)
    with pytest.raises(SafeguardError, match=r"training 16 layers of StableDiffusionPipeline takes .* free"):
        training(esd())


def test_a_batch_of_which_too_much_is_kept_is_refused_before_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    work = training(esd())
    deltas = 3 * sum(delta.nbytes for delta in work.student.values())
    monkeypatch.setattr("safeguard.training.memory_check.free_memory", lambda device: deltas + 1000)
    with pytest.raises(SafeguardError, match=r"training 16 layers .* take fewer pictures at once with --batch"):
        work.run()
    assert not any(delta.any() for delta in work.student.values())


def test_what_a_loss_keeps_for_its_gradient_is_of_its_rows() -> None:
    beside, kept = frozen(), []
    with weights_frozen(beside.denoiser):
        for pictures in (1, 2):
            work = training(esd(), beside, batch=pictures)
            batch = work.batch(0)
            kept.append(kept_for_backward(beside, lambda work=work, batch=batch: work.loss(batch), work.student.values()))
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.01)


def test_of_what_is_kept_neither_weights_nor_known_tensors_count_and_each_other_once() -> None:
    beside, known, other = frozen(), torch.ones(4, requires_grad=True), torch.ones(8, requires_grad=True)
    bias = beside.denoiser.conv_in.bias
    assert kept_for_backward(beside, lambda: (bias * bias).sum() * (known * known).sum(), [known]) == 2 * 4  # the two sums
    assert kept_for_backward(beside, lambda: (other * other).sum()) == other.nbytes


def test_to_ask_what_is_kept_draws_no_number() -> None:
    beside, before = frozen(), torch.get_rng_state()
    kept_for_backward(beside, lambda: torch.rand(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_turn_of_pictures_is_of_the_next_pairs() -> None:
    work = training(esd(), batch=1, reuse=1)
    texts = [pair.said for pair in PAIRS]
    assert [work.batch(step).said for step in range(3)] == [[work._numbers[texts[place]]] for place in (0, 1, 0)]
    assert FEW.reuse == 2
