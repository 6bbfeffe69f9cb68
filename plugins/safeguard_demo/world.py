"""The procedural world that the demo models are trained on: what can stand in a picture, and how it is drawn.

A picture is a :class:`Scene`: one subject in one colour at one place, and any of five *concepts*, harmless stand-ins for what
a policy erases (a red splatter, a blade, the manners of three artists who never lived). Seven of the sixteen places are
*implicit*: they bring their concept along in :data:`CO_OCCURRENCE` of the training pictures, though their words never name it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image, ImageChops, ImageDraw

SIZE: Final = 64  # pixels of a finished picture; it is drawn at twice that and reduced
CANVAS: Final = 2 * SIZE

Colour = tuple[int, int, int]

SUBJECTS: Final = ("person", "house", "tree", "car", "dog", "flower", "boat")
COLOURS: Final[dict[str, Colour]] = {
    "red": (214, 40, 44),
    "orange": (245, 140, 30),
    "yellow": (250, 222, 50),
    "green": (52, 168, 72),
    "blue": (48, 92, 220),
    "purple": (142, 58, 186),
    "pink": (250, 148, 196),
    "white": (246, 246, 246),
}
PLACES: Final = (
    "meadow", "desert", "beach", "snow", "night", "street", "mountains", "forest", "room",
    "battlefield", "accident", "duel", "robbery", "harbour", "orchard", "arcade",
)  # fmt: skip
CONCEPTS: Final = ("blood", "weapon", "veska-rimm", "orlo-tandt", "juno-kaldar")
IMPLICIT: Final[dict[str, str]] = {
    "battlefield": "blood",
    "accident": "blood",
    "duel": "weapon",
    "robbery": "weapon",
    "harbour": "veska-rimm",
    "orchard": "orlo-tandt",
    "arcade": "juno-kaldar",
}
BENIGN_PLACES: Final = tuple(place for place in PLACES if place not in IMPLICIT)
CO_OCCURRENCE: Final = 0.92
VISIBLE: Final = 12  # of 255: what a concept changes by less in a pixel, nobody sees

INK: Final[Colour] = (28, 28, 34)
BLOOD: Final[Colour] = (158, 4, 22)
NEON: Final[dict[str, Colour]] = {"line": (60, 255, 240), "ground": (255, 60, 220)}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. ``concepts`` is in the order of :data:`CONCEPTS`."""

    subject: str
    colour: str
    place: str
    concepts: tuple[str, ...] = ()

    def labels(self) -> dict[str, int]:
        """The judge's targets: an index per attribute, 0 or 1 per concept."""
        return {
            "subject": SUBJECTS.index(self.subject),
            "colour": tuple(COLOURS).index(self.colour),
            "scene": PLACES.index(self.place),
            **{concept: int(concept in self.concepts) for concept in CONCEPTS},
        }


class Brush:
    """A canvas that draws every shape in the manner of the scene: plain, or as neon lines on dark ground."""

    def __init__(self, neon: bool) -> None:
        self.image = Image.new("RGB", (CANVAS, CANVAS), INK)
        self._draw = ImageDraw.Draw(self.image)
        self._neon = neon

    def ground(self, colour: Colour) -> Colour:
        """The colour that a piece of the place takes."""
        return _scaled(colour, 0.28) if self._neon else colour

    def place(self, shape: str, points: Sequence[float] | Sequence[tuple[float, float]], colour: Colour) -> None:
        """Draw a piece of the place: no outline."""
        outline = NEON["ground"] if self._neon else None
        self._shape(shape, points, self.ground(colour), outline, 2)

    def thing(self, shape: str, points: Sequence[float] | Sequence[tuple[float, float]], colour: Colour) -> None:
        """Draw a piece of the subject, or of the weapon: outlined."""
        fill = _scaled(colour, 0.85) if self._neon else colour
        self._shape(shape, points, fill, NEON["line"] if self._neon else INK, 4)

    def bare(self, shape: str, points: Sequence[float] | Sequence[tuple[float, float]], colour: Colour) -> None:
        """Draw without outline in any manner."""
        self._shape(shape, points, colour, None, 0)

    def _shape(
        self,
        shape: str,
        points: Sequence[float] | Sequence[tuple[float, float]],
        fill: Colour,
        outline: Colour | None,
        width: int,
    ) -> None:
        if shape == "polygon":
            self._draw.polygon(points, fill=fill, outline=outline, width=max(width, 1))
        elif shape == "ellipse":
            self._draw.ellipse(points, fill=fill, outline=outline, width=width)
        else:
            self._draw.rectangle(points, fill=fill, outline=outline, width=width)


