"""``python -m safeguard_demo.walkthrough --out out/demo``: everything once, on the trained demo pipeline.

Before and after, with figures; where each concept stood; a policy swapped in the middle of a running loop; a prompt refused;
the audit log verified. Leaves pictures, a report and the log under --out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from safeguard import audit
from safeguard.errors import SafeguardError
from safeguard.evaluation import results_files
from safeguard.evaluation.comparison import comparison
from safeguard.evaluation.harness import Harness, open_harness, quiet_libraries
from safeguard.evaluation.prompt_sets import cells
from safeguard.evaluation.run import images_of
from safeguard.evaluation.tables import rich_tables
from safeguard.policy import Policy, load_policy
from safeguard_demo.report import Story, shipped_results, write_report
from safeguard_demo.walkthrough_steps import Measured, Refused, Swapped, arms_of, block, heat_maps, measure, swap_while_running
from safeguard_demo.world import CONCEPTS

POLICY: Final = "builtin://demo"
TITLE: Final = "The same prompts and seeds, without and with the policy"


def walk(studio: Harness, out: Path, count: int, console: Console) -> bool:
    """The whole walk; whether everything held: the swap, the refusal, the log. Raises SafeguardError where a step fails."""
    begun = time.monotonic()
    folder = out / "audit"
    shutil.rmtree(folder, ignore_errors=True)  # a log of an earlier walk would be counted with this one
    policy = load_policy(POLICY)
    _say(console, "1  The policy", f"{POLICY}: five harmless stand-ins for what a real policy would name")
    console.print(_policy_table(policy))
    log = audit.AuditLog(folder, service="walkthrough")
    try:
        _say(
            console,
            "2  Before and after",
            f"{count} held-out prompts a cell: unprotected, under the policy, each in the negative prompt",
        )
        measured = _measured(studio, policy, count, log, console)
        console.print(
            rich_tables([row for row in measured.rows if row.concept is None], f"Measured now, {count} prompts a cell")
        )
        _say(console, "3  Where each concept stood", "its share of attention, while the picture forms")
        heat = heat_maps(studio, policy, log)
        _say(
            console, "4  A swap in the middle of a running loop", "another thread swaps the policy while an image is under way"
        )
        swapped = swap_while_running(studio, policy, log)
        console.print(_turns_table(swapped))
        _say(console, "5  A prompt refused", "the same policy with the action 'block'")
        refused = block(studio, policy, log)
        console.print(_refusal(refused))
    finally:
        log.close()
    story = Story(type(studio.pipe).__name__, policy, measured, heat, swapped, refused)
    report = audit.verify(folder)
    _say(console, "6  The audit log", "one record an image, chained by hashes, on disk before the image is returned")
    console.print(_log_line(report, swapped))
    files = _write(out, story, report, folder)
    _full_table(story.pipeline, console)
    _say(console, "7  What there is to look at", f"made in {time.monotonic() - begun:.0f} s")
    console.print(_files_table(files))
    return report.ok and swapped.kept_plan


def _measured(studio: Harness, policy: Policy, count: int, log: audit.AuditSink, console: Console) -> Measured:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("painting", total=len(cells(CONCEPTS)) * count + images_of(arms_of(policy, POLICY), count))

        def advance(title: str, images: int) -> None:
            progress.update(task, advance=images, description=title)

        return measure(studio, policy, POLICY, count, log, advance)


def _write(out: Path, story: Story, report: audit.VerifyReport, folder: Path) -> dict[str, Path]:
    """Pictures, figures and the report; their paths by what they are."""
    measured = story.measured
    subtitle = f"Policy {story.policy.name}, revision {story.policy.revision[:12]}; held-out prompts"
    shown = measured.arms[:1]
    sheet = results_files.contact_sheet(measured.results, subtitle, shown, captions=True, title=TITLE)
    text = "Above: the prompt names the concept. Below: it only implies it."
    heat = [comparison(pairs, [name], text, title=f"Where {name} stood") for name, pairs in story.heat.items()]
    settings = {"split": "test", "count": measured.count}
    record = _example(folder, story)
    files = {
        "contact sheet": _save(sheet, out / "contact-sheet.png"),
        "heat maps": _save(_side_by_side(heat), out / "heat-maps.png"),
        "figures": results_files.write_text(
            out / "results.json",
            json.dumps(results_files.finite({"settings": settings, "rows": [row.to_dict() for row in measured.rows]}), indent=2)
            + "\n",
        ),
    }
    footer = f"{report.records} decisions recorded; {images_of(measured.arms, measured.count)} protected pictures measured."
    files["report"] = write_report(out / "report.html", story, report, record, folder, footer)
    return {"report": files.pop("report"), **files, "audit log": folder}


def _example(folder: Path, story: Story) -> dict[str, Any]:
    """The record of the first image after the swap."""
    wanted = story.swapped.turns[story.swapped.during + 1].decision.decision_id
    return next(iter(audit.query(folder, decision_id=wanted)))


def _save(image: Any, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as fault:
        raise SafeguardError(f"{path}: cannot be written ({fault.strerror}); choose another --out") from fault
    return path


def _side_by_side(images: Sequence[Any], columns: int = 2) -> Any:
    from PIL import Image

    from safeguard.evaluation.contact_sheets import PAPER

    width, height = max(image.width for image in images), max(image.height for image in images)
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width, rows * height), PAPER)
    for place, image in enumerate(images):
        page.paste(image, (place % columns * width, place // columns * height))
    return page


def _say(console: Console, title: str, text: str) -> None:
    console.print()
    console.rule(Text(title, style="bold cyan"), align="left")
    console.print(text, style="dim", highlight=False)


def _policy_table(policy: Policy) -> Table:
    table = Table("concept", "erasure prompt", "strength", "activation", box=box.SIMPLE_HEAD, pad_edge=False)
    for concept in policy.concepts.values():
        table.add_row(concept.id, ", ".join(concept.phrases), str(concept.strength), concept.activation)
    table.caption = f"revision {policy.revision[:12]}"
    return table


def _turns_table(swapped: Swapped) -> Table:
    table = Table("image", "policy revision", swapped.concept, "", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, turn in enumerate(swapped.turns):
        old = turn.decision.policy_revision == swapped.before
        erased = swapped.concept in [effect.concept for effect in turn.decision.applied]
        note = f"swap came at step {swapped.step + 1}: keeps its plan" if place == swapped.during else ""
        revision = Text(turn.decision.policy_revision[:12], style="red" if old else "green")
        table.add_row(str(place + 1), revision, "erased" if erased else "let pass", note)
    return table


def _refusal(refused: Refused) -> Panel:
    body = Text.assemble(("PolicyViolation: ", "bold red"), str(refused.error))
    body.append("\nno image was made; the refusal is on record as ")
    body.append(refused.decision.decision_id, style="dim")
    return Panel(body, title=Text(f"prompt: {refused.prompt}", style="dim"), title_align="left", border_style="red")


def _log_line(report: audit.VerifyReport, swapped: Swapped) -> Text:
    if not report.ok:
        return Text(f"NOT INTACT: {report.first_bad}", style="bold red")
    remark = "" if swapped.kept_plan else "; but an image of the loop bears another revision than it began with"
    line = f"{report.records} decisions under {report.policies} policy revisions, every hash and link holds{remark}"
    return Text.assemble(("verified ", "bold green"), line)


def _full_table(pipeline: str, console: Console) -> None:
    full = shipped_results(pipeline)
    if full is not None:
        pooled = [row for row in full["values"] if row.concept is None]
        console.print()
        console.print(rich_tables(pooled, f"The full measurement that comes with the package, {full['count']} prompts a cell"))


def _files_table(files: dict[str, Path]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, path in files.items():
        table.add_row(Text(name, style="bold"), Text(str(path), overflow="fold"))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m safeguard_demo.walkthrough", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for everything that is made")
    parser.add_argument("--n", type=int, default=5, help="prompts a cell (default 5)")
    parser.add_argument("--pipeline", default="unet", help="unet, mmdit, or a folder with a pipeline trained on the demo world")
    parser.add_argument("--judge", type=Path, help="weights of another judge")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with console.status("loading the pipeline, its judge and the screener"):
            quiet_libraries()
            studio = open_harness(options.pipeline, options.judge)
        held = walk(studio, options.out, options.n, console)
    except SafeguardError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return 1
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
