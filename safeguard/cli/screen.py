"""``safeguard screen``: score prompts against a policy's concepts. Exit code 0 whatever was found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from safeguard.cli.output import EXIT_UNEXPECTED, EXIT_USAGE, JsonOption, emit, stderr
from safeguard.policy import load_policy

if TYPE_CHECKING:
    from safeguard.screening import Screening

app = typer.Typer()


@app.command()
def screen(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Prompts.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A file with one prompt a line; - is stdin.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="A policy file or builtin://NAME; may be repeated. Default: nsfw and violence."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Another embedding model: a folder, or a name in the local cache.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Score prompts against a policy's concepts.

    A score of 0.5 is what 5 % of harmless texts reach, 0.75 what 1 % reach. JSON names prompts by row, never by text.
    """
    prompts = [*(texts or []), *(_lines(file) if file else [])]
    if not prompts:
        stderr.print("error: nothing to screen; give a TEXT, or --file")
        raise typer.Exit(EXIT_USAGE)
    concepts = {name: concept for source in policy or [] for name, concept in load_policy(source).concepts.items()}

    from safeguard.screening import Screener  # after the policy is known to be sound: this one costs a second

    screening = Screener(model).screen(prompts, concepts if policy else None)
    emit(_data(screening, prompts), json_output, lambda console: _render(screening, prompts, console))


def _lines(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        stderr.print(f"error: {escape(str(file))}: cannot be read ({error.strerror})", highlight=False)
        raise typer.Exit(EXIT_UNEXPECTED) from error
    return [line for line in text.splitlines() if line.strip()]


def _data(screening: Screening, prompts: list[str]) -> dict[str, Any]:
    unsafe = [] if screening.unsafe is None else screening.unsafe.tolist()
    return {
        "encoder": screening.encoder,
        "thresholds": {
            name: {"low": low, "high": high}
            for name, low, high in zip(screening.concepts, screening.low, screening.high, strict=True)
        },
        "prompts": [
            {
                "index": row,
                "chars": len(prompt),
                "unsafe": anything,
                "scores": dict(zip(screening.concepts, screening.scores[row].tolist(), strict=True)),
                "activated": screening.activated(row),
                "severe": screening.severe(row),
                "unread": row in screening.unread,
            }
            for row, (prompt, anything) in enumerate(zip(prompts, unsafe, strict=True))
        ],
    }


def _render(screening: Screening, prompts: list[str], console: Console) -> None:
    for row, prompt in enumerate(prompts):
        table = Table(
            "concept", "score", "low", "high", "verdict", title=_shown(prompt), title_justify="left", title_style="bold"
        )
        activated, severe = screening.activated(row), screening.severe(row)
        for column, name in enumerate(screening.concepts):
            verdict = "[red]severe[/red]" if name in severe else "[yellow]activated[/yellow]" if name in activated else ""
            low, high = f"{screening.low[column]:.2f}", f"{screening.high[column]:.2f}"
            table.add_row(escape(name), f"{screening.scores[row, column]:.2f}", low, high, verdict)
        console.print(table)
        if row in screening.unread:
            console.print("[yellow]too long to be read whole: every concept counts as found[/yellow]")
    console.print(f"encoder {screening.encoder}", style="dim", highlight=False)


def _shown(prompt: str) -> str:
    """As typed, cut to a line; characters that would steer the terminal are left out."""
    line = "".join(character for character in prompt if character.isprintable())
    return escape(line if len(line) <= 70 else f"{line[:69]}…")
