"""``safeguard policy``: validate, explain, test and compare policies. Only ``test`` loads a model, the screener's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from safeguard.cli.output import EXIT_INVALID, EXIT_TESTS_FAILED, JsonOption, emit, problem_line, stderr
from safeguard.errors import PolicyError, Problem
from safeguard.policy.diff import Difference, compare
from safeguard.policy.load import Resolution, load_policy, resolve
from safeguard.policy.policy_tests import PolicyTestResult, load_tests, run_tests
from safeguard.policy.snapshot import Concept, Policy

app = typer.Typer(no_args_is_help=True)

PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY", help="A policy file, or builtin://NAME.")]

ADAPTIVE_NOTE = "adaptive: where the pipeline is not calibrated for the concept (safeguard calibrate), it acts in every image."


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="POLICY...", help="Policy files, or builtin://NAME.")],
    json_output: JsonOption = False,
) -> None:
    """Check policies and report every problem of each, with its place."""
    reports = [_validate(name) for name in files]
    valid = all(not problems for _, _, problems in reports)
    data = {
        "valid": valid,
        "policies": [
            {"source": name, "valid": not problems, "revision": policy and policy.revision, "problems": problems}
            for name, policy, problems in reports
        ],
    }

    def render(console: Console) -> None:
        for name, policy, problems in reports:
            for problem in problems:
                stderr.print(problem_line(problem), soft_wrap=True)
            if policy is not None:
                count = f"{len(policy.concepts)} concept{'s' * (len(policy.concepts) != 1)}"
                line = f"[green]valid[/green] {escape(name)}: {count}, revision {policy.revision[:12]}"
                console.print(line, soft_wrap=True, highlight=False)

    emit(data, json_output, render)
    raise typer.Exit(0 if valid else EXIT_INVALID)


def _validate(name: str) -> tuple[str, Policy | None, tuple[Problem, ...]]:
    try:
        return name, load_policy(name), ()
    except PolicyError as error:
        return name, None, error.problems


@app.command()
def explain(
    policy: PolicyArgument,
    origins: Annotated[bool, typer.Option("--origins", help="Also show the file and line of each value.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show what a policy comes to once everything that it extends is merged."""
    resolution = resolve(policy)

    def render(console: Console) -> None:
        _render_policy(console, resolution.policy)
        if origins:
            _render_origins(console, resolution)

    emit(_policy_data(resolution), json_output, render)


def _policy_data(resolution: Resolution) -> dict[str, Any]:
    policy = resolution.policy
    data = {"revision": policy.revision, "origin": policy.origin, "files": policy.files, **policy.to_dict()}
    data["places"] = {
        name: {key: f"{mark.file}:{mark.line}" for key, mark in places.items()} for name, places in resolution.places.items()
    }
    adaptive = any(concept.activation == "adaptive" for concept in policy.concepts.values())
    return {**data, "notes": [ADAPTIVE_NOTE] if adaptive else []}


def _render_policy(console: Console, policy: Policy) -> None:
    console.print(f"[bold]{escape(policy.name)}[/bold] {escape(policy.description)}", highlight=False)
    console.print(f"revision {policy.revision}", highlight=False, soft_wrap=True)
    settings = policy.settings
    words = f"on_error {settings.on_error}, prompt_embeds {settings.prompt_embeds}, capture {settings.capture}"
    console.print(words, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("concept", "eraser", "strength", "activation", "action", "steps", "threshold"):
        table.add_column(title, no_wrap=True)
    table.add_column("phrases")
    for name, concept in policy.concepts.items():
        cells = [_cell(value) for value in _row(concept).values()]
        table.add_row(escape(name), *cells, escape(", ".join(concept.phrases)))
    console.print(table)
    for group, names in policy.groups.items():
        console.print(f"one of {group}, drawn for each image: {', '.join(names)}", highlight=False)
    if any(concept.activation == "adaptive" for concept in policy.concepts.values()):
        console.print(ADAPTIVE_NOTE, style="dim", highlight=False)


def _row(concept: Concept) -> dict[str, Any]:
    names = ("eraser", "strength", "activation", "action", "steps", "threshold")
    return {name: getattr(concept, name) for name in names}


def _cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "calibrated"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) for item in value)
        return escape(("-" if numbers else ", ").join(f"{item:g}" if numbers else str(item) for item in value))
    return escape(str(dict(value)) if isinstance(value, Mapping) else str(value))


