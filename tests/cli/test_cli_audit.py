"""``safeguard audit``, run as a user runs it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from safeguard.audit import Applied, AuditLog, Decision, GroupChoice, Model, Output, Screen, Subject, image_digest
from safeguard.audit.canonical import canonical
from safeguard.audit.chain import digest
from safeguard.cli import output
from safeguard.cli.main import app

SNAPSHOT = b'{"concepts":{"blood":{"phrases":["blood","gore"]}},"name":"storefront"}'
REVISION = hashlib.sha256(SNAPSHOT).hexdigest()


def audit(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)], env={"COLUMNS": "200"})


def decision(**changes: Any) -> Decision:
    values: dict[str, Any] = {
        "policy_name": "storefront",
        "policy_revision": REVISION,
        "result": "erase",
        "subject": Subject("a battlefield at dawn"),
        "model": Model("StableDiffusionPipeline"),
        "screen": Screen("minilm:0123", {"blood": 0.8}, {"blood": 0.4}, ("blood",)),
        "applied": (Applied("blood", "eiup", "1", 2.0, "strong", (0, 24), 16),),
    }
    return Decision(**{**values, **changes})


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell has to be folded."""
    monkeypatch.setattr(output.stdout, "width", 200)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "out.png"
    Image.new("RGB", (8, 8), "navy").save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, image: Path) -> Path:
    with AuditLog(tmp_path / "audit") as log, Image.open(image) as picture:
        log.store_policy(REVISION, SNAPSHOT)
        log.append([decision(output=Output(image_digest(picture), 7, (8, 8)))])
        log.append([decision(result="block", applied=(), tenant="news"), decision(result="pass", applied=())])
    return log.folder


