"""``safeguard audit``: is the log whole, what was decided, and under which policy?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from safeguard import audit
from safeguard.audit.query import image_of
from safeguard.cli.output import EXIT_UNEXPECTED, JsonOption, emit, report_error
from safeguard.errors import AuditError

app = typer.Typer(no_args_is_help=True, help="Verify and query decision logs.")

FolderArgument = Annotated[Path, typer.Argument(help="The audit folder, or one of its files.", metavar="FOLDER")]

_STYLES = {"erase": "yellow", "block": "red", "flag": "magenta", "review": "cyan", "pass": "green"}


@app.command("verify")
def verify(
    folder: FolderArgument,
    known: Annotated[
        Path | None,
        typer.Option(help="What 'verify --json' printed earlier, kept on another machine: shows a tail cut since."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every hash, link and policy snapshot. Exit 1, with the first bad record named, where one does not hold."""
    report = audit.verify(folder, known=() if known is None else _heads(known))
    data = {
        "ok": report.ok,
        "records": report.records,
        "policies": report.policies,
        "files": report.files,
        "first_bad": report.first_bad,
        "bad": report.bad,
    }
    emit(data, as_json, lambda console: _print_report(console, report))
    if not report.ok:
        raise typer.Exit(EXIT_UNEXPECTED)


@app.command("query")
def query(
    folder: FolderArgument,
    concept: Annotated[str | None, typer.Option(help="Found in the prompt, or acted on.")] = None,
    result: Annotated[str | None, typer.Option(help="erase, block, flag, review or pass.")] = None,
    request_id: Annotated[str | None, typer.Option(help="The request's id.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant.")] = None,
    revision: Annotated[str | None, typer.Option(help="The policy's revision, or its first digits.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on, RFC 3339; UTC without a zone.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    image: Annotated[Path | None, typer.Option(help="An image file: the decisions that let it out.")] = None,
    image_sha256: Annotated[str | None, typer.Option(help="An image's digest, or its first digits.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List decisions that match every filter."""
    if image is not None and image_sha256 is not None:
        raise typer.BadParameter("give either --image or --image-sha256")
    matches = list(
        audit.query(
            folder,
            concept=concept,
            result=result,
            request_id=request_id,
            tenant=tenant,
            revision=revision,
            since=since,
            until=until,
            image_sha256=image_sha256 if image is None else _digest(image),
        )
    )
    matches.sort(key=lambda record: str(record["time"]))  # files of several processes overlap in time
    emit(matches, as_json, lambda console: _print_table(console, matches))


@app.command("show")
def show(
    folder: FolderArgument,
    decision_id: Annotated[str, typer.Argument(help="The decision's id.", metavar="DECISION_ID")],
    as_json: JsonOption = False,
) -> None:
    """Show one decision fully, with the policy that it was made under."""
    record = next(audit.query(folder, decision_id=decision_id), None)
    if record is None:
        raise AuditError(f"{folder}: no decision {decision_id} in this log", path=str(folder))
    policy, fault = None, None
    try:
        snapshot = audit.load_snapshot(folder if folder.is_dir() else folder.parent, record["policy"]["revision"])
        policy = json.loads(snapshot)
    except AuditError as error:
        fault = error
    emit({"record": record, "policy": policy}, as_json, lambda console: _print_decision(console, record, policy))
    if fault is not None:
        report_error(fault)
        raise typer.Exit(EXIT_UNEXPECTED)


def _heads(report: Path) -> list[audit.ChainHead]:
    try:
        heads = [file["head"] for file in json.loads(report.read_bytes())["files"]]
        return [audit.ChainHead(str(head["file"]), int(head["seq"]), str(head["hash"])) for head in heads]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AuditError(f"{report}: this is not what 'safeguard audit verify --json' prints", path=str(report)) from error


def _digest(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return audit.image_digest(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise AuditError(f"{path}: cannot read this image: name a PNG or another lossless file", path=str(path)) from error


def _print_report(console: Console, report: audit.VerifyReport) -> None:
    table = _table("file", "state", "decisions", "last seq", "head")
    for file in report.files:
        state = f"{file.state}, earlier files pruned" if file.pruned else file.state
        table.add_row(Text(file.file), state, str(file.records), str(file.head.seq), file.head.hash[:12])
    console.print(table)
    for bad in report.bad:
        console.print(Text.assemble(("bad ", "bold red"), str(bad)), soft_wrap=True)
    if report.ok:
        counts = _count(report.records, "decision"), _count(len(report.files), "file")
        summary = f"{counts[0]} in {counts[1]}, every hash and link holds; policy snapshots checked: {report.policies}"
        console.print(Text.assemble(("ok ", "bold green"), summary), soft_wrap=True)


def _print_table(console: Console, records: list[dict[str, Any]]) -> None:
    table = _table("time", "decision", "result", "erased", "policy", "image")
    for record in records:
        table.add_row(
            Text(record["time"][:19].replace("T", " ")),
            Text(record["decision_id"]),
            Text(record["result"], style=_STYLES.get(record["result"], "")),
            Text(", ".join(effect["concept"] for effect in record["applied"])),
            Text(f"{record['policy']['name']}@{record['policy']['revision'][:12]}"),
            Text(image_of(record)[:12]),
        )
    console.print(table)
    console.print(Text(_count(len(records), "decision"), style="dim"))


def _table(*headers: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")  # an id that is cut off cannot be copied
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _print_decision(console: Console, record: dict[str, Any], policy: Any) -> None:
    erased = ", ".join(item["concept"] for item in record["applied"]) or "nothing"
    name, revision = record["policy"]["name"], record["policy"]["revision"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("decision", Text(record["decision_id"]))
    facts.add_row("result", Text(f"{record['result']} ({record['status']})"))
    facts.add_row("erased", Text(erased))
    for item in record.get("drawn", ()):
        facts.add_row("drawn", Text(f"{item['concept']}, one of {item['group']} ({', '.join(item['of'])}), by {item['by']}"))
    facts.add_row("policy", Text(f"{name}@{revision}", overflow="fold"))
    console.print(facts)
    console.rule("record", align="left")
    console.print(JSON.from_data(record), soft_wrap=True)
    if policy is not None:
        console.rule(Text(f"policy {name}@{revision[:12]}"), align="left")
        console.print(JSON.from_data(policy), soft_wrap=True)
