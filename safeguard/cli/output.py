"""What every verb shares: the two consoles, ``--json``, how an error is shown, the exit codes."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from safeguard.errors import PolicyError, Problem, SafeguardError

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_OK, EXIT_UNEXPECTED, EXIT_USAGE, EXIT_INVALID, EXIT_TESTS_FAILED = range(5)

stdout = Console()
stderr = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]


def emit(data: Any, json_flag: bool, render: Callable[[Console], None]) -> None:
    """Prints ``data`` as JSON where ``--json`` was given, else lets ``render`` write to the console for people.

    ``data`` may hold dataclasses, mappings, tuples, sets, paths and numpy values. Not a number becomes ``null``.
    """
    if json_flag:
        # Not through rich: it would wrap and colour what a program is to read.
        sys.stdout.write(json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n")
    else:
        render(stdout)


def plain(value: Any) -> Any:
    """``value`` in terms of what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def progress_bar() -> Progress:
    """A bar on stderr for work that takes minutes, gone when it is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True)


def exit_code(error: SafeguardError) -> int:
    """3 for an invalid policy, 1 for anything else that this package raises on purpose."""
    return EXIT_INVALID if isinstance(error, PolicyError) else EXIT_UNEXPECTED


def report_error(error: SafeguardError) -> None:
    """Writes an error to stderr: one line, or for a policy one line for each problem."""
    if isinstance(error, PolicyError):
        for problem in error.problems:
            stderr.print(problem_line(problem), soft_wrap=True)
    else:
        stderr.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)


def problem_line(problem: Problem) -> Text:
    """``file:line:column: path: message (hint)`` in colour; the plain text is that of ``str(problem)``."""
    place = f"{problem.file}:{problem.line}:{problem.column}" if problem.line else problem.file
    line = Text.assemble((place, "bold"), ":")
    if problem.path:
        line.append(f" {problem.path}:", style="cyan")
    line.append(f" {problem.message}", style="red")
    if problem.hint:
        line.append(f" ({problem.hint})", style="green")
    return line


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show warnings and errors of the package on stderr meanwhile: for a command, whose process is its own."""
    handler = _Stderr(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("safeguard")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Stderr(logging.StreamHandler[Any]):
    """Writes to the stderr of now, which a test or a progress bar may have replaced since the handler was made."""

    def __init__(self, level: int) -> None:
        logging.Handler.__init__(self, level)

    @property
    def stream(self) -> Any:
        return sys.stderr
