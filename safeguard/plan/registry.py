"""Finding erasers: entry points of the group ``safeguard.erasers``, loaded by name and only when asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Final

from safeguard._entry_points import load, owners
from safeguard._entry_points import points as installed_points
from safeguard.errors import PluginError
from safeguard.sdk.eraser import API, Eraser
from safeguard.sdk.seams import Seam

GROUP: Final = "safeguard.erasers"
HERE: Final = "erasers=[...]"
"""In the place of a distribution, for a class that was given to ``protect(..., erasers=[...])``."""
_MEMBERS: Final = ("name", "version", "seams", "strengths", "params", "edits")


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
    """Erasers by name.

    Args:
        points: Entry points; by default those of every installed distribution, or of a checkout.
        classes: Eraser classes that no distribution registers, as a notebook has them.

    Raises:
        PluginError: A class does not follow the protocol, or has the name of another eraser. Neither of two wins: which of them
            a policy means could not be told.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None, classes: Sequence[type] = ()) -> None:
        self._points: dict[str, list[EntryPoint]] = {}
        self._loaded: dict[str, Eraser] = {}
        self._classes: dict[str, type] = {}
        self._owners: dict[str, str] = {}  # read once: a plan asks for every concept, and metadata is a file to parse
        for point in installed_points(GROUP) if points is None else points:
            self._points.setdefault(point.name, []).append(point)
        for kind in classes:
            self._add(kind)

    def _add(self, kind: type) -> None:
        name = str(getattr(kind, "name", getattr(kind, "__name__", kind)))
        if not isinstance(kind, type):
            raise PluginError("give the class, not an instance of it", name=name, distribution=HERE)
        if name in self._points and type(self.get(name)) is kind:
            return  # the installed eraser itself
        if name in self._points or name in self._classes:
            owner = self.distribution(name)
            raise PluginError(f"{owner} has an eraser of this name; give yours another name", name=name, distribution=HERE)
        self._loaded[name] = _checked(kind, name, HERE)
        self._classes[name] = kind

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted({*self._points, *self._classes}))

    def get(self, name: str) -> Eraser:
        """The eraser of that name. Raises PluginError if there is none, more than one, or it cannot be used."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Eraser:
        named = self._points.get(name, [])
        loaded = load(GROUP, name, "eraser", among=[point for points in self._points.values() for point in points])
        return _checked(loaded, name, owners(named))

    def distribution(self, name: str) -> str:
        """Name and version of what registered the eraser of that name."""
        if name in self._classes:
            return HERE
        if name not in self._owners:
            self._owners[name] = owners(self._points.get(name, []))
        return self._owners[name]

    def inventory(self) -> list[PluginInfo]:
        """Every registered name; one that cannot be loaded is listed with its error and does not stop the others."""
        return [self._info(name) for name in self.names]

    def _info(self, name: str) -> PluginInfo:
        owner = self.distribution(name)
        target = ", ".join(sorted({point.value for point in self._points.get(name, [])}))
        try:
            eraser = self.get(name)
        except PluginError as fault:
            return PluginInfo(name, owner, target, error=str(fault))
        return PluginInfo(name, owner, target, eraser.version, tuple(sorted(seam.value for seam in eraser.seams)))


def _checked(instance: Any, name: str, owner: str) -> Eraser:
    """An instance that follows the protocol, or PluginError saying which member is missing or wrong."""

    def wrong(message: str) -> PluginError:
        return PluginError(message, name=name, distribution=owner)

    missing = [member for member in _MEMBERS if not hasattr(instance, member)]
    if not hasattr(instance, "api") and not hasattr(instance, "protocol"):
        missing.insert(0, "api")
    if missing:
        raise wrong(f"lacks {', '.join(missing)}; follow safeguard.sdk.eraser.Eraser")
    fault = _api_fault(instance)
    if fault:
        raise wrong(fault)
    if instance.name != name:
        raise wrong(f"calls itself {instance.name!r}; its name and its entry point must agree")
    faults = [
        f"{member} must be {what}"
        for member, what, holds in (
            ("version", "text", isinstance(instance.version, str)),
            (
                "seams",
                "a frozenset of Seam",
                isinstance(instance.seams, frozenset) and all(isinstance(s, Seam) for s in instance.seams),
            ),
            ("strengths", "a map of words to numbers", _numbers(instance.strengths)),
            ("params", "a map of names to defaults", isinstance(instance.params, Mapping)),
            ("edits", "a method", callable(instance.edits)),
        )
        if not holds
    ]
    if faults:
        raise wrong(f"does not follow safeguard.sdk.eraser.Eraser: {'; '.join(faults)}")
    try:
        eraser: Eraser = instance()
    except Exception as raised:
        mend = "it must be a class that takes no arguments, or gives every one a default"
        raise wrong(f"cannot be made ({type(raised).__name__}: {raised}); {mend}") from raised
    return eraser


def _api_fault(eraser: Any) -> str:
    """Why an eraser's version of the SDK does not go with this one; empty where it does."""
    here = f"this is {API[0]}.{API[1]}"
    if not hasattr(eraser, "api"):  # as version 0.1 had it
        if eraser.protocol != 1:
            return f"was written for protocol {eraser.protocol!r}, {here}; install a version that matches"
        message = f"eraser {eraser.name!r}: protocol = 1 goes in 0.3; write api = {API} in its place"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return ""
    api = eraser.api
    if not isinstance(api, tuple) or len(api) != 2 or not all(type(part) is int for part in api):
        return f"api must be two whole numbers such as {API}, not {api!r}"
    if api[0] != API[0]:
        return f"was written for safeguard.sdk {api[0]}.{api[1]}, {here}; install a version of it for {API[0]}.x"
    if api[1] > API[1]:
        return f"was written for safeguard.sdk {api[0]}.{api[1]}, {here}, which is older; upgrade safeguard-diffusion"
    return ""


def _numbers(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(number, (int, float)) for number in value.values())