def _render_origins(console: Console, resolution: Resolution) -> None:
    for name, places in resolution.places.items():
        for key, mark in places.items():
            console.print(f"{mark.file}:{mark.line}: {name}.{key}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="A policy file, or builtin://NAME.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="A policy file, or builtin://NAME.")],
    json_output: JsonOption = False,
) -> None:
    """Show what changes from one policy to another."""
    old, new = load_policy(before), load_policy(after)
    difference = compare(old, new)
    data = {
        "same": difference.same,
        "before": {"source": before, "revision": old.revision},
        "after": {"source": after, "revision": new.revision},
        "added": difference.added,
        "removed": difference.removed,
        "changed": difference.changed,
        "reordered": difference.reordered,
    }
    emit(data, json_output, lambda console: _render_difference(console, difference, old, new))


def _render_difference(console: Console, difference: Difference, old: Policy, new: Policy) -> None:
    console.print(f"revision {old.revision[:12]} -> {new.revision[:12]}", highlight=False)
    if difference.same:
        console.print("no difference")
    for sign, colour, names in (("-", "red", difference.removed), ("+", "green", difference.added)):
        for name in names:
            console.print(f"[{colour}]{sign} concepts.{escape(name)}[/{colour}]", highlight=False)
    if difference.reordered:
        console.print("[yellow]~ the order of the concepts[/yellow]", highlight=False)
    if difference.changed:
        table = Table("changed", "before", "after")
        for change in difference.changed:
            table.add_row(escape(change.path), _cell(change.before), _cell(change.after))
        console.print(table)


@app.command("test")
def run(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="A policy or its test file, or builtin://NAME.")],
    json_output: JsonOption = False,
) -> None:
    """Run the tests beside a policy: does the screener find in each prompt what it must, and only that?"""
    loaded, cases = load_tests(policy)
    from safeguard.screening import Screener  # loads an embedding model, which no other verb of this group needs

    with stderr.status(f"screening {len(cases)} prompts"):
        results = run_tests(loaded, cases, Screener().screen)
    failed = sum(not result.passed for result in results)
    data = {
        "policy": {"name": loaded.name, "revision": loaded.revision},
        "passed": len(results) - failed,
        "failed": failed,
        "cases": [_result_data(result) for result in results],
    }
    emit(data, json_output, lambda console: _render_results(console, results, failed))
    raise typer.Exit(EXIT_TESTS_FAILED if failed else 0)


def _result_data(result: PolicyTestResult) -> dict[str, Any]:
    return {
        "place": f"{result.case.mark.file}:{result.case.mark.line}",
        "prompt": result.case.prompt,
        "passed": result.passed,
        "activated": result.activated,
        "missing": result.missing,
        "unwanted": result.unwanted,
    }


def _render_results(console: Console, results: list[PolicyTestResult], failed: int) -> None:
    table = Table("", "line", "prompt", "activated", "missing", "unwanted")
    for result in results:
        verdict = "[green]pass[/green]" if result.passed else "[red]FAIL[/red]"
        names = (", ".join(ids) for ids in (result.activated, result.missing, result.unwanted))
        table.add_row(verdict, str(result.case.mark.line), escape(result.case.prompt), *names)
    console.print(table)
    colour = "red" if failed else "green"
    console.print(f"[{colour}]{len(results) - failed} passed, {failed} failed[/{colour}]", highlight=False)
