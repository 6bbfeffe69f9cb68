"""Geom-Erasing's arithmetic: which bins a box covers, and that the weights of the loss leave its scale as it was."""

from __future__ import annotations

import pytest
import torch

from safeguard.training.location_grid import Grid

GRID = Grid(4, 64, 32)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("count", range(17))
def test_weights_sum_to_the_number_of_bins(alpha: float, count: int) -> None:
    weights = GRID.weights(range(count), alpha)
    assert weights.sum().item() == pytest.approx(16, rel=1e-5)
    if alpha == 1 or count in (0, 16):
        torch.testing.assert_close(weights, torch.ones(4, 4))
    else:
        inside, outside = weights.flatten()[0].item(), weights.flatten()[-1].item()
        assert outside == pytest.approx(alpha * inside, rel=1e-5)


def test_a_box_of_the_whole_picture_covers_every_bin() -> None:
    assert GRID.covered([(0, 0, 63, 31)]) == list(range(16))


def test_a_pixel_is_in_one_bin() -> None:
    assert GRID.covered([(20, 9, 20, 9)]) == [5]


def test_what_lies_on_an_edge_is_to_the_right_or_below() -> None:
    assert GRID.covered([(15, 7, 15, 7)]) == [0]
    assert GRID.covered([(16, 7, 16, 7)]) == [1]
    assert GRID.covered([(15, 8, 15, 8)]) == [4]


def test_bins_of_several_boxes_come_once_and_row_by_row() -> None:
    assert GRID.covered([(40, 20, 63, 20), (0, 0, 20, 0), (0, 0, 1, 1)]) == [0, 1, 10, 11]


def test_no_box_covers_nothing() -> None:
    assert GRID.covered([]) == []


def test_a_box_beyond_the_picture_is_cut() -> None:
    assert GRID.covered([(-5, 30, 99, 99)]) == [12, 13, 14, 15]
