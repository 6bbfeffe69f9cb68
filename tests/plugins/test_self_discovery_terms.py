"""What ``self_discovery`` adds to a feature, and which directions it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.self_discovery.eraser import Direction, SelfDiscovery, _Shift, fitted
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.adapter import Adapter
from safeguard.sdk.calls import FeatureCall
from safeguard.sdk.fingerprint import Fingerprint
from safeguard.sdk.pipeline import FeatureSite
from tests.support.installed_adapters import install_adapters

BOUND = Fingerprint("Pipe", (("site", 2),), (1.0,))
SHAPE = (4, 2, 2)


class Pipe:
    name = "Pipe"
    fingerprint = BOUND
    middle = FeatureSite("unet.mid_block", SHAPE)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def call(*strengths: float, shape: tuple[int, ...] = SHAPE) -> FeatureCall:
    return FeatureCall(numbers(1, *shape, seed=7), strengths=torch.tensor([strengths]), progress=0.0)


def shift(*vectors: Tensor) -> _Shift:
    directions = [Direction(vector, "unet.mid_block", f"digest {place}") for place, vector in enumerate(vectors)]
    return _Shift([f"c{place}" for place in range(len(vectors))], "unet.mid_block", directions)


def saved(folder: Path, **changes: Any) -> Path:
    settings = {"concept": "blood", "module": "unet.mid_block"}
    options = {"method": "self_discovery", "tensors": {"vector": numbers(*SHAPE)}, "settings": settings}
    file = folder / "self_discovery-pipe-blood.safetensors"
    Adapter(**{**options, "fingerprint": BOUND, **changes}).save(file)
    return file


def edits(source: Any, pipe: Any = Pipe) -> Sequence[Any]:
    return SelfDiscovery().edits([Concept("blood", ("blood",))], {"adapter": source if source is None else str(source)}, pipe())


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
    after = shift(second)(FeatureCall(shift(first)(call(one)), strengths=torch.tensor([[other]]), progress=0.0))
    torch.testing.assert_close(together, after, rtol=1e-5, atol=1e-5)


def test_each_row_has_its_own_strength() -> None:
    feature = numbers(2, *SHAPE)
    made = shift(numbers(*SHAPE, seed=1))(FeatureCall(feature, strengths=torch.tensor([[0.0], [1.0]]), progress=0.0))
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
    assert shift(numbers(*SHAPE))(FeatureCall(asked.feature.to(dtype), strengths=asked.strengths, progress=0.0)).dtype == dtype


def test_the_adapter_of_a_concept_is_taken_from_those_that_are_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_adapters(tmp_path, monkeypatch)
    file = saved(tmp_path)
    (edit,) = edits("default")
    assert (edit.concepts, edit.module) == (("blood",), "unet.mid_block")
    assert edit.adapters == {"blood": Adapter.load(file, "self_discovery").digest}


def test_one_of_another_concept_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_adapters(tmp_path, monkeypatch)
    saved(tmp_path, settings={"concept": "weapon", "module": "unet.mid_block"})
    with pytest.raises(CapabilityError, match="'blood': no adapter of self_discovery comes with the package for this Pipe"):
        edits("default")


def test_a_policy_may_name_a_file_that_was_learnt_under_another_name(tmp_path: Path) -> None:
    file = saved(tmp_path, settings={"concept": "gore", "module": "unet.mid_block"})
    assert [edit.concepts for edit in edits(file)] == [("blood",)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensors": {"vector": torch.full(SHAPE, float("nan"))}}, "finite"),
        ({"tensors": {"vector": numbers(4, 2)}}, r"its vector is no \[C\] or \[C, H, W\]"),
        ({"tensors": {"weight": numbers(4)}}, "this is no adapter of self_discovery"),
        ({"tensors": {"vector": numbers(5)}}, "not the middle of this Pipe"),
        ({"settings": {"module": "unet.up_blocks.0"}}, "'unet.up_blocks.0', which is not the middle of this Pipe"),
        ({"settings": {}}, "this is no adapter of self_discovery"),
        ({"method": "gie"}, "this adapter is of 'gie'; make one with safeguard train self_discovery"),
        ({"fingerprint": Fingerprint("Other", BOUND.sites, BOUND.norms)}, "does not fit this Pipe"),
        ({"fingerprint": Fingerprint("Pipe", BOUND.sites, (1.5,))}, "it was made for other weights"),
    ],
    ids=["finite", "shape", "name", "channels", "place", "settings", "method", "class", "weights"],
)
def test_an_adapter_that_does_not_fit_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=words):
        edits(saved(tmp_path, **changes))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="there is no such adapter file"):
        edits(tmp_path / "none.safetensors")


def test_an_adapter_that_is_no_name_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"'blood': params\.adapter of 'self_discovery' is a file or default"):
        edits(None)
