"""Log lines: silent by default, on the standard ``logging``, each event with the keys that the page lists."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from safeguard._log import get_logger
from safeguard.cli.output import warnings_on_stderr

ROOT = Path(__file__).parents[2]
LEVELS = ("debug", "info", "warning", "error")

REFUSED_SWAP = """
import sys
import safeguard
from safeguard.errors import PolicyError
from tests.support.families import FAMILIES, PROMPTS, generate

{setting}
guard = safeguard.protect(FAMILIES["sd1"](), "builtin://demo", screener=None)
generate(guard._pipe, PROMPTS)
try:
    guard.swap("no such file.yaml")
except PolicyError:
    pass
guard.release()
"""
CONFIGURED = "import logging; logging.basicConfig(format='%(name)s %(levelname)s %(message)s', level=logging.DEBUG)"


def _run(script: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return done


def test_nothing_is_printed_where_the_application_configures_nothing() -> None:
    done = _run(REFUSED_SWAP.format(setting=""))
    ours = [line for line in done.stderr.splitlines() if not line.startswith("[transformers]")]  # it says what is not installed
    assert (done.stdout, ours) == ("", [])


def test_where_logging_is_configured_a_refused_policy_says_why_and_stdout_stays_empty() -> None:
    done = _run(REFUSED_SWAP.format(setting=CONFIGURED))
    assert done.stdout == ""
    assert "safeguard.guard INFO policy_activated policy=" in done.stderr
    refusal = r'safeguard.guard WARNING policy_refused source="no such file.yaml" error=PolicyError reason=".*"'
    assert re.search(refusal, done.stderr)
    assert "safeguard.guard DEBUG request_ended" in done.stderr


@pytest.fixture
def records() -> list[logging.LogRecord]:
    return []


@pytest.fixture
def logger(records: list[logging.LogRecord]) -> logging.Logger:
    """A standard logger whose records are kept."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.getLogger("safeguard.a_test")
    logger.handlers[:] = [Kept()]
    logger.setLevel(logging.DEBUG)
    return logger


def test_a_record_has_a_readable_message_and_the_keys_as_attributes(
    logger: logging.Logger, records: list[logging.LogRecord]
) -> None:
    get_logger(logger.name).info("something_happened", path="a b", counts={"erase": 2}, ids=["x", "y"], nothing=None)
    (record,) = records
    assert record.getMessage() == 'something_happened path="a b" counts=erase:2 ids=x,y nothing='
    assert (record.event, record.counts, record.ids) == ("something_happened", {"erase": 2}, ["x", "y"])  # type: ignore[attr-defined]


def test_a_record_names_the_line_that_logged_it(logger: logging.Logger, records: list[logging.LogRecord]) -> None:
    get_logger(logger.name).info("something_happened")
    assert records[0].filename == Path(__file__).name


def test_a_record_carries_the_traceback_beside_the_keys(logger: logging.Logger, records: list[logging.LogRecord]) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        get_logger(logger.name).error("something_failed", exc_info=True)
    assert records[0].exc_info is not None
    assert records[0].getMessage() == "something_failed"


def test_an_event_below_the_level_makes_no_record(logger: logging.Logger, records: list[logging.LogRecord]) -> None:
    logger.setLevel(logging.WARNING)
    get_logger(logger.name).info("something_happened")
    assert records == []


def test_what_an_application_set_for_structlog_stays_and_is_not_used(
    logger: logging.Logger, records: list[logging.LogRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        structlog.configure(processors=[structlog.processors.JSONRenderer()])
        before = structlog.get_config()
        get_logger(logger.name).warning("something_happened")
        assert structlog.get_config() == before
    finally:
        structlog.reset_defaults()
    assert capsys.readouterr().out == ""
    assert len(records) == 1


def test_structlogs_bridge_shows_an_event_with_its_keys(logger: logging.Logger) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()], processors=[remove, structlog.processors.JSONRenderer()]
        )
    )
    logger.handlers[:] = [handler]
    get_logger(logger.name).info("something_happened", revision="abc")
    assert json.loads(stream.getvalue()) == {"event": "something_happened", "revision": "abc"}


def test_a_command_shows_warnings_on_stderr_and_leaves_logging_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger("safeguard").handlers)
    with warnings_on_stderr():
        get_logger("safeguard.audit").warning("something_happened", file="a")
        get_logger("safeguard.audit").info("nothing_special")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "WARNING: something_happened file=a\n")
    assert logging.getLogger("safeguard").handlers == before


def _logged() -> dict[str, tuple[str, frozenset[str]]]:
    """Every event in the source: its level and its keys."""
    found = {}
    for path in (ROOT / "safeguard").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=level), args=[ast.Constant(value=str(event))]
                ) if level in LEVELS:
                    found[event] = (level.upper(), frozenset(key.arg for key in node.keywords if key.arg) - {"exc_info"})
    return found


def _listed() -> dict[str, tuple[str, frozenset[str]]]:
    page = (ROOT / "docs/logging.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `safeguard.")]
    return {event.strip("`"): (level, frozenset(re.findall(r"`(\w+)`", keys))) for _, event, level, _, keys in rows}


def test_the_page_lists_every_event_with_its_level_and_keys() -> None:
    assert _listed() == _logged()


def test_no_key_hides_an_attribute_that_every_record_has() -> None:
    taken = {*vars(logging.makeLogRecord({})), "message", "asctime"}
    assert not {key for _, keys in _logged().values() for key in keys} & taken


def test_no_part_of_the_package_configures_logging_or_prints_by_itself() -> None:
    pattern = re.compile(r"structlog\.(configure|get_logger|PrintLogger)|logging\.basicConfig|^ *print\(", re.MULTILINE)
    found = [str(path) for path in (ROOT / "safeguard").rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
    assert [path for path in found if not path.endswith("fit_heads.py")] == []  # a command of this repository's developers
