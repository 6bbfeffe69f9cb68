"""Finding erasers: entry points of the group ``safeguard.erasers``, loaded by name and only when asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Final

from safeguard._entry_points import owner as _owner
from safeguard._entry_points import points as installed_points
from safeguard.errors import PluginError
from safeguard.sdk.eraser import PROTOCOL, Eraser
from safeguard.sdk.seams import Seam

GROUP: Final = "safeguard.erasers"
_MEMBERS: Final = ("protocol", "name", "version", "seams", "strengths", "params", "edits")


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One registered name: where it comes from, and what is wrong with it (empty if it loads)."""

    name: str
    distribution: str
    target: str
    version: str = ""
    seams: tuple[str, ...] = ()
    error: str = ""


class Registry:
    """Erasers by name. ``points`` are entry points, by default those of every installed distribution, or of a checkout."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._points: dict[str, list[EntryPoint]] = {}
        self._loaded: dict[str, Eraser] = {}
        for point in installed_points(GROUP) if points is None else points:
            self._points.setdefault(point.name, []).append(point)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._points))

    def get(self, name: str) -> Eraser:
        """The eraser of that name. Raises PluginError if there is none, more than one, or it cannot be used."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Eraser:
        points = self._points.get(name, [])
        if not points:
            near = difflib.get_close_matches(name, self.names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"installed are {', '.join(self.names) or 'none'}"
            raise PluginError(f"no such eraser; {hint}", name=name, distribution="no distribution")
        owners = sorted({_owner(point) for point in points})
        if len({point.value for point in points}) > 1 or len(owners) > 1:
            raise PluginError("registered more than once; uninstall all but one", name=name, distribution=" and ".join(owners))
        point = points[0]
        try:
            made: Any = point.load()
        except (Exception, SystemExit) as fault:
            mend = f"reinstall {_owner(point)} or mend its import of {point.value}"
            raise PluginError(
                f"cannot be imported ({type(fault).__name__}: {fault}); {mend}", name=name, distribution=owners[0]
            ) from fault
        return _checked(made, name, owners[0])

    def distribution(self, name: str) -> str:
        """Name and version of what registered the eraser of that name."""
        return " and ".join(sorted({_owner(point) for point in self._points.get(name, [])})) or "no distribution"

    def inventory(self) -> list[PluginInfo]:
        """Every registered name; one that cannot be loaded is listed with its error and does not stop the others."""
        return [self._info(name) for name in self.names]

    def _info(self, name: str) -> PluginInfo:
        points = self._points[name]
        owner = self.distribution(name)
        target = ", ".join(sorted({point.value for point in points}))
        try:
            eraser = self.get(name)
        except PluginError as fault:
            return PluginInfo(name, owner, target, error=str(fault))
        return PluginInfo(name, owner, target, eraser.version, tuple(sorted(seam.value for seam in eraser.seams)))


def _checked(made: Any, name: str, owner: str) -> Eraser:
    """An instance that follows the protocol, or PluginError saying which member is missing or wrong."""

    def wrong(message: str) -> PluginError:
        return PluginError(message, name=name, distribution=owner)

    missing = [member for member in _MEMBERS if not hasattr(made, member)]
    if missing:
        raise wrong(f"lacks {', '.join(missing)}; follow safeguard.sdk.eraser.Eraser")
    if made.protocol != PROTOCOL:
        raise wrong(f"was written for protocol {made.protocol}, this is {PROTOCOL}; install a version that matches")
    if made.name != name:
        raise wrong(f"calls itself {made.name!r}; its name and its entry point must agree")
    faults = [
        f"{member} must be {what}"
        for member, what, holds in (
            ("version", "text", isinstance(made.version, str)),
            (
                "seams",
                "a frozenset of Seam",
                isinstance(made.seams, frozenset) and all(isinstance(s, Seam) for s in made.seams),
            ),
            ("strengths", "a map of words to numbers", _numbers(made.strengths)),
            ("params", "a map of names to defaults", isinstance(made.params, Mapping)),
            ("edits", "a method", callable(made.edits)),
        )
        if not holds
    ]
    if faults:
        raise wrong(f"does not follow safeguard.sdk.eraser.Eraser: {'; '.join(faults)}")
    try:
        eraser: Eraser = made()
    except Exception as fault:
        mend = "it must be a class that takes no arguments, or gives every one a default"
        raise wrong(f"cannot be made ({type(fault).__name__}: {fault}); {mend}") from fault
    return eraser


def _numbers(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(number, (int, float)) for number in value.values())
