"""What installed distributions bring in by entry points, also in a checkout that was never installed."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from safeguard.errors import PluginError

ROOT: Final = Path(__file__).parents[1]


def points(group: str) -> list[EntryPoint]:
    """The entry points of a group: those of every installed distribution, and those that this checkout's ``pyproject.toml``
    files declare for distributions that are not installed.
    """
    installed = list(entry_points(group=group))
    for project in (ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))):
        if project.is_file():
            installed += _declared(project, group)
    return installed


def names(group: str) -> list[str]:
    """The names of a group, sorted. Nothing is imported."""
    return sorted({point.name for point in points(group)})


def load(group: str, name: str, what: str, remedy: str = "", among: Iterable[EntryPoint] | None = None) -> Any:
    """The object behind the entry point ``name`` of a group.

    Args:
        group: The group, such as ``safeguard.trainers``.
        name: The name in it.
        what: What the group holds, in words, for messages: ``trainer``.
        remedy: What to do where the name is missing.
        among: The entry points to look in; by default those of `points`.

    Raises:
        PluginError: There is no such name, more than one distribution registers it, or it cannot be imported.
    """
    point = find(group, name, what, remedy, among)
    try:
        return point.load()
    except (Exception, SystemExit) as fault:
        hint = f"reinstall {owner(point)} or mend its import of {point.value}"
        message = f"{what} cannot be imported ({type(fault).__name__}: {fault}); {hint}"
        raise PluginError(message, name=name, distribution=owner(point)) from fault


def find(group: str, name: str, what: str, remedy: str = "", among: Iterable[EntryPoint] | None = None) -> EntryPoint:
    """The one entry point of that name, as `load` looks for it. Raises PluginError where there is none or more than one."""
    known = list(points(group) if among is None else among)
    named = [point for point in known if point.name == name]
    if not named:
        installed = sorted({point.name for point in known})
        near = difflib.get_close_matches(name, installed, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"installed are {', '.join(installed) or 'none'}"
        message = f"no such {what}; {hint}{f'; {remedy}' if remedy else ''}"
        raise PluginError(message, name=name, distribution="no distribution")
    if len({(point.value, owner(point)) for point in named}) > 1:
        message = f"{what} is registered more than once; uninstall all but one"
        raise PluginError(message, name=name, distribution=owners(named))
    return named[0]


def owners(named: Iterable[EntryPoint]) -> str:
    """Name and version of every distribution that registers one of these entry points."""
    return " and ".join(sorted({owner(point) for point in named})) or "no distribution"


def owner(point: EntryPoint) -> str:
    """Name and version of the distribution that registers an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "no installed distribution"


def folder(point: EntryPoint) -> Path | None:
    """The folder that an entry point of data names: ``PACKAGE``, or ``PACKAGE:FOLDER.FOLDER`` inside it. No code of the package
    runs. None where there is no such folder.
    """
    spec = find_spec(point.module)
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(place, *(point.attr.split(".") if point.attr else ()))
        if path.is_dir():
            return path
    return None


def _declared(project: Path, group: str) -> list[EntryPoint]:
    """What a ``pyproject.toml`` declares, where its distribution is not installed."""
    table = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
    declared = table.get("entry-points", {}).get(group, {})
    try:
        distribution(table.get("name", ""))
    except (PackageNotFoundError, ValueError):
        return [EntryPoint(name, value, group) for name, value in declared.items()]
    return []
