"""What training took, from the lines that ``safeguard train --log`` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from safeguard.errors import SafeguardError


def training_seconds(file: Path, pipeline: str, concepts: Collection[str]) -> dict[str, float]:
    """By method the processor seconds that one of these concepts took on this pipeline, in the mean; what several took together
    is shared among them, and lines of others are passed over. Raises SafeguardError for a file that cannot be read, and for a
    line that says something else.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise SafeguardError(f"{file}: cannot be read ({fault})") from fault
    taken: dict[str, tuple[float, int]] = {}
    for number, line in enumerate(lines, 1):
        try:
            method, where, names, seconds = _read(json.loads(line))
        except (ValueError, KeyError, TypeError) as fault:
            raise SafeguardError(f"{file}:{number}: this is no line of safeguard train --log ({fault})") from fault
        if where == pipeline and set(names) <= set(concepts):
            before, count = taken.get(method, (0.0, 0))
            taken[method] = before + seconds, count + len(names)
    return {method: seconds / count for method, (seconds, count) in taken.items()}


def _read(data: Any) -> tuple[str, str, Sequence[str], float]:
    method, pipeline, concepts = data["method"], data["pipeline"], data["concepts"]
    seconds = float(data["cpu_seconds"])
    if not isinstance(method, str) or not isinstance(pipeline, str):
        raise ValueError("method and pipeline are names")
    if not isinstance(concepts, list) or not concepts:
        raise ValueError("concepts are a list of names")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("cpu_seconds are a number of seconds")
    return method, pipeline, concepts, seconds
