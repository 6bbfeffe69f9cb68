"""The command line of a study that measures one pipeline on some prompts a cell, and prints a table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safeguard.evaluation.harness import quiet_libraries
from safeguard.evaluation.results_files import write_text


def run_study(
    description: str | None,
    measure: Callable[[str, str, int], dict[str, Any]],
    markdown: Callable[[Mapping[str, Any]], str],
    *,
    pipelines: Sequence[str],
    count: int,
) -> None:
    """Read the options, measure, write the results where they are asked for, and print the table and the time that it took.

    Args:
        description: Of the study, for ``--help``.
        measure: Pipeline, split and prompts a cell to results.
        markdown: Results to a table.
        pipelines: That can be measured; the first is the default.
        count: Prompts a cell, where none are asked for.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pipeline", default=pipelines[0], choices=pipelines)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--n", type=int, default=count, help="prompts a cell")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    quiet_libraries()
    begun = time.monotonic()
    data = measure(options.pipeline, options.split, options.n)
    if options.out is not None:
        write_text(options.out, json.dumps(data, indent=1) + "\n")
    print(markdown(data))
    print(f"{time.monotonic() - begun:.0f} s")
