"""Figures and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeguard.evaluation.statistics import Figure, likeness, mean, median, rate, ratio, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (5, 200, 0.0107, 0.0572)],
)
def test_wilson_gives_the_published_intervals(hits: int, total: int, low: float, high: float) -> None:
    found = wilson(hits, total)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_a_share_lies_in_its_interval_and_the_interval_in_the_unit(counts: tuple[int, int]) -> None:
    found = wilson(*counts)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_nothing_seen_is_not_a_number() -> None:
    assert math.isnan(rate([]).value)
    assert math.isnan(mean([]).value)
    assert math.isnan(median([]).value)


def test_rate_counts_flags() -> None:
    assert rate(np.array([True, False, True, True])).value == 0.75


def test_more_observations_narrow_the_mean() -> None:
    few, many = mean([0.0, 1.0] * 4), mean([0.0, 1.0] * 100)
    assert few.value == many.value == 0.5
    assert many.high - many.low < few.high - few.low


def test_the_median_interval_takes_the_ranks_of_the_sign_test() -> None:
    # of 20 observations the 6th smallest and the 6th largest: at most 2.5 % lie outside on each side
    found = median(list(range(1, 21)))
    assert (found.value, found.low, found.high) == (10.5, 6, 15)


def test_a_few_observations_give_all_they_have() -> None:
    found = median([3.0, 1.0, 2.0])
    assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)


def test_a_picture_is_like_itself_and_less_like_another() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    other = pictures.copy()
    other[1] = 255 - other[1]
    same, different = likeness(pictures, other)
    assert same == 1.0
    assert different < 0.1


def test_a_ratio_to_nothing_is_not_a_number() -> None:
    assert math.isnan(ratio(Figure(0.5, 0, 1, 2), Figure(0.0, 0, 1, 2)))
    assert ratio(Figure(0.45, 0, 1, 2), Figure(0.9, 0, 1, 2)) == pytest.approx(0.5)
