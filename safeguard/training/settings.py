"""Settings of a training as a dataclass: the defaults, which numbers each takes, and the help that is shown of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final

APART: Final = ("batch", "seed")  # fields of settings that are options of their own


@dataclass(frozen=True, slots=True)
class Kind:
    """Which numbers a setting takes: in words, by a test, and as what type it is passed on."""

    words: str
    holds: Callable[[float], bool]
    cast: Callable[[float], float]


REAL: Final = Kind("a number above 0", lambda number: 0 < number < float("inf"), float)
WHOLE: Final = Kind("a whole number above 0", lambda number: number > 0 and number % 1 == 0, int)
FLAG: Final = Kind("0 or 1", lambda number: number in (0, 1), int)
CHOICE: Final = Kind("0, 1 or 2", lambda number: number in (0, 1, 2), int)
_KINDS: Final = {bool: FLAG, int: WHOLE, float: REAL}


def setting(default: float, kind: Kind, help: str) -> Any:
    """A field of a settings dataclass: its default, which numbers it takes, and a line of help.

    A field without this is a whole number if its default is an int, and a number above 0 if its default is a float.
    """
    return field(default=default, metadata={"kind": kind, "help": help})


def fixed(default: float) -> Any:
    """A field of a settings dataclass that no user sets."""
    return field(default=default, metadata={"kind": None})


@dataclass(frozen=True, slots=True)
class NoSettings:
    """Of a trainer that has none."""


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting of a trainer, as help shows it and `check` goes by it."""

    name: str
    default: float
    kind: Kind
    help: str


def settings_of(kind: type[Any]) -> Mapping[str, SettingInfo]:
    """What a user may set of a settings dataclass, by name."""
    settings = {}
    for option in fields(kind):
        numbers = option.metadata.get("kind", _KINDS.get(type(option.default)))
        if option.name not in APART and numbers is not None and option.default is not MISSING:
            settings[option.name] = SettingInfo(option.name, option.default, numbers, option.metadata.get("help", ""))
    return settings
