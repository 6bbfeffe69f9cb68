"""What ``self_discovery`` adds to a feature, and which directions it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.self_discovery import SelfDiscovery, _Shift, fitted
from safetensors.torch import save_file
from torch import Tensor

from safeguard.erasing import Direction, FeatureCall, FeatureSite, Fingerprint
from safeguard.errors import AssetError, CapabilityError
from safeguard.policy import Concept

BOUND = Fingerprint("Pipe", (("site", 2),), (1.0,))
SHAPE = (4, 2, 2)


class Pipe:
    name = "Pipe"
    fingerprint = BOUND
    middle = FeatureSite("unet.mid_block", SHAPE)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def call(*strengths: float, shape: tuple[int, ...] = SHAPE) -> FeatureCall:
    return FeatureCall(numbers(1, *shape, seed=7), torch.tensor([strengths]), 0.0)


def shift(*vectors: Tensor) -> _Shift:
    return _Shift([f"c{place}" for place in range(len(vectors))], "unet.mid_block", vectors)


def saved(folder: Path, **changes: Any) -> Path:
    options = {"vector": numbers(*SHAPE), "method": "self_discovery", "concept": "blood", "module": "unet.mid_block"}
    made = Direction(**{**options, "fingerprint": BOUND, "settings": {"seed": 3}, "report": {"norm": 2.0}, **changes})
    made.save(folder / "blood.safetensors")
    return folder / "blood.safetensors"


def edits(source: Any, pipe: Any = Pipe) -> Sequence[Any]:
    return SelfDiscovery().edits([Concept("blood", ("blood",))], {"direction": str(source)}, pipe())


def test_strength_zero_changes_nothing() -> None:
    given = call(0.0)
    assert torch.equal(shift(numbers(*SHAPE))(given), given.feature)


@given(st.floats(0.01, 4.0))
@settings(max_examples=20, deadline=None)
def test_a_direction_and_its_opposite_go_opposite_ways(strength: float) -> None:
    vector, asked = numbers(*SHAPE), call(strength)
    there, back = (shift(one)(asked) - asked.feature for one in (vector, -vector))
    torch.testing.assert_close(there, -back, rtol=1e-4, atol=1e-5)


@given(st.floats(0.0, 4.0), st.floats(0.0, 4.0))
@settings(max_examples=20, deadline=None)
def test_directions_add_up(one: float, other: float) -> None:
    first, second, asked = numbers(*SHAPE), numbers(*SHAPE, seed=1), call(one, other)
    together = shift(first, second)(asked)
    after = shift(second)(FeatureCall(shift(first)(call(one)), torch.tensor([[other]]), 0.0))
    torch.testing.assert_close(together, after, rtol=1e-5, atol=1e-5)


def test_each_row_has_its_own_strength() -> None:
    feature = numbers(2, *SHAPE)
    made = shift(numbers(*SHAPE, seed=1))(FeatureCall(feature, torch.tensor([[0.0], [1.0]]), 0.0))
    assert torch.equal(made[0], feature[0])
    torch.testing.assert_close(made[1] - feature[1], numbers(*SHAPE, seed=1), rtol=1e-4, atol=1e-5)


def test_a_direction_is_brought_to_the_size_of_the_picture() -> None:
    assert fitted(torch.ones(4, 8, 8), (1, 4, 3, 5)).shape == (4, 3, 5)


@pytest.mark.parametrize("shape", [(4, 2, 2), (9, 4)])
def test_a_direction_of_channels_is_the_same_at_every_place(shape: tuple[int, ...]) -> None:
    vector, asked = numbers(4), call(1.0, shape=shape)
    added = (shift(vector)(asked) - asked.feature)[0]
    places = added.flatten(1).T if len(shape) == 3 else added
    torch.testing.assert_close(places, vector.expand_as(places), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_keeps_the_dtype(dtype: torch.dtype) -> None:
    asked = call(1.0)
    assert shift(numbers(*SHAPE))(FeatureCall(asked.feature.to(dtype), asked.strengths, 0.0)).dtype == dtype


def test_a_file_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    read = Direction.load(saved(tmp_path))
    assert torch.equal(read.vector, numbers(*SHAPE))
    assert (read.method, read.concept, read.fingerprint) == ("self_discovery", "blood", BOUND)
    assert (read.settings, read.report) == ({"seed": 3}, {"norm": 2.0})


def test_a_file_is_found_by_its_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setenv("SAFEGUARD_DIRECTIONS", str(tmp_path))
    (edit,) = edits("default")
    assert (edit.concepts, edit.module) == (("blood",), "unet.mid_block")


def test_without_a_direction_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="train one"):
        edits("default")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="there is no such direction"):
        edits(tmp_path / "none.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"vector": numbers(4)}, tmp_path / "other.safetensors")
    with pytest.raises(AssetError, match="no direction"):
        edits(tmp_path / "other.safetensors")


def test_a_file_of_no_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("blood", "utf-8")
    with pytest.raises(AssetError, match="no direction"):
        edits(tmp_path / "text.safetensors")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="finite"):
        edits(saved(tmp_path, vector=torch.full(SHAPE, float("nan"))))


@pytest.mark.parametrize(
    "bound",
    [Fingerprint("Other", BOUND.sites, BOUND.norms), Fingerprint("Pipe", BOUND.sites, (1.5,))],
    ids=["class", "weights"],
)
def test_a_direction_of_another_pipeline_is_refused(tmp_path: Path, bound: Fingerprint) -> None:
    with pytest.raises(CapabilityError, match="does not fit"):
        edits(saved(tmp_path, fingerprint=bound))


def test_a_direction_of_another_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="not the middle"):
        edits(saved(tmp_path, module="unet.up_blocks.0"))
