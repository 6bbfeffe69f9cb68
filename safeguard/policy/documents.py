"""Finding and reading policy documents: files under one root folder, and the built-in ones."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from safeguard.errors import PolicyError, Problem
from safeguard.policy.schema import did_you_mean
from safeguard.policy.snapshot import BUILTIN
from safeguard.policy.yaml_nodes import MAX_BYTES, Mark, problem, shown


@dataclass(frozen=True, slots=True)
class Location:
    """Where a document lies.

    ``key`` is its identity (links followed), ``name`` what messages call it, ``root`` the folder that it may reach; a
    built-in document has none.
    """

    key: str
    name: str
    path: Path | None
    root: Path | None

    @property
    def built_in(self) -> bool:
        return self.root is None


def builtin_folder() -> Traversable:
    """Where the built-in policies lie: an installed package, or ``policies`` of the checkout that this file is in."""
    try:
        return resources.files("safeguard_policies")
    except ModuleNotFoundError:
        checkout = Path(__file__).parents[2] / "policies"
        if not checkout.is_dir():
            raise
        return checkout


def builtin_names() -> list[str]:
    """The names of the policies that the package carries."""
    names = [file.name.removesuffix(".yaml") for file in builtin_folder().iterdir() if file.name.endswith(".yaml")]
    return sorted(name for name in names if not name.endswith("_test"))


def first(source: str | os.PathLike[str]) -> Location:
    """The location that a user names. Raises PolicyError for an unknown built-in policy."""
    name = os.fsdecode(source)
    if name.startswith(BUILTIN):
        return _builtin(name, Mark(name), "")
    path = Path(os.path.abspath(name))
    # The folder is resolved and the file is not: a mounted policy is often a link into a versioned folder beside it.
    return Location(_real(path), name, path, Path(_real(path.parent)))


def extended(entry: str, base: Location, mark: Mark, path: str) -> Location:
    """The location of an entry of ``extends``. Raises PolicyError where it may not be read."""
    if entry.startswith(BUILTIN):
        return _builtin(entry, mark, path)
    if base.root is None or base.path is None:
        hint = f"use one of {', '.join(BUILTIN + name for name in builtin_names())}"
        raise _refused(mark, path, "a built-in policy extends built-in policies only", hint)
    if "\0" in entry:
        raise _refused(mark, path, "a path cannot hold U+0000", "remove it")
    target = Path(os.path.normpath(base.path.parent / entry))
    name = os.path.normpath(os.path.join(os.path.dirname(base.name), entry))
    real = Path(_real(target))
    if not real.is_relative_to(base.root):
        message = "the path leads out of the policy root, which is the folder of the first document"
        raise _refused(mark, path, message, "move the file there; links are followed before this check")
    return Location(str(real), name, target, base.root)


def with_tests(source: str | os.PathLike[str]) -> tuple[str, Location]:
    """The policy that ``source`` names, itself or by its test file, and the location of its tests."""
    name = os.fsdecode(source)
    if name.startswith(BUILTIN):
        policy = name.removesuffix("_test")
        location = _builtin(policy, Mark(name), "")
        path = location.path and location.path.with_name(f"{location.path.stem}_test.yaml")
        return policy, Location(f"{location.key}_test", f"{location.name}_test", path, None)
    stem, suffix = os.path.splitext(name)
    policy = name if not stem.endswith("_test") else stem.removesuffix("_test") + suffix
    return policy, first(f"{os.path.splitext(policy)[0]}_test{suffix}")


def fetch(location: Location, mark: Mark | None = None, path: str = "") -> bytes:
    """The bytes of a document, at most one more than the limit. Raises PolicyError where they cannot be had.

    ``mark`` and ``path`` say which entry of ``extends`` asked for it.
    """
    place = mark or Mark(location.name)
    try:
        if location.built_in:
            name = location.name.removeprefix(BUILTIN)
            return builtin_folder().joinpath(f"{name}.yaml").read_bytes()
        # Neither a pipe, on which reading would wait for ever, nor a device, which has no end.
        if not stat.S_ISREG(os.stat(location.key).st_mode):
            raise _refused(place, path, f"{shown(location.name)} is not a file", "name a YAML file")
        with open(location.key, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no such path"
        message = f"cannot read {shown(location.name)}: {reason}"
        raise _refused(place, path, message, "check the path and its permissions") from None


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def _builtin(text: str, mark: Mark, path: str) -> Location:
    name = text.removeprefix(BUILTIN)
    names = builtin_names()
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name not in names:
        hint = did_you_mean(name, names) or f"built-in are: {', '.join(names)}"
        raise _refused(mark, path, f"there is no built-in policy {shown(name)}", hint)
    file = builtin_folder().joinpath(f"{name}.yaml")
    return Location(BUILTIN + name, BUILTIN + name, file if isinstance(file, Path) else None, None)


def _refused(mark: Mark, path: str, message: str, hint: str) -> PolicyError:
    fault: Problem = problem(mark, path, message, hint)
    return PolicyError([fault])
