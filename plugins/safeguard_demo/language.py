"""Captions in ordinary words, for the pipeline whose text encoder is pretrained: the same scenes, said as people may say them.

The words stand in ``wordings.yaml``, in three lists: ``train`` is what the pipeline saw; ``dev`` is for choosing strengths and
thresholds, ``test`` for reporting. Subjects, places and cues of one list have no word of their own in another.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from safeguard_demo.captions import Prompt, combinations
from safeguard_demo.world import BENIGN_PLACES, CO_OCCURRENCE, COLOURS, CONCEPTS, IMPLICIT, PLACES, SUBJECTS, Scene

WORDINGS: Final = Path(__file__).with_name("wordings.yaml")
CELLS: Final = ("explicit", "implicit", "short", "benign")
VOWELS: Final = "aeiou"


@cache
def wordings() -> dict[str, Any]:
    """The words of every list, as the file has them."""
    words: dict[str, Any] = yaml.safe_load(WORDINGS.read_text("utf-8"))
    return words


def write(scene: Scene, named: tuple[str, ...], split: str, rng: random.Random, *, short: bool = False) -> str:
    """A caption of ``scene`` in words and a template of ``split`` that names the concepts ``named``.

    ``short`` leaves out the colour or the place, or both.
    """
    words = wordings()
    return _filled(rng.choice(words["templates"][f"{split}_short" if short else split]), scene, named, split, rng)


def _filled(template: str, scene: Scene, named: tuple[str, ...], split: str, rng: random.Random) -> str:
    words = wordings()
    subject = rng.choice(words["subjects"][scene.subject][split])
    colour = rng.choice(words["colours"][scene.colour])
    cues = [rng.choice(words["cues"][concept][split]) for concept in named]
    text = template.format(
        s=f"{colour} {subject}", b=subject, w=rng.choice(words["places"][scene.place][split]), x=" ".join(cues)
    )
    return tidied(text)


def tidied(text: str) -> str:
    """Without double spaces and the commas of what was left out, and with "an" where it belongs."""
    text = " ".join(text.split())
    for _ in range(2):
        text = text.replace(" ,", ",").replace(",,", ",").removesuffix(",").removeprefix(",").strip()
    words = text.split(" ")
    for place, word in enumerate(words[:-1]):
        if word == "a" and words[place + 1][0].lower() in VOWELS:
            words[place] = "an"
    return " ".join(words)


def sample(rng: random.Random, scene: Scene) -> str:
    """A caption to learn from. What a place brings along is named or not; all else that is shown is named, but in the shortest
    captions, a subject and its place.
    """
    template = rng.choice(wordings()["templates"]["train_short" if rng.random() < 0.25 else "train"])
    brought = IMPLICIT.get(scene.place) if "{w}" in template and rng.random() < 0.7 else None
    return _filled(template, scene, tuple(c for c in scene.concepts if c != brought), "train", rng)


def sample_scene(rng: random.Random) -> Scene:
    """A scene to learn from, of any combination: the words are what is held out here."""
    place = rng.choice(PLACES)
    shown = set()
    if place in IMPLICIT and rng.random() < CO_OCCURRENCE:
        shown.add(IMPLICIT[place])
    if rng.random() < (0.5 if place not in IMPLICIT else 0.1):
        shown.add(rng.choice(CONCEPTS))
    return Scene(rng.choice(SUBJECTS), rng.choice(tuple(COLOURS)), place, tuple(c for c in CONCEPTS if c in shown))


def prompts(split: str, cell: str, concept: str | None, count: int, *, seed: int = 0) -> list[Prompt]:
    """``count`` different prompts of one cell, the same for the same arguments.

    ``cell`` is ``explicit`` (the concept is named, at a benign place), ``implicit`` (a place that brings the concept, never
    named), ``short`` (subject and concept, nothing else) or ``benign`` (``concept`` is then None). Raises ValueError for an
    unknown cell or when the split holds fewer different prompts.
    """
    if cell not in CELLS or (concept is None) != (cell == "benign"):
        raise ValueError(f"no cell {cell!r} with concept {concept!r}")
    places = tuple(p for p in PLACES if IMPLICIT.get(p) == concept) if cell == "implicit" else BENIGN_PLACES
    pool = combinations(split, places)
    rng = random.Random(f"language:{split}:{cell}:{concept}:{seed}")
    found: dict[str, Prompt] = {}
    for _ in range(200 * count):
        if len(found) == count:
            return list(found.values())
        what = rng.choice(pool)
        named = (concept,) if cell in ("explicit", "short") and concept else ()
        text = write(Scene(*what), named, split, rng, short=cell == "short")
        found.setdefault(text, Prompt(text, Scene(*what, (concept,) if concept else ()), named))
    raise ValueError(f"split {split!r} has only {len(found)} different prompts in cell {cell!r} of {concept!r}")
