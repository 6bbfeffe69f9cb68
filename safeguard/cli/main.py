"""The ``safeguard`` command: one file a verb, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from safeguard import __version__
from safeguard.cli.output import exit_code, report_error, warnings_on_stderr
from safeguard.errors import SafeguardError

VERBS: dict[str, tuple[str, str]] = {
    "policy": ("safeguard.cli.policy", "Validate, explain, test and compare policy files."),
    "schema": ("safeguard.cli.schema", "Print the JSON Schema of a policy file."),
    "screen": ("safeguard.cli.screen", "Score prompts against a policy's concepts."),
    "audit": ("safeguard.cli.audit", "Verify and query decision logs."),
    "plugins": ("safeguard.cli.plugins", "List the erasers that are installed."),
    "generate": ("safeguard.cli.generate", "Generate images under a policy."),
    "compare": ("safeguard.cli.compare", "Show an image before and after erasure, with the concept's heat map."),
    "calibrate": ("safeguard.cli.calibrate", "Learn by what evidence adaptive concepts open on a pipeline."),
    "train": ("safeguard.cli.train", "Train what an eraser needs on a pipeline."),
    "feedback": ("safeguard.cli.feedback", "Ask people about pictures, and learn from what they say."),
    "doctor": ("safeguard.cli.doctor", "Say how a pipeline would be protected, and what would be refused."),
    "eval": ("safeguard.cli.evaluate", "Measure erasure and retention."),
}


class LazyGroup(TyperGroup):
    """Lists every verb from ``VERBS`` and imports a verb's file only when that verb is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for verb, (_, help_text) in VERBS.items():
            self.commands[verb] = TyperCommand(verb, help=help_text)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        verb, command, rest = super().resolve_command(ctx, args)
        return verb, (load_verb(verb) if verb in VERBS else command), rest

    def invoke(self, ctx: Any) -> Any:
        # Here and not in main(), so that typer's test runner sees the same exit codes as a shell.
        try:
            with warnings_on_stderr():
                return super().invoke(ctx)
        except SafeguardError as error:
            report_error(error)
            raise typer.Exit(exit_code(error)) from error


def load_verb(verb: str) -> Any:
    """The command behind a verb. Raises SafeguardError where its file, or a package that it needs, is not installed."""
    module, help_text = VERBS[verb]
    try:
        verb_app: typer.Typer = importlib.import_module(module).app
    except ModuleNotFoundError as error:
        if error.name == module:
            raise SafeguardError(f"'safeguard {verb}' is not part of this installation") from error
        message = f"'safeguard {verb}' needs the package '{error.name}': install it and try again"
        raise SafeguardError(message) from error
    command = typer.main.get_command(verb_app)
    command.name = verb
    command.help = command.help or help_text
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},  # every verb has them from here
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"safeguard {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Policy-driven safety for text-to-image diffusion pipelines."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0 ok, 1 unexpected, 2 usage, 3 invalid policy, 4 tests failed."""
    command = typer.main.get_command(app)
    command.main(args=list(sys.argv[1:] if args is None else args), prog_name="safeguard")


if __name__ == "__main__":
    main()
