"""One version of the project, timed call by call: ``python version_worker.py CHECKOUT PIPELINE``; see `tests.bench.versions`.

It reads the name of a scene a line, and answers each with the seconds of one call. It runs in older checkouts as well, so it
imports only what all of them have.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import torch  # noqa: E402

import safeguard  # noqa: E402
from safeguard.policy import Concept, Policy, derive, load_policy  # noqa: E402

WORDS = (
    "sword",
    "knife",
    "blood",
    "weapon",
    "battlefield",
    "accident",
    "duel",
    "robbery",
    "harbour",
    "orchard",
    "tree",
    "boat",
)
BATCH = 4


def load(kind: str) -> Any:
    """A demo pipeline, where this version has it."""
    try:
        from safeguard.evaluation.pipeline_sources import load_pipeline
    except ImportError:
        from safeguard.evaluation.studio import load_pipeline  # type: ignore[import-not-found,no-redef]
    return load_pipeline(kind)


def policy(count: int, name: str) -> Policy:
    """``count`` concepts that are always on, one phrase each."""
    phrases = [*WORDS, *(f"{first} and {second}" for first in WORDS for second in WORDS if first != second)][:count]
    concepts = [Concept(f"concept-{place}", (phrase,), activation="always") for place, phrase in enumerate(phrases)]
    return derive(load_policy("builtin://demo"), name=name, concepts=concepts)


def scene(kind: str, name: str) -> Callable[[], Any]:
    """What one call of a scene does."""
    pipe = load(kind)
    count = {"one concept": 1, "5 concepts": 5, "20 concepts": 20, "swap of 100 concepts": 100}.get(name, 0)
    guard = safeguard.protect(pipe, policy(count, "bench"), screener=None) if count else None
    if name.startswith("swap"):
        both = Turns(policy(count, "bench-a"), policy(count, "bench-b"))
        return lambda: guard.swap(next(both))

    def paint() -> Any:
        generator = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
        prompts = ["a red car on a street in the rain"] * BATCH
        return pipe(prompts, num_inference_steps=6, guidance_scale=3.0, output_type="latent", generator=generator)

    return paint


class Turns:
    """Two policies, in turn for ever."""

    def __init__(self, *policies: Policy) -> None:
        self._policies, self._turn = policies, 0

    def __iter__(self) -> Iterator[Policy]:
        return self

    def __next__(self) -> Policy:
        self._turn += 1
        return self._policies[self._turn % len(self._policies)]


def main() -> None:
    checkout, kind = sys.argv[1:]
    if not Path(safeguard.__file__).is_relative_to(Path(checkout).resolve()):
        raise SystemExit(f"safeguard was imported from {Path(safeguard.__file__).parent}, not from {checkout}")
    torch.set_num_threads(2)
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name, output = line.strip(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if name not in calls:
                calls[name] = scene(kind, name)
                calls[name]()
            start = time.perf_counter()
            calls[name]()
            seconds = time.perf_counter() - start
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
