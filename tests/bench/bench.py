"""What protection costs: ``python -m tests.bench.bench [--json] [--check] [--out FILE]``.

Calls are timed in pairs, unprotected and protected in turn, on two pipelines that share their weights: what the machine does
meanwhile meets both alike. A ratio is the median over the pairs, with the 95 % interval of order statistics.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import safeguard
from safeguard.errors import SafeguardError
from safeguard.evaluation.harness import quiet_libraries
from safeguard.evaluation.pipeline_sources import load_pipeline
from safeguard.evaluation.statistics import Figure, median
from safeguard.instrument.self_test import flops
from safeguard.plan.calibration import Calibration
from safeguard.plan.detectors import FIRST
from safeguard.policy import Concept, Policy, derive, load_policy
from tests.bench.bench_models import SHAPES

WORDS: Final = ("sword", "knife", "blood", "weapon", "battlefield", "accident", "duel", "robbery", "harbour", "orchard")
SHORT: Final = "a red car on a street in the rain"
LONG: Final = ", ".join(
    ["a quiet morning in an old town with narrow streets, warm light on the walls and people at breakfast"] * 12
)


@dataclass(frozen=True, slots=True)
class BenchLine:
    """One measurement: ``figure`` in ``unit``, the ``target`` it must not exceed; ``extra``: the ratio of operations."""

    what: str
    figure: Figure
    unit: str
    target: float | None = None
    extra: str = ""

    @property
    def met(self) -> bool | None:
        """A ratio is missed only where the whole interval lies above its target: below that it is noise."""
        if self.target is None:
            return None
        return (self.figure.low if self.unit == "x" else self.figure.value) <= self.target

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


class Silent:
    """A screener that finds nothing, so that hooks and plan are there and no concept is active."""

    name = "finds nothing"

    def screen(self, texts: Sequence[str], concepts: Any = None) -> Any:
        from safeguard.screening import Screening

        names = tuple(concepts)
        scores = np.zeros((len(texts), len(names)), dtype=np.float32)
        return Screening("none", names, scores, (0.5,) * len(names), (0.75,) * len(names))


def many(count: int, eraser: str = "eiup", activation: str = "always") -> Policy:
    """A policy of ``count`` different concepts, in words that the demo's tokenizer knows."""
    from safeguard_demo.world import COLOURS, SUBJECTS

    phrases = [*WORDS, *(f"{colour} {subject}" for colour in COLOURS for subject in SUBJECTS)]
    phrases += [f"{first} and {second}" for first in WORDS for second in WORDS if first != second]
    concepts = [
        Concept(f"concept-{place}", (phrase,), eraser=eraser, activation=activation)
        for place, phrase in enumerate(phrases[:count])
    ]
    return derive(load_policy("builtin://demo"), name=f"bench-{count}", concepts=concepts)


def twin(pipe: Any) -> Any:
    """A second pipeline on the same weights: what is hooked on one is not on the other, and no memory is added."""
    parts = {}
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            memo = {id(value): value for value in (*component.parameters(), *component.buffers())}
            parts[name] = copy.deepcopy(component, memo)
        else:
            parts[name] = copy.deepcopy(component)
    optional = {"requires_safety_checker": False} if "requires_safety_checker" in pipe.config else {}
    made = type(pipe)(**parts, **optional)
    made.set_progress_bar_config(disable=True)
    return made


def pairs(plain: Callable[[], Any], guarded: Callable[[], Any], count: int, tick: Callable[[], None]) -> Figure:
    """Time of ``guarded`` against ``plain``, in turn, which of them is first alternating too."""
    plain(), guarded()
    ratios = []
    for place in range(count):
        first, second = (plain, guarded) if place % 2 else (guarded, plain)
        one, other = _seconds(first), _seconds(second)
        ratios.append(other / one if first is plain else one / other)
        tick()
    return median(ratios)


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def never(pipe: Any, policy: Policy, call: dict[str, Any]) -> Calibration:
    """A calibration by which the adaptive concepts of ``policy`` are looked for, and none is ever seen."""
    blank = Calibration.blank(policy.concepts.values(), 0.0, policy.revision)
    with safeguard.protect(pipe, policy, screener=None, calibration=blank) as guard:
        (shown,) = guard.look([SHORT], **call)
    deaf = {name: replace(gauge, weights=(0.0,) * len(shown[FIRST][0])) for name, gauge in blank.gauges.items()}
    return replace(blank, gauges=deaf)


def scenes() -> tuple[tuple[str, Policy, Any, float], ...]:
    """What is put in force: title, policy, screener, target of the ratio."""
    one = derive(many(1), name="bench-1")
    return (
        ("none active", derive(many(20), activation="screened"), Silent(), 1.01),
        ("one concept", one, None, 1.02),
        ("20 concepts", many(20), None, 1.05),
        ("watching for 5", many(5, activation="adaptive"), None, 1.02),
        ("watching for 20", many(20, activation="adaptive"), None, 1.05),
        ("watching for 100", many(100, activation="adaptive"), None, 1.20),
    )


