"""The ``safeguard`` command: one file a verb, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys

import click
import typer
from typer.core import TyperGroup

from safeguard.errors import PolicyError, SafeguardError
from safeguard.cli.output import EXIT_INVALID, EXIT_UNEXPECTED, report_error

VERBS: dict[str, tuple[str, str]] = {
    "policy": ("safeguard.cli.policy", "Validate, explain, test and compare policy files."),
    "schema": ("safeguard.cli.schema", "Print the JSON Schema of a policy file."),
    "screen": ("safeguard.cli.screen", "Score prompts against a policy's concepts."),
    "audit": ("safeguard.cli.audit", "Verify and query decision logs."),
    "plugins": ("safeguard.cli.plugins", "List the erasers that are installed."),
    "generate": ("safeguard.cli.generate", "Generate images under a policy."),
    "compare": ("safeguard.cli.compare", "Show an image before and after erasure, with the concept's heat map."),
    "doctor": ("safeguard.cli.doctor", "Say how a pipeline would be protected, and what would be refused."),
    "eval": ("safeguard.cli.evaluate", "Measure erasure and retention."),
}
