"""The floors of the distributions are the versions that ``make test-lowest`` installs, no others."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
OWN: Final = "safeguard-diffusion"
RUN: Final = ("eval", "test")  # extras; the tools of `lint` and `docs` are the newest, for developers only


def _version(text: str) -> tuple[int, ...]:
    numbers = [int(number) for number in text.split(".")]
    while numbers and numbers[-1] == 0:  # 2.8 is 2.8.0
        numbers.pop()
    return tuple(numbers)


def _floors(requirements: list[str]) -> dict[str, tuple[int, ...]]:
    floors = {}
    for requirement in requirements:
        name, floor = re.split(r"[>=]=", requirement.partition(",")[0])
        floors[name] = _version(floor)
    return {name: floor for name, floor in floors.items() if not name.startswith(OWN)}


@pytest.fixture(scope="module")
def pins() -> dict[str, tuple[int, ...]]:
    lines = (ROOT / "constraints/lowest.txt").read_text(encoding="utf-8").splitlines()
    return {name: _version(pin) for name, _, pin in (line.partition("==") for line in lines if line and line[0] != "#")}


@pytest.fixture(scope="module")
def floors() -> dict[str, tuple[int, ...]]:
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    demo = tomllib.loads((ROOT / "plugins/safeguard_demo/pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in RUN for requirement in core["optional-dependencies"][extra]]
    return _floors([*core["dependencies"], *extras, *demo["dependencies"]])


def test_every_floor_is_the_pinned_version(floors: dict[str, tuple[int, ...]], pins: dict[str, tuple[int, ...]]) -> None:
    assert floors == pins