def overhead(title: str, pipe: Any, call: dict[str, Any], batch: int, count: int, tick: Callable[[], None]) -> list[BenchLine]:
    """Ratio of time and of operations: nothing, one and twenty concepts active; and watched for, of which nothing is seen."""
    other = twin(pipe)
    prompts = [SHORT] * batch

    def runner(target: Any) -> Callable[[], Any]:
        def run() -> Any:
            generator = [torch.Generator().manual_seed(seed) for seed in range(batch)]
            return target(prompts, generator=generator, output_type="latent", **call)

        return run

    lines = []
    plain_flops = flops(runner(pipe))
    for name, policy, screener, target in scenes():
        watched = next(iter(policy.concepts.values())).activation == "adaptive"
        calibration = never(other, policy, call) if watched else None
        with safeguard.protect(other, policy, screener=screener, calibration=calibration):
            figure = pairs(runner(pipe), runner(other), count, tick)
            share = flops(runner(other)) / plain_flops
        lines.append(BenchLine(f"{title}: {name}", figure, "x", target, f"{share:.4f} x"))
    return lines


def swapping(pipe: Any, count: int, tick: Callable[[], None]) -> list[BenchLine]:
    """A swap between two policies of 100 concepts whose texts are encoded: load, compile, self-test, one reference."""
    first = many(100)
    second = derive(first, name="bench-100-b", strength="max")
    found = []
    with safeguard.protect(twin(pipe), first, screener=None) as guard:
        guard.swap(second)
        for place in range(count):
            found.append(1e3 * _seconds(functools.partial(guard.swap, second if place % 2 else first)))
            tick()
    return [BenchLine("swap, 100 concepts", median(found), "ms", 50)]


def screening(count: int, tick: Callable[[], None]) -> list[BenchLine]:
    """One prompt screened on one core, against the five concepts of the demo policy."""
    from safeguard.screening import Screener

    concepts = load_policy("builtin://demo").concepts
    screener = Screener()
    screener.prepare(concepts)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lines = []
        for text, target in ((SHORT, 15), (LONG, 40)):
            screener.screen([text], concepts)
            found = []
            for place in range(count):  # another text every time, since what was encoded once is kept
                found.append(1e3 * _seconds(functools.partial(screener.screen, [f"{text}, number {place}"], concepts)))
                tick()
            lines.append(BenchLine(f"screening {len(text.split())} words, one core", median(found), "ms", target))
        return lines
    finally:
        torch.set_num_threads(threads)


def bench(
    pipelines: Sequence[str],
    *,
    count: int,
    shapes: Sequence[str] = (),
    large: int = 1,
    size: int = 32,
    tick: Callable[[], None] = lambda: None,
) -> list[BenchLine]:
    """Every line. ``count``: pairs on each pipeline, and repetitions of what is no pair. ``shapes``: keys of `SHAPES`, timed in
    ``large`` pairs at latents of ``size``.
    """
    import safeguard_demo

    lines = []
    for name in pipelines:
        pipe = load_pipeline(name)
        call = {
            "num_inference_steps": safeguard_demo.STEPS,
            "guidance_scale": safeguard_demo.GUIDANCE,
            **safeguard_demo.call_options(pipe),
        }
        lines += overhead(f"{name}, batch 8", pipe, call, 8, count, tick)
    for name in shapes:
        big, settings = SHAPES[name].made(size)
        lines += overhead(f"{SHAPES[name].title}, {size}x{size}", big, settings, 1, large, tick)
        del big
    return [*lines, *swapping(load_pipeline(pipelines[0]), count, tick), *screening(count, tick)]


def render(lines: Sequence[BenchLine], console: Console) -> None:
    table = Table("", "median", "95 % interval", "target", "", "operations", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for line in lines:
        figure, digits = line.figure, 3 if line.unit == "x" else 1
        ends = f"{figure.low:.{digits}f}-{figure.high:.{digits}f}"
        target = "" if line.target is None else f"{line.target:g}"
        met = {None: "", True: "[green]met[/green]", False: "[red]MISSED[/red]"}[line.met]
        table.add_row(line.what, f"{figure.value:.{digits}f} {line.unit}", ends, target, met, line.extra)
    console.print(table)
    console.print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}", style="dim")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench", description=__doc__)
    parser.add_argument("--pipelines", default="unet,mmdit", help="unet, mmdit, or folders (default: both)")
    parser.add_argument("--n", type=int, default=20, help="pairs and repetitions (default 20)")
    parser.add_argument(
        "--shapes", default="sd15", help=f"of {', '.join(SHAPES)} (default sd15; the others take 5 to 11 GB); may be empty"
    )
    parser.add_argument("--large", type=int, default=8, help="pairs at each of the shapes (default 8)")
    parser.add_argument("--size", type=int, default=32, help="side of the latent there (default 32; 64 is 512 pixels)")
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"), help="where the figures go")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit 4 where a target is missed")
    options = parser.parse_args(arguments)
    pipelines, shapes = (text.split(",") if text else [] for text in (options.pipelines, options.shapes))
    unknown = [name for name in shapes if name not in SHAPES]
    if unknown or not pipelines:
        parser.error(f"no shapes {unknown[0]!r}; there are {', '.join(SHAPES)}" if unknown else "name at least one pipeline")
    quiet_libraries()
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            each = len(scenes())
            total = options.n * (3 + each * len(pipelines)) + options.large * each * len(shapes)
            task = progress.add_task("timing", total=total)
            tick = lambda: progress.advance(task)  # noqa: E731
            lines = bench(pipelines, count=options.n, shapes=shapes, large=options.large, size=options.size, tick=tick)
    except SafeguardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    data = {"machine": platform.machine(), "threads": torch.get_num_threads(), "lines": [line.to_dict() for line in lines]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(data, indent=2))
    else:
        render(lines, Console())
    return 4 if options.check and any(line.met is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
