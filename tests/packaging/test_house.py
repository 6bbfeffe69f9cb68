"""The house's own rules, read from the source: names are unique, files and functions stay small, input is never asserted."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LINES: Final = 400  # of a module: one that grows past it holds two ideas
PARAMETERS: Final = 7
METHODS: Final = 15

SAME_MODULE_NAME: Final = {
    "__init__": "what makes a folder a package",
    "__main__": "what makes a package a command",
    "eraser": "each trained method has one, and the SDK has their base",
    "train": "each trained method has one, and the verb",
}
"""Module names that may stand more than once. A verb of ``safeguard/cli`` may have the name of what it calls, too."""

LONG_SIGNATURES: Final = {
    "safeguard/guard/calibrate.py:calibrate": "public and by keyword: each is a number or hook that the page explains",
    "safeguard/instrument/hooks/sdpa.py:attend": "takes the place of torch's scaled_dot_product_attention: its signature",
    "safeguard/sdk/attention.py:attention": "called as torch's scaled_dot_product_attention: its signature",
}
"""Functions with more parameters. Those of the verbs in ``safeguard/cli`` are the command's options, each with its help."""


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    """Every module of the core, the plugins and the demo: its path from the root, and its tree."""
    paths = [
        path for top in ("safeguard", "plugins") for path in sorted((ROOT / top).rglob("*.py")) if "build" not in path.parts
    ]
    return tuple((path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path, node


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield path, node


def _twice(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: where for name, where in places.items() if len(where) > 1}


def test_no_module_name_stands_twice() -> None:
    places = defaultdict(list)
    for path, _ in modules():
        if not path.startswith("safeguard/cli/"):
            places[Path(path).stem].append(path)
    assert {name: where for name, where in _twice(places).items() if name not in SAME_MODULE_NAME} == {}


def test_no_public_class_name_stands_twice() -> None:
    places = defaultdict(list)
    for path, node in classes():
        if not node.name.startswith("_"):
            places[node.name].append(path)
    assert _twice(places) == {}


def test_modules_stay_short() -> None:
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path, _ in modules()}
    assert {path: length for path, length in lengths.items() if length > LINES} == {}


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def _is_verb(path: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return path.startswith("safeguard/cli/") and any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_functions_take_few_parameters() -> None:
    long = {f"{path}:{node.name}" for path, node in functions() if _parameters(node) > PARAMETERS and not _is_verb(path, node)}
    assert long == set(LONG_SIGNATURES)


def test_classes_have_few_public_methods() -> None:
    counts = {
        f"{path}:{node.name}": sum(isinstance(part, ast.FunctionDef) and not part.name.startswith("_") for part in node.body)
        for path, node in classes()
    }
    assert {name: count for name, count in counts.items() if count > METHODS} == {}


def _narrows(test: ast.expr) -> bool:
    """Whether an assertion only tells the type checker what holds already: ``x is not None``, ``isinstance(x, T)``."""
    match test:
        case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
        case ast.Call(func=ast.Name(id="isinstance")):
            return True
    return False


def test_no_input_is_checked_by_an_assertion() -> None:
    found = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and not _narrows(node.test)
    ]
    assert found == []
