"""``safeguard plugins``: which erasers are installed, and which of them cannot be used."""

from __future__ import annotations

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safeguard.cli.output import EXIT_UNEXPECTED, JsonOption, emit
from safeguard.plan.registry import PluginInfo, Registry

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _root() -> None:
    """List the erasers that are installed."""


@app.command("list")
def list_plugins(json_output: JsonOption = False) -> None:
    """List every registered eraser. Exit 1 where one cannot be used; what to do stands beside it."""
    plugins = Registry().inventory()
    emit({"erasers": plugins}, json_output, lambda console: _render(plugins, console))
    if any(info.error for info in plugins):
        raise typer.Exit(EXIT_UNEXPECTED)


def _render(plugins: list[PluginInfo], console: Console) -> None:
    table = Table("eraser", "version", "from", "seams", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for info in plugins:
        state = Text(info.error, style="red") if info.error else Text("ready", style="green")
        table.add_row(Text(info.name), info.version, Text(info.distribution), ", ".join(info.seams), state)
    console.print(table)
    if not plugins:
        console.print("no erasers are installed; reinstall safeguard-diffusion")
