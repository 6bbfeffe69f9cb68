"""Training may be stopped at any moment and goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from safeguard_demo.stages import Stage, cosine
from torch import Tensor, nn

from safeguard.training.randomness import step_rng


def _stage(folder: Path, steps: int) -> Stage:
    torch.manual_seed(0)
    return Stage("line", nn.Linear(4, 1), folder, steps=steps, rate=1e-2)


def _loss(stage: Stage, total: int):  # type: ignore[no-untyped-def]
    def loss(step: int) -> Tensor:
        _, generator = step_rng(1, "line", step)
        points = torch.randn(8, 4, generator=generator)
        return (stage.module(points) - points.sum(1, keepdim=True)).pow(2).mean()

    return loss


def test_a_stopped_training_ends_where_an_unbroken_one_ends(tmp_path: Path) -> None:
    whole = _stage(tmp_path / "whole", 20)
    whole.run(_loss(whole, 20))
    first = _stage(tmp_path / "broken", 20)
    stop_at = 7

    def interrupted(step: int) -> Tensor:
        if step == stop_at:
            first.save()
            raise KeyboardInterrupt
        return _loss(first, 20)(step)

    with contextlib.suppress(KeyboardInterrupt):
        first.run(interrupted)
    second = _stage(tmp_path / "broken", 20)
    assert second.step == stop_at
    second.run(_loss(second, 20))
    for one, other in zip(whole.averaged().parameters(), second.averaged().parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_holds_no_pickled_code(tmp_path: Path) -> None:
    stage = _stage(tmp_path, 2)
    stage.run(_loss(stage, 2))
    assert torch.load(tmp_path / "line.checkpoint", weights_only=True)["step"] == 2


def test_the_random_sources_depend_on_the_step_alone() -> None:
    one, other = step_rng(3, "a", 5), step_rng(3, "a", 5)
    assert one[0].random() == other[0].random()
    assert torch.equal(torch.rand(3, generator=one[1]), torch.rand(3, generator=other[1]))
    assert step_rng(3, "a", 6)[0].random() != step_rng(3, "b", 6)[0].random()


def test_the_rate_warms_up_and_comes_down() -> None:
    rates = [cosine(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < rates[50] < rates[100] == max(rates)
    assert rates[-1] < 0.03