def tamper(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"result":"block"', b'"result":"pass"'))
    return path


def test_verify_of_a_whole_log(folder: Path) -> None:
    run = audit("verify", folder)
    assert run.exit_code == 0
    assert "3 decisions in 1 file, every hash and link holds; policy snapshots checked: 1" in run.stdout


def test_verify_names_the_first_bad_record(folder: Path) -> None:
    path = tamper(folder)
    run = audit("verify", folder)
    assert run.exit_code == 1
    assert f"bad {path.name}:3: seq 2: its hash does not match its content" in run.stdout


def test_verify_as_json(folder: Path) -> None:
    path = tamper(folder)
    run = audit("verify", folder, "--json")
    report = json.loads(run.stdout)
    assert run.exit_code == 1
    assert report["ok"] is False
    assert (report["first_bad"]["file"], report["first_bad"]["seq"]) == (path.name, 2)


def test_verify_against_an_earlier_report_shows_a_cut_tail(folder: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(audit("verify", folder, "--json").stdout)
    (path,) = folder.glob("*.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert audit("verify", folder).exit_code == 0
    run = audit("verify", folder, "--known", earlier)
    assert run.exit_code == 1
    assert "the tail was cut" in run.stdout


@pytest.mark.parametrize("content", ["", "{}", '{"files":[{"head":{"x":1}}]}', "[]"])
def test_verify_against_something_else_is_an_error(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "earlier.json").write_text(content)
    run = audit("verify", folder, "--known", tmp_path / "earlier.json")
    assert run.exit_code == 1
    assert "is not what 'safeguard audit verify --json' prints" in run.stderr


@pytest.mark.parametrize("verb", ["verify", "query"])
def test_a_missing_folder_is_an_error(tmp_path: Path, verb: str) -> None:
    run = audit(verb, tmp_path / "nowhere")
    assert (run.exit_code, run.stdout) == (1, "")
    assert "cannot read the audit log" in run.stderr


def test_query_lists_what_was_decided(folder: Path) -> None:
    run = audit("query", folder)
    assert run.exit_code == 0
    assert f"storefront@{REVISION[:12]}" in run.stdout
    assert "3 decisions" in run.stdout


@pytest.mark.parametrize(
    ("filters", "results"),
    [
        (["--result", "block"], ["block"]),
        (["--concept", "blood"], ["erase", "block", "pass"]),
        (["--concept", "weapon"], []),
        (["--tenant", "news"], ["block"]),
        (["--until", "2020-01-01"], []),
        (["--revision", REVISION[:12], "--since", "2020-01-01"], ["erase", "block", "pass"]),
    ],
)
def test_query_filters(folder: Path, filters: list[str], results: list[str]) -> None:
    run = audit("query", folder, *filters, "--json")
    assert [record["result"] for record in json.loads(run.stdout)] == results


def test_query_by_image_file_even_when_it_was_saved_again(folder: Path, image: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.png"
    with Image.open(image) as picture:
        picture.save(again, compress_level=0)
    assert again.read_bytes() != image.read_bytes()
    assert "1 decision\n" in audit("query", folder, "--image", again).stdout


def test_query_by_a_file_that_is_no_image(folder: Path) -> None:
    run = audit("query", folder, "--image", next(folder.glob("*.jsonl")))
    assert run.exit_code == 1
    assert "cannot read this image" in run.stderr


def test_query_with_a_wrong_time(folder: Path) -> None:
    run = audit("query", folder, "--since", "yesterday")
    assert run.exit_code == 1
    assert "RFC 3339" in run.stderr


def test_query_keeps_warnings_off_stdout(folder: Path) -> None:
    (path,) = folder.glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b"torn")
    run = audit("query", folder, "--json")
    assert len(json.loads(run.stdout)) == 3
    assert "log_line_unreadable" in run.stderr


def test_show_says_what_was_erased_and_under_which_policy(folder: Path) -> None:
    (record,) = json.loads(audit("query", folder, "--result", "erase", "--json").stdout)
    run = audit("show", folder, record["decision_id"])
    assert run.exit_code == 0
    assert "gore" in run.stdout  # from the snapshot
    assert REVISION in run.stdout
    shown = json.loads(audit("show", folder, record["decision_id"], "--json").stdout)
    assert shown == {"record": record, "policy": json.loads(SNAPSHOT)}


def test_show_says_what_was_drawn_of_which_group(folder: Path) -> None:
    drawn = GroupChoice("colour", "blue", ("green", "blue"), "generator", "ef" * 32)
    with AuditLog(folder) as log:
        (record,) = log.append([decision(drawn=(drawn,))])
    assert "blue, one of colour (green, blue), by generator" in audit("show", folder, record["decision_id"]).stdout


def test_show_without_the_policy_shows_the_rest_and_fails(folder: Path) -> None:
    (record,) = json.loads(audit("query", folder, "--result", "erase", "--json").stdout)
    next((folder / "policies").glob("*.json")).unlink()
    run = audit("show", folder, record["decision_id"], "--json")
    assert run.exit_code == 1
    assert json.loads(run.stdout) == {"record": record, "policy": None}
    assert "is not archived" in run.stderr


def test_show_of_an_unknown_decision(folder: Path) -> None:
    run = audit("show", folder, "0190")
    assert run.exit_code == 1
    assert "no decision 0190 in this log" in run.stderr


def test_the_verb_loads_no_torch() -> None:
    program = "import sys, safeguard.cli.audit; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def in_old_form(path: Path) -> None:
    """Write a log again as 0.1 wrote it: the older schema, and `erased` in place of `redacted`."""
    lines, prev = [], None
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        if "redacted" in record:
            record |= {"schema": "safeguard.dev/decision/v1", "erased": record.pop("redacted")}
        record["prev"] = record["prev"] if prev is None else prev
        record["hash"] = prev = digest(record)
        lines.append(canonical(record) + b"\n")
    path.write_bytes(b"".join(lines))


def test_a_log_of_0_1_is_verified_queried_and_shown(folder: Path) -> None:
    in_old_form(next(folder.glob("*.jsonl")))
    assert json.loads(audit("verify", folder, "--json").stdout)["records"] == 3
    (record,) = json.loads(audit("query", folder, "--result", "erase", "--json").stdout)
    shown = json.loads(audit("show", folder, record["decision_id"], "--json").stdout)
    assert (shown["record"], shown["record"]["erased"]) == (record, [])