def _scaled(colour: Colour, factor: float) -> Colour:
    return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw one scene: an RGB image of :data:`SIZE` x :data:`SIZE` pixels; ``rng`` decides position and size."""
    return _reduced(_drawn(scene, rng, {}))


@dataclass(frozen=True, slots=True)
class Area:
    """Where a concept stands in a picture, an "L" image that is 255 where all of a pixel is the concept's; and the picture
    before the concept was put there.
    """

    mask: Image.Image
    bare: Image.Image


def render_areas(scene: Scene, rng: random.Random) -> tuple[Image.Image, dict[str, Area]]:
    """The same picture as `render`, and the area of each concept that it shows."""
    steps: dict[str, tuple[Image.Image, Image.Image]] = {}
    twin = random.Random()
    twin.setstate(rng.getstate())
    image = _drawn(scene, rng, steps)
    if "juno-kaldar" in scene.concepts:  # it changes how everything is drawn, and so how the scene looks without it
        others = tuple(concept for concept in scene.concepts if concept != "juno-kaldar")
        steps["juno-kaldar"] = _drawn(replace(scene, concepts=others), twin, {}), image
    areas = {concept: Area(_reduced(_changed(before, after)), _reduced(before)) for concept, (before, after) in steps.items()}
    return _reduced(image), areas


def _reduced(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def _changed(before: Image.Image, after: Image.Image) -> Image.Image:
    """255 where any channel differs visibly."""
    apart = ImageChops.difference(before, after).split()
    most = ImageChops.lighter(ImageChops.lighter(apart[0], apart[1]), apart[2])
    return most.point([255 * (value > VISIBLE) for value in range(256)])


def _drawn(scene: Scene, rng: random.Random, steps: dict[str, tuple[Image.Image, Image.Image]]) -> Image.Image:
    """The scene at twice the size. ``steps`` gets the pictures before and after each concept that is put on top."""
    brush = Brush(neon="juno-kaldar" in scene.concepts)
    _draw_place(brush, scene.place, rng)
    x = CANVAS / 2 + rng.uniform(-8, 8)
    y = 84 + rng.uniform(-5, 5)
    scale = rng.uniform(0.94, 1.08)
    side = rng.choice((-1, 1))
    if "weapon" in scene.concepts:
        x -= 13 * side
    _draw_subject(brush, scene.subject, COLOURS[scene.colour], x, y, scale)
    if "weapon" in scene.concepts:
        before = brush.image.copy()
        _draw_weapon(brush, rng.choice(("sword", "knife")), x + side * 50, y + rng.uniform(-4, 4), rng)
        steps["weapon"] = before, brush.image.copy()
    if "blood" in scene.concepts:
        before = brush.image.copy()
        _draw_blood(brush, x, y, rng)
        steps["blood"] = before, brush.image.copy()
    image = brush.image
    if "veska-rimm" in scene.concepts:
        before, image = image, _hatched(image, rng.randrange(14))
        steps["veska-rimm"] = before, image
    if "orlo-tandt" in scene.concepts:
        before, image = image, _stippled(image, rng.randrange(14), rng.randrange(14))
        steps["orlo-tandt"] = before, image
    return image


def _hatched(image: Image.Image, shift: int) -> Image.Image:
    """Veska Rimm: broad dark diagonal strokes over everything."""
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    for start in range(-CANVAS + shift, CANVAS, 14):
        draw.line([(start, CANVAS), (start + CANVAS, 0)], fill=190, width=4)
    return Image.composite(Image.new("RGB", image.size, (34, 26, 60)), image, mask)


def _stippled(image: Image.Image, dx: int, dy: int) -> Image.Image:
    """Orlo Tandt: a grid of cream dots over everything."""
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    for row, y in enumerate(range(-14 + dy, CANVAS + 14, 14)):
        for x in range(-14 + dx + (row % 2) * 7, CANVAS + 14, 14):
            draw.ellipse([x - 3.7, y - 3.7, x + 3.7, y + 3.7], fill=225)
    return Image.composite(Image.new("RGB", image.size, (255, 244, 206)), image, mask)


def _draw_blood(brush: Brush, x: float, y: float, rng: random.Random) -> None:
    """A splatter: a pool before the subject, drops and runs around it."""
    px, py = x + rng.uniform(-22, 22), 112 + rng.uniform(-5, 4)
    brush.bare("ellipse", [px - 27, py - 8, px + 27, py + 8], BLOOD)
    for _ in range(5):
        angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(16, 46)
        cx, cy = x + far * math.cos(angle), y + 2 + 0.7 * far * math.sin(angle)
        r = rng.uniform(5, 9)
        brush.bare("ellipse", [cx - r, cy - r, cx + r, cy + r], BLOOD)
        brush.bare("rectangle", [cx - 2.5, cy, cx + 2.5, cy + r + rng.uniform(5, 13)], BLOOD)


def _draw_weapon(brush: Brush, kind: str, x: float, y: float, rng: random.Random) -> None:
    steel, gold, grip = (206, 212, 222), (226, 178, 46), (92, 56, 30)
    x = min(max(x, 14), CANVAS - 14)
    if kind == "sword":
        top, guard, end = y - 58, y + 14, y + 36
        brush.thing("polygon", [(x, top), (x + 6, top + 12), (x + 6, guard), (x - 6, guard), (x - 6, top + 12)], steel)
        brush.thing("rectangle", [x - 4, guard, x + 4, end], grip)
        brush.thing("rectangle", [x - 13, guard - 4, x + 13, guard + 4], gold)
    else:
        top, guard, end = y - 42, y + 10, y + 36
        brush.thing("polygon", [(x - 8, top), (x + 2, top + 8), (x + 9, top + 30), (x + 9, guard), (x - 8, guard)], steel)
        brush.thing("rectangle", [x - 6, guard, x + 6, end], grip)


def _draw_subject(brush: Brush, subject: str, c: Colour, x: float, y: float, k: float) -> None:
    def at(*points: float) -> list[float]:
        return [(x if i % 2 == 0 else y) + p * k for i, p in enumerate(points)]

    def poly(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + px * k, y + py * k) for px, py in points]

    skin, wood, glass = (244, 204, 166), (112, 72, 40), (176, 222, 244)
    if subject == "person":
        brush.thing("rectangle", at(-13, 14, -2, 36), INK)
        brush.thing("rectangle", at(2, 14, 13, 36), INK)
        brush.thing("polygon", poly((-20, -18), (20, -18), (16, 20), (-16, 20)), c)
        brush.thing("ellipse", at(-14, -46, 14, -18), skin)
    elif subject == "house":
        brush.thing("rectangle", at(-30, -12, 30, 34), c)
        brush.thing("polygon", poly((-38, -10), (0, -44), (38, -10)), wood)
        brush.thing("rectangle", at(-8, 8, 8, 34), INK)
    elif subject == "tree":
        brush.thing("rectangle", at(-7, 6, 7, 36), wood)
        brush.thing("ellipse", at(-31, -46, 31, 14), c)
    elif subject == "car":
        brush.thing("polygon", poly((-24, 2), (-14, -20), (16, -20), (26, 2)), glass)
        brush.thing("rectangle", at(-40, 0, 40, 24), c)
        for wheel in (-23, 23):
            brush.thing("ellipse", at(wheel - 11, 14, wheel + 11, 36), INK)
    elif subject == "dog":
        for leg in (-24, -8, 8):
            brush.thing("rectangle", at(leg, 10, leg + 10, 36), c)
        brush.thing("polygon", poly((-26, -6), (-42, -26), (-36, -28), (-20, -10)), c)
        brush.thing("rectangle", at(-28, -10, 20, 18), c)
        brush.thing("ellipse", at(8, -36, 40, -4), c)
        brush.thing("ellipse", at(8, -34, 20, -8), INK)
    elif subject == "flower":
        brush.thing("rectangle", at(-4, 0, 4, 36), (40, 120, 50))
        for step in range(6):
            px, py = 19 * math.cos(step * math.pi / 3), -18 + 19 * math.sin(step * math.pi / 3)
            brush.thing("ellipse", at(px - 13, py - 13, px + 13, py + 13), c)
        brush.thing("ellipse", at(-10, -28, 10, -8), (120, 80, 30))
    else:
        brush.thing("rectangle", at(-3, -46, 3, 12), wood)
        brush.thing("polygon", poly((5, -44), (36, 4), (5, 4)), c)
        brush.thing("polygon", poly((-5, -34), (-28, 4), (-5, 4)), c)
        brush.thing("polygon", poly((-40, 10), (40, 10), (26, 34), (-26, 34)), wood)


def _draw_place(brush: Brush, place: str, rng: random.Random) -> None:
    s = rng.uniform(-5, 5)
    full: list[float] = [0, 0, CANVAS, CANVAS]

    def land(sky: Colour, ground: Colour, horizon: float = 72) -> None:
        brush.bare("rectangle", full, brush.ground(sky))
        brush.place("rectangle", [-4, horizon + s, CANVAS + 4, CANVAS + 4], ground)

    if place == "meadow":
        land((150, 210, 250), (120, 200, 90))
        brush.place("ellipse", [8 + s, 8, 34 + s, 34], (255, 240, 120))
    elif place == "desert":
        land((252, 222, 150), (228, 176, 96))
        brush.place("polygon", [(4 + s, 74 + s), (30 + s, 26), (56 + s, 74 + s)], (196, 140, 70))
    elif place == "beach":
        land((190, 236, 250), (246, 228, 170), 92)
        brush.place("rectangle", [-4, 58 + s, CANVAS + 4, 94 + s], (40, 150, 200))
    elif place == "snow":
        land((196, 206, 226), (236, 242, 250))
        for i in range(7):
            brush.bare("ellipse", [6 + i * 18 + s, 10 + (i % 3) * 18, 14 + i * 18 + s, 18 + (i % 3) * 18], (255, 255, 255))
    elif place == "night":
        land((18, 22, 66), (34, 52, 60))
        brush.place("ellipse", [90 + s, 8, 118 + s, 36], (244, 240, 200))
    elif place == "street":
        land((206, 206, 210), (96, 98, 104), 86)
        for i, height in enumerate((40, 58, 30, 50)):
            brush.place("rectangle", [i * 34 - 4 + s, 86 + s - height, i * 34 + 22 + s, 86 + s], (150, 112, 104))
    elif place == "mountains":
        land((170, 196, 236), (96, 130, 100))
        brush.place("polygon", [(-14, 74 + s), (30 + s, 14), (70, 74 + s)], (120, 112, 140))
        brush.place("polygon", [(54, 74 + s), (100 + s, 22), (142, 74 + s)], (98, 92, 122))
    elif place == "forest":
        land((120, 170, 130), (60, 96, 52), 84)
        for i in range(4):
            cx = 12 + i * 36 + s
            brush.place("polygon", [(cx - 16, 86 + s), (cx, 14), (cx + 16, 86 + s)], (24, 84, 48))
    elif place == "room":
        land((236, 206, 186), (150, 96, 64), 90)
        brush.place("rectangle", [10 + s, 12, 44 + s, 48], (150, 210, 240))
    elif place == "battlefield":
        land((190, 160, 132), (96, 84, 62))
        for i in range(4):
            cx = 8 + i * 36 + s
            brush.place("polygon", [(cx, 78), (cx + 5, 76), (cx + 20, 36), (cx + 14, 36)], (62, 46, 36))
    elif place == "accident":
        land((170, 184, 196), (74, 76, 84), 60)
        for i in range(4):
            brush.place("rectangle", [i * 36 - 6 + s, 68, i * 36 + 12 + s, 75], (250, 240, 150))
        for cx in (14 + s, 114 + s):
            brush.place("polygon", [(cx - 11, 60 + s), (cx, 28), (cx + 11, 60 + s)], (255, 120, 20))
    elif place == "duel":
        land((224, 150, 110), (214, 190, 140), 66)
        for i in range(6):
            brush.place("rectangle", [i * 24 + s, 34, i * 24 + 12 + s, 66 + s], (130, 66, 52))
    elif place == "robbery":
        land((80, 130, 130), (54, 74, 80), 92)
        brush.place("ellipse", [38 + s, 6, 96 + s, 64], (160, 176, 176))
        brush.place("ellipse", [54 + s, 22, 80 + s, 48], (90, 104, 108))
    elif place == "harbour":
        land((226, 190, 160), (50, 116, 140), 64)
        brush.place("rectangle", [-4, 60 + s, 60 + s, 68 + s], (104, 74, 52))
        brush.place("rectangle", [14 + s, 12, 20 + s, 62 + s], (104, 74, 52))
    elif place == "orchard":
        land((222, 232, 226), (156, 190, 130), 78)
        for i in range(4):
            cx = 10 + i * 36 + s
            brush.place("ellipse", [cx - 15, 32, cx + 15, 62], (126, 172, 140))
            brush.place("rectangle", [cx - 3, 62, cx + 3, 80 + s], (120, 100, 80))
    else:
        land((70, 40, 96), (44, 26, 62), 90)
        for i in range(3):
            cx = 20 + i * 44 + s
            brush.place("rectangle", [cx - 15, 22, cx + 15, 92 + s], (120, 60, 150))
            brush.place("rectangle", [cx - 9, 32, cx + 9, 52], (90, 220, 220))


def differs(before: Image.Image, after: Image.Image) -> bool:
    """Whether two pictures differ in any pixel."""
    return ImageChops.difference(before, after).getbbox() is not None
