"""Pictures for people: contact sheets with labels, and heat maps laid over an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from safeguard.evaluation.statistics import Pixels

PAPER: Final = (250, 250, 248)
INK: Final = (32, 33, 36)
SOFT: Final = (110, 114, 120)
RULE: Final = (214, 214, 210)
MARK: Final = (206, 32, 41)
MARGIN: Final = 24
GAP: Final = 8


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of pictures with a label before it; a marked picture gets a red frame."""

    label: str
    images: Sequence[Any]
    marks: Sequence[bool] = ()


@dataclass(frozen=True, slots=True)
class Band:
    """One band of a sheet: a title, and strips; ``captions`` stand under the pictures of the last one."""

    title: str
    strips: Sequence[Strip]
    captions: Sequence[str] = ()


def sheet(
    title: str, subtitle: str, bands: Sequence[Band], *, tile: int = 112, label: int = 120, across: int = 1
) -> Image.Image:
    """A contact sheet. Pictures are PIL images or uint8 arrays [h, w, 3]; all are shown ``tile`` pixels wide, ``across``
    bands beside each other.
    """
    columns = max(len(strip.images) for band in bands for strip in band.strips)
    longest = max(_font(16).getlength(band.title) for band in bands)
    full_width = max(label + columns * (tile + GAP), round(longest), 240)
    width = max(across * (full_width + MARGIN) + MARGIN, 520)
    heading = _wrapped(title, _font(24), width - 2 * MARGIN)
    note = _wrapped(subtitle, _font(14), width - 2 * MARGIN)
    below = MARGIN + 32 * len(heading)
    y = below + 19 * len(note) + 14
    rows = [bands[start : start + across] for start in range(0, len(bands), across)]
    heights = [max(_band_height(band, tile) for band in row) for row in rows]
    page = Image.new("RGB", (width, y + sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for place, line in enumerate(heading):
        draw.text((MARGIN, MARGIN - 4 + 32 * place), line, INK, _font(24))
    for place, line in enumerate(note):
        draw.text((MARGIN, below + 19 * place), line, SOFT, _font(14))
    for row, height in zip(rows, heights, strict=True):
        for place, band in enumerate(row):
            _draw_band(page, draw, band, (MARGIN + place * (full_width + MARGIN), y), full_width, tile, label)
        y += height
    return page


def _band_height(band: Band, tile: int) -> int:
    caption = 15 * max((len(_wrapped(text, _font(11), tile)) for text in band.captions), default=0)
    return 34 + len(band.strips) * (tile + GAP) + caption + 18


def _draw_band(
    page: Image.Image, draw: ImageDraw.ImageDraw, band: Band, corner: tuple[int, int], width: int, tile: int, label: int
) -> None:
    left, y = corner
    draw.line([(left, y), (left + width, y)], fill=RULE, width=1)
    draw.text((left, y + 8), band.title, INK, _font(16))
    y += 34
    for strip in band.strips:
        for place, line in enumerate(_wrapped(strip.label, _font(13), label - 8)):
            draw.text((left, y + 6 + 17 * place), line, SOFT, _font(13))
        for place, image in enumerate(strip.images):
            x = left + label + place * (tile + GAP)
            page.paste(enlarged(image, tile), (x, y))
            if place < len(strip.marks) and strip.marks[place]:
                draw.rectangle([x - 3, y - 3, x + tile + 2, y + tile + 2], outline=MARK, width=3)
        y += tile + GAP
    for place, text in enumerate(band.captions):
        for number, line in enumerate(_wrapped(text, _font(11), tile)):
            draw.text((left + label + place * (tile + GAP), y - 4 + 15 * number), line, SOFT, _font(11))


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if text else []


def as_image(image: Any) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, dtype=np.uint8))


def enlarged(image: Any, tile: int) -> Image.Image:
    """``image`` on a square of ``tile`` pixels, its shape kept."""
    image = as_image(image).convert("RGB")
    scale = tile / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    kind = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (tile, tile), PAPER)
    square.paste(image.resize(size, kind), ((tile - size[0]) // 2, (tile - size[1]) // 2))
    return square


def overlay(image: Any, heat: npt.NDArray[Any], top: float | None = None) -> Image.Image:
    """A heat map [h, w] over a grey copy of the image: from nothing over red to yellow. ``top``: the value of full heat,
    by default the map's own highest; 0 everywhere stays grey. Squared, so that half of the highest shows as a quarter: what
    stands out is where the most is, while a map that is high everywhere still looks so.
    """
    base = as_image(image).convert("RGB")
    grey = np.asarray(base.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2) * 0.55 + 40
    highest = float(heat.max()) if top is None else top
    scaled = np.clip(np.asarray(heat, dtype=np.float32) / highest, 0, 1) if highest > 0 else np.zeros_like(heat, np.float32)
    spread = np.asarray(Image.fromarray((scaled * 255).astype(np.uint8)).resize(base.size, Image.Resampling.BICUBIC))
    share = (spread.astype(np.float32)[..., None] / 255) ** 2
    colour = np.concatenate([255 * np.minimum(1, 0.6 + share), 60 + 180 * share, 40 * (1 - share)], axis=2)
    mixed: Pixels = (grey * (1 - share**0.7) + colour * share**0.7).clip(0, 255).astype(np.uint8)
    return Image.fromarray(mixed)


def course(lines: Sequence[tuple[Sequence[tuple[int, float]], tuple[int, int, int]]], top: float, tile: int) -> Image.Image:
    """How a share went from step to step: each line's points (step, share) in a colour, on a square from 0 to ``top``."""
    scale = 2  # drawn larger and reduced, for smooth lines
    side, edge = scale * tile, scale * 14
    page = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(page)
    last = max((step for points, _ in lines for step, _ in points), default=0)
    draw.line([(edge, edge), (edge, side - edge), (side - edge, side - edge)], fill=RULE, width=scale)
    for points, colour in lines:
        spots = [
            (
                edge + (side - 2 * edge) * step / max(1, last),
                side - edge - (side - 2 * edge) * min(1.0, share / max(top, 1e-12)),
            )
            for step, share in points
        ]
        if len(spots) > 1:
            draw.line(spots, fill=colour, width=2 * scale, joint="curve")
        for x, y in spots if len(spots) == 1 else ():
            draw.ellipse([x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale], fill=colour)
    draw.text((edge + 4 * scale, scale), f"{100 * top:.2g} %", SOFT, _font(11 * scale))
    draw.text((edge, side - edge), "0", SOFT, _font(10 * scale))
    draw.text((side - edge, side - edge), str(last), SOFT, _font(10 * scale), anchor="ra")
    return page.resize((tile, tile), Image.Resampling.LANCZOS)
