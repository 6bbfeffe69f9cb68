"""``safeguard schema``: the JSON Schema of a policy, for editors and for other programs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from safeguard.cli.output import JsonOption
from safeguard.policy.schema import schema_text

app = typer.Typer()


@app.command()
def schema(
    tests: Annotated[bool, typer.Option("--tests", help="The schema of a policy's test file instead.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Print the JSON Schema (draft-07) of a policy file.

    Save it beside your policies and begin each of them with '# yaml-language-server: $schema=policy.schema.json':
    editors then complete and check them.
    """
    sys.stdout.write(schema_text("policy_test" if tests else "policy"))
