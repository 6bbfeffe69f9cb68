"""What ``esd`` learns, term by term."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safeguard_plugins.esd.eraser import ESD
from safeguard_plugins.esd.train import away, recipe
from torch import Tensor

from safeguard.policy import Concept
from safeguard.training.distillation import Batch
from safeguard.training.frozen_pipeline import weights_frozen
from tests.support.students import Pipe, adapter, exam, frozen, numbers, training

BATCH = Batch(numbers(2, 4), numbers(2), said=[0, 1], shown=[2, 3])
PREDICTED = numbers(4, 4, seed=1)


def base(texts: Sequence[int]) -> Tensor:
    return PREDICTED[list(texts)]


def never(texts: Sequence[int]) -> Tensor:
    raise AssertionError("the student has no part in the target")


def test_at_one_the_target_is_what_is_said_without_the_concept() -> None:
    torch.testing.assert_close(away(1.0)(BATCH, never, base), base(BATCH.shown))


def test_two_is_one_as_the_paper_counts() -> None:
    with_it, without = base(BATCH.said), base(BATCH.shown)
    torch.testing.assert_close(away(2.0)(BATCH, never, base), without - 1.0 * (with_it - without))


def test_at_zero_there_is_nothing_to_learn() -> None:
    work = training(recipe(0.0))
    assert work.loss(work.batch(0)).item() == 0.0


def test_the_base_stays_as_it_is() -> None:
    beside = frozen()
    before = copy.deepcopy(beside.denoiser.state_dict())
    with weights_frozen(beside.denoiser):
        made = training(recipe(), beside).run()
    assert any(delta.any() for delta in made.values())
    assert all(torch.equal(before[name], value) for name, value in beside.denoiser.state_dict().items())


def test_what_is_kept_is_the_student() -> None:
    work = training(recipe())
    for name, delta in work.run().items():
        assert torch.equal(delta, work.student[name])


def test_the_concept_is_turned_round() -> None:
    """It goes beyond where nothing is left: along the concept's guidance there is less than nothing."""
    beside = frozen()
    with weights_frozen(beside.denoiser):
        made = training(recipe(4.0), beside, updates=40, rate=2e-2).run()
    assert exam(beside).marks(made)["along"] < 0.0


def test_its_adapters_make_edits(tmp_path: Path) -> None:
    adapter("esd").save(tmp_path / "a")
    (edit,) = ESD().edits([Concept("blood", ("blood",))], {"adapter": str(tmp_path / "a")}, Pipe())  # type: ignore[arg-type]
    assert edit.concepts == ("blood",)


def test_an_adapter_of_another_method_is_refused(tmp_path: Path) -> None:
    adapter("sdd").save(tmp_path / "a")
    with pytest.raises(Exception, match="this adapter is of 'sdd'"):
        ESD().edits([Concept("blood", ("blood",))], {"adapter": str(tmp_path / "a")}, Pipe())  # type: ignore[arg-type]
