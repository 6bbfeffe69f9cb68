"""What protection costs: ``python -m safeguard.evaluation.bench [--json] [--check] [--out FILE]``.

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
from dataclasses import asdict, dataclass
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
from safeguard.evaluation.metrics import Figure, median
from safeguard.evaluation.studio import load_pipeline, quiet_libraries
from safeguard.policy import Concept, Policy, derive, load_policy

WORDS: Final = ("sword", "knife", "blood", "weapon", "battlefield", "accident", "duel", "robbery", "harbour", "orchard")
SHORT: Final = "a red car on a street in the rain"
LONG: Final = ", ".join(
    ["a quiet morning in an old town with narrow streets, warm light on the walls and people at breakfast"] * 12
)


@dataclass(frozen=True, slots=True)
class Line:
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
    from safeguard.demo.world import COLOURS, SUBJECTS

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
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            memo = {id(value): value for value in (*part.parameters(), *part.buffers())}
            parts[name] = copy.deepcopy(part, memo)
        else:
            parts[name] = copy.deepcopy(part)
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


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of one call, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def scenes(count: int) -> tuple[tuple[str, Policy, Any, float], ...]:
    """What is put in force: title, policy, screener, target of the ratio."""
    one = derive(many(1), name="bench-1")
    return (
        ("none active", derive(many(count), activation="screened"), Silent(), 1.01),
        ("one concept", one, None, 1.02),
        (f"{count} concepts", many(count), None, 1.05),
    )


def overhead(title: str, pipe: Any, call: dict[str, Any], batch: int, count: int, tick: Callable[[], None]) -> list[Line]:
    """Ratio of time and of operations: nothing, one and twenty concepts active."""
    other = twin(pipe)
    prompts = [SHORT] * batch

    def runner(target: Any) -> Callable[[], Any]:
        def run() -> Any:
            generator = [torch.Generator().manual_seed(seed) for seed in range(batch)]
            return target(prompts, generator=generator, output_type="latent", **call)

        return run

    lines = []
    plain_flops = flops(runner(pipe))
    for name, policy, screener, target in scenes(20):
        with safeguard.protect(other, policy, screener=screener):
            figure = pairs(runner(pipe), runner(other), count, tick)
            share = flops(runner(other)) / plain_flops
        lines.append(Line(f"{title}: {name}", figure, "x", target, f"{share:.4f} x"))
    return lines


def sd15(size: int, steps: int = 1, widths: Sequence[int] = (320, 640, 1280, 1280)) -> tuple[Any, dict[str, Any]]:
    """A pipeline with random weights in the shapes of Stable Diffusion 1.5's denoiser (860 M parameters, 3.4 GB), the demo's
    tokenizer, and next to nothing around it. ``size`` is the side of the latent.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from safeguard.demo.models import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    width: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 12}
    text: Any = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=77, **width))
    _read_alike(text, tokenizer)
    unet: Any = UNet2DConditionModel(
        sample_size=size, cross_attention_dim=768, attention_head_dim=8, block_out_channels=tuple(widths)
    )
    vae: Any = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, **_blocks())
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae.eval(), text.eval(), tokenizer, unet.eval(), scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"num_inference_steps": steps, "guidance_scale": 7.5, "height": 8 * size, "width": 8 * size}


def _read_alike(text: Any, tokenizer: Any) -> None:
    """Make the tokens that open and close a text mean the same to a random encoder, as both mean nothing to a trained one.

    Otherwise their difference outweighs every word, no output goes a concept's way, and the self-test finds nothing to do.
    """
    with torch.no_grad():
        words = text.get_input_embeddings().weight
        words[tokenizer.eos_token_id] = words[tokenizer.bos_token_id]
        next(part for name, part in text.named_parameters() if "position_embedding" in name).zero_()


def _blocks() -> dict[str, Any]:
    return {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def swapping(pipe: Any, count: int, tick: Callable[[], None]) -> list[Line]:
    """A swap between two policies of 100 concepts whose texts are encoded: load, compile, self-test, one reference."""
    first = many(100)
    second = derive(first, name="bench-100-b", strength="max")
    found = []
    with safeguard.protect(twin(pipe), first, screener=None) as guard:
        guard.swap(second)
        for place in range(count):
            found.append(1e3 * _seconds(functools.partial(guard.swap, second if place % 2 else first)))
            tick()
    return [Line("swap, 100 concepts", median(found), "ms", 50)]


def screening(count: int, tick: Callable[[], None]) -> list[Line]:
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
            lines.append(Line(f"screening {len(text.split())} words, one core", median(found), "ms", target))
        return lines
    finally:
        torch.set_num_threads(threads)


def bench(pipeline: str, *, count: int, large: int, size: int, tick: Callable[[], None] = lambda: None) -> list[Line]:
    """Every line. ``count``: pairs on the demo pipeline, repetitions elsewhere. ``large``: pairs at SD 1.5 shapes, or 0."""
    from safeguard import demo

    pipe = load_pipeline(pipeline)
    call = {"num_inference_steps": demo.STEPS, "guidance_scale": demo.GUIDANCE}
    lines = overhead("demo, batch 8", pipe, call, 8, count, tick)
    if large:
        big, settings = sd15(size)
        lines += overhead(f"SD 1.5, {size}x{size}", big, settings, 1, large, tick)
        del big
    return [*lines, *swapping(pipe, count, tick), *screening(count, tick)]


def render(lines: Sequence[Line], console: Console) -> None:
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
    parser = argparse.ArgumentParser(prog="python -m safeguard.evaluation.bench", description=__doc__)
    parser.add_argument("--pipeline", default="unet", help="unet, or a folder")
    parser.add_argument("--n", type=int, default=20, help="pairs and repetitions (default 20)")
    parser.add_argument("--large", type=int, default=8, help="pairs at SD 1.5 shapes (default 8); 0 leaves them out")
    parser.add_argument(
        "--size", type=int, default=32, help="side of the latent at SD 1.5 shapes (default 32; 64 is 512 pixels)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"), help="where the figures go")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit 4 where a target is missed")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("timing", total=6 * options.n + 3 * options.large)
            tick = lambda: progress.advance(task)  # noqa: E731
            lines = bench(options.pipeline, count=options.n, large=options.large, size=options.size, tick=tick)
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
