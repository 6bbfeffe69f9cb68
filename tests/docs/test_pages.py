"""Every command and every snippet of README and docs is run, so that they stay true.

A page runs from top to bottom in a folder of its own: its Python blocks in one namespace, its console blocks in a shell.

- A YAML block with ``title="NAME"`` is written as the file NAME.
- A Python block passes if it raises nothing; what it shows, it asserts.
- A line ``$ command`` of a console block has to exit with 0, or with N where it ends in ``# exit N``. Lines below it are the
  output that it must give; ``...`` stands for anything. Nothing below it: any output.
- ``$ make TARGET`` has to be a target of the Makefile; CI runs them.
- ``$ safeguard ...`` runs in the process of the tests, unless it needs a shell (a pipe, a redirection). In the README it always
  runs in a shell.
- A block whose first line says ``# not run: WHY`` is left out.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from docs.studies import docs_tables
from safeguard.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = docs_tables.pages(ROOT)
FENCE = re.compile(
    r"""^(?P<indent> *)```(?P<language>\w+)(?: title="(?P<title>[\w.]+)")?[^\n]*\n(?P<text>.*?)^(?P=indent)```""",
    re.DOTALL | re.MULTILINE,
)
TABLE = re.compile(r"<!-- table:")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)|<img[^>]* src=\"(?P<source>[^\"]+)\"")
NOT_RUN = re.compile(r"# not run: \w")
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block; ``line`` is that of its first line in the page."""

    language: str
    line: int
    text: str
    title: str | None


def _blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        indent = fence["indent"]
        lines = [line.removeprefix(indent) for line in fence["text"].splitlines()]
        block = Block(fence["language"], text.count("\n", 0, fence.start()) + 2, "\n".join(lines) + "\n", fence["title"])
        if (block.title or block.language in ("python", "console")) and not NOT_RUN.match(block.text):
            found.append(block)
    return found


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page)], ids=_name)
def test_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in _blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            # Blank lines before it, so that a traceback names the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, _name(page), "exec", dont_inherit=True)
            exec(code, vars(module))
        else:
            _run_console(block, page)


def _run_console(block: Block, page: Path) -> None:
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not parts[0].strip(), f"{_name(page)}:{block.line}: a console block begins with a command"
    for part in parts[1:]:
        lines = part.splitlines()
        count = 1 + next(place for place, line in enumerate(lines) if not line.endswith("\\"))
        command, expected = "\n".join(lines[:count]), "\n".join(lines[count:])
        _run_command(command, expected, f"{_name(page)}:{block.line}")


def _run_command(command: str, expected: str, place: str) -> None:
    if target := re.match(r"make (\w+)", command):
        planned = subprocess.run(["make", "--dry-run", target[1]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert planned.returncode == 0, f"{place}: {command}: {planned.stderr}"
        return
    ending = re.search(r"# exit (\d+)$", command)
    code, got = _by_shell(command) if place.startswith("README") or not _is_plain(command) else _in_process(command)
    assert code == int(ending[1] if ending else 0), f"{place}: {command}\n{got}"
    if expected.strip():
        assert doctest.OutputChecker().check_output(expected, got, SAME), (
            f"{place}: {command}\nexpected:\n{expected}\ngot:\n{got}"
        )


PLAIN_TERMINAL = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"}


def _by_shell(command: str) -> tuple[int, str]:
    """Exit code and output of a command line."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": tools, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # the commands of docs/studies run in a checkout
    environ = {**os.environ, **PLAIN_TERMINAL, **own}
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout + done.stderr


def _is_plain(command: str) -> bool:
    """Whether it calls ``safeguard`` and needs nothing of a shell."""
    return command.startswith("safeguard ") and not re.search(r"[|&;>*$~`]", re.sub(r"'[^']*'|\"[^\"]*\"", "", command))


def _in_process(command: str) -> tuple[int, str]:
    """The same, without a new process."""
    arguments = shlex.split(command.replace("\\\n", " "), comments=True)[1:]
    result = CliRunner(env=PLAIN_TERMINAL).invoke(app, arguments, prog_name="safeguard")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("page", [page for page in PAGES if TABLE.search(page.read_text(encoding="utf-8"))], ids=_name)
def test_measured_tables_hold_what_the_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert docs_tables.MARKER.search(text), "a table marker without its end"
    assert docs_tables.fill(text, ROOT / "docs" / "results") == text, "run: make tables"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [found["target"] or found["source"] for found in LINK.finditer(text)]
    files = [target.split("#")[0] for target in targets if not re.match(r"(https?:|mailto:|#)", target)]
    assert [name for name in files if not (page.parent / name).exists()] == []


def test_the_navigation_holds_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w/-]+\.md", str(settings["nav"])))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page != ROOT / "README.md"}


def test_the_documentation_needs_no_network() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert "extra_javascript" not in settings
