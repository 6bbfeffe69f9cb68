"""What the benchmark compares; how fast it is, no test says."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

import safeguard
from safeguard.errors import CapabilityError
from safeguard.evaluation.statistics import Figure
from safeguard.policy import derive
from tests.bench.bench import BenchLine, Silent, flops, many, never, pairs, twin
from tests.bench.bench_models import SHAPES

FEW = {"double": 1, "single": 1, "heads": 1}


def _run(pipe: Any) -> Any:
    return pipe("a red car", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="latent").images


def test_a_twin_shares_its_weights_and_no_hook(pipe: Any) -> None:
    other = twin(pipe)
    shared = zip(pipe.unet.parameters(), other.unet.parameters(), strict=True)
    assert all(one.data_ptr() == two.data_ptr() for one, two in shared)
    before = _run(pipe)
    with safeguard.protect(other, many(2), screener=None):
        assert not torch.equal(_run(other), before)
        assert torch.equal(_run(pipe), before)


def test_with_nothing_active_the_output_is_the_same(pipe: Any) -> None:
    before = _run(pipe)
    with safeguard.protect(twin(pipe), derive(many(3), activation="screened"), screener=Silent()) as guard:
        assert torch.equal(_run(guard._pipe), before)


def test_what_is_watched_for_and_never_seen_changes_nothing(pipe: Any) -> None:
    before, watched, other = _run(pipe), many(3, activation="adaptive"), twin(pipe)
    calibration = never(other, watched, {"num_inference_steps": 2})
    with safeguard.protect(other, watched, screener=None, calibration=calibration) as guard, guard.request() as request:
        assert torch.equal(_run(other), before)
    assert len(request.decisions[0].evidence.concepts) == 3


def test_a_hundred_concepts_are_a_hundred_phrases() -> None:
    concepts = many(100).concepts
    assert len({concept.phrases for concept in concepts.values()}) == 100


def test_calls_are_made_in_turn_and_each_is_first_half_of_the_time() -> None:
    order: list[str] = []
    figure = pairs(lambda: order.append("plain"), lambda: order.append("guarded"), 4, lambda: None)
    assert order == ["plain", "guarded", *["guarded", "plain", "plain", "guarded"] * 2]
    assert figure.n == 4


def test_operations_are_counted() -> None:
    one, two = torch.ones(4, 8), torch.ones(8, 2)
    assert flops(lambda: one @ two) == 2 * 4 * 8 * 2


@pytest.mark.parametrize(("low", "met"), [(1.0, True), (1.03, False)])
def test_a_ratio_is_missed_only_beyond_its_noise(low: float, met: bool) -> None:
    assert BenchLine("one concept", Figure(1.04, low, 1.08, 20), "x", 1.02).met is met


@pytest.mark.parametrize(
    ("name", "fewer", "sites"),
    [("sd15", {"widths": (32, 32, 32, 32)}, 16), ("sd3", {"layers": 1, "heads": 1}, 1), ("flux", FEW, 2)],
)
def test_the_large_shapes_can_be_protected(name: str, fewer: dict[str, Any], sites: int) -> None:
    shapes = SHAPES[name]
    large, call = replace(shapes, build=functools.partial(shapes.build, **fewer)).made(16)
    run = functools.partial(large, "a red car", output_type="latent", **call)
    before = run(generator=torch.Generator().manual_seed(0)).images
    with safeguard.protect(large, many(20), screener=None) as guard:
        after = run(generator=torch.Generator().manual_seed(0)).images
        assert guard.status().sites == sites
    assert not torch.equal(before, after)


def test_a_guarded_pipeline_can_be_guarded_once(pipe: Any) -> None:
    other = twin(pipe)
    with safeguard.protect(other, many(1), screener=None), pytest.raises(CapabilityError):
        safeguard.protect(other, many(1), screener=None)
