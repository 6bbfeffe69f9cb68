"""Contact sheets, heat maps and plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from safeguard.evaluation.comparison import ImagePair, comparison
from safeguard.evaluation.contact_sheets import MARK, Band, Strip, course, enlarged, overlay, sheet
from safeguard.evaluation.plots import bars, curve
from safeguard.evaluation.statistics import mean, wilson
from safeguard.evaluation.summary import SummaryRow

GREEN = Image.new("RGB", (64, 64), (0, 200, 0))


def _colours(image: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.getcolors(1 << 24) or []}  # type: ignore[misc]


def test_a_sheet_shows_every_picture_and_frames_the_marked_ones() -> None:
    plain = sheet("title", "text", [Band("band", [Strip("row", [GREEN, GREEN])])])
    marked = sheet("title", "text", [Band("band", [Strip("row", [GREEN, GREEN], [False, True])])])
    assert (0, 200, 0) in _colours(plain)
    assert MARK not in _colours(plain)
    assert MARK in _colours(marked)


def test_a_long_title_is_broken_and_not_cut() -> None:
    short, long = (sheet(text, "", [Band("band", [Strip("row", [GREEN])])]) for text in ("word", "many words " * 20))
    assert long.width == short.width
    assert long.height > short.height


def test_a_wide_picture_keeps_its_shape() -> None:
    wide = enlarged(Image.new("RGB", (100, 50), (255, 0, 0)), 40)
    assert wide.size == (40, 40)
    assert wide.getpixel((20, 20)) == (255, 0, 0)
    assert wide.getpixel((20, 2)) != (255, 0, 0)


def test_heat_is_red_where_the_mass_is_and_grey_where_it_is_not() -> None:
    heat = np.zeros((8, 8))
    heat[:, :4] = 1.0
    laid = np.asarray(overlay(GREEN, heat)).astype(int)
    warm, cold = laid[32, 8], laid[32, 56]
    assert warm[0] > warm[2] + 80
    assert cold.max() == cold.min()


def test_no_heat_at_all_stays_grey() -> None:
    laid = np.asarray(overlay(GREEN, np.zeros((8, 8)))).astype(int)
    assert (laid.max(2) == laid.min(2)).all()


def test_a_comparison_has_a_row_a_pair() -> None:
    pair = ImagePair("a label", GREEN, Image.new("RGB", (64, 64)), {"blood": np.ones((8, 8))})
    one, two = (comparison([pair] * count, ["blood"], "text") for count in (1, 2))
    assert two.height > one.height
    assert pair.change > 60


def test_a_course_is_drawn_below_the_map_without_the_policy_and_with_it() -> None:
    maps, lines = {"blood": np.ones((8, 8))}, {"blood": (((0, 0.2), (4, 0.1)), ((0, 0.2), (4, 0.05)))}
    bare = comparison([ImagePair("a label", GREEN, GREEN, maps)], ["blood"], "text")
    drawn = comparison([ImagePair("a label", GREEN, GREEN, maps, lines)], ["blood"], "text")
    assert drawn.height > bare.height
    assert _redness(drawn) > 100 > _redness(bare)


def _redness(image: Image.Image) -> int:
    """Of the reddest spot that is no part of the pictures above: there are none but green ones and heat."""
    colours = np.asarray(image).astype(int)[-230:]
    return int((colours[..., 0] - colours[..., 1]).max())


def test_the_highest_share_of_a_course_is_its_top() -> None:
    low, high = (np.asarray(course([(((0, share), (9, share)), MARK)], 0.4, 100)).astype(int) for share in (0.1, 0.4))
    rows = [int((one[..., 0] - one[..., 1]).max(1).argmax()) for one in (low, high)]  # where it is red
    assert rows[0] > 60
    assert rows[1] < 20


def test_plots_are_written(tmp_path: Path) -> None:
    share = wilson(1, 10)
    row = SummaryRow("eiup", "alone", "blood", *[share] * 5, {}, 0.9, mean([0.9, 0.95]), 1.0)
    for path in (bars([row], tmp_path / "bars.png", "t"), curve([("eiup", 2.0, row)], tmp_path / "curve.png", "t")):
        with Image.open(path) as image:
            assert image.width > 800
