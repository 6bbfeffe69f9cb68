"""The public names of safeguard and their signatures, in a file that is tracked: a change of them has to be meant.

``python -m tests.packaging.public_api`` writes ``tests/packaging/public_api.txt``. What changes there changes for users: say it
in ``CHANGELOG.md``.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

MODULES: Final = ("safeguard", "safeguard.errors", "safeguard.sdk", "safeguard.testing")
FILE: Final = Path(__file__).with_name("public_api.txt")


def written() -> str:
    """The public API in words, one line for each name, method, property and field."""
    return (
        "\n".join(line for module in MODULES for line in (f"# {module}", *_names(importlib.import_module(module)), "")) + "\n"
    )


class _Bare(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _signature(value: Callable[..., Any]) -> str:
    """A signature, the same in every version of Python."""

    def bare(annotation: Any) -> Any:
        return _Bare(annotation) if isinstance(annotation, str) else annotation

    signature = inspect.signature(value)
    parameters = [each.replace(annotation=bare(each.annotation)) for each in signature.parameters.values()]
    shown = str(signature.replace(parameters=parameters, return_annotation=bare(signature.return_annotation)))
    return re.sub(r" at 0x[0-9a-f]+", "", shown)  # the address of a function that is a default


def _names(module: ModuleType) -> Iterator[str]:
    """The names of a module's ``__all__``; of one without, the classes that it defines."""
    public = getattr(module, "__all__", None)
    own = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
    for name in sorted(public if public is not None else own):
        yield from _described(name, getattr(module, name))


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        yield f"class {name}({', '.join(bases)})" if bases else f"class {name}"
        yield from (f"    {line}" for _, line in sorted(_members(value).items()))
    elif inspect.isroutine(value):
        yield f"def {name}{_signature(value)}"
    elif inspect.ismodule(value):
        yield f"module {name}"
    else:
        yield f"{name}: {type(value).__name__}"


def _members(kind: type) -> dict[str, str]:
    """What a class, or a class of safeguard that it is made of, defines in public; and how it is made and called."""
    known: dict[str, str] = {}
    for place in reversed([one for one in kind.__mro__ if one.__module__.split(".")[0] == "safeguard"]):
        for name, annotation in vars(place).get("__annotations__", {}).items():
            known[name] = f"{name}: {annotation}"
        for name, value in vars(place).items():
            line = _member(name, value)
            if line:
                known[name] = line
    shown = {"__init__", "__call__"} - ({"__init__"} if getattr(kind, "_is_protocol", False) else set())
    return {name: line for name, line in known.items() if not name.startswith("_") or name in shown}


def _member(name: str, value: Any) -> str:
    if isinstance(value, property | functools.cached_property):
        return f"property {name}"
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} {name}{_signature(value.__func__)}"
    if isinstance(value, enum.Enum):
        return f"{name} = {value.value!r}"
    return f"def {name}{_signature(value)}" if inspect.isfunction(value) else ""


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
