"""``safeguard generate``: make images under a policy, and say of each what was decided."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safeguard._io import write_whole
from safeguard.cli.output import EXIT_UNEXPECTED, EXIT_USAGE, JsonOption, emit, stderr
from safeguard.errors import PolicyViolation, SafeguardError
from safeguard.policy import load_policy

if TYPE_CHECKING:
    from safeguard.audit import Decision
    from safeguard.guard import Guard

app = typer.Typer()

PipelineOption = Annotated[
    str, typer.Option(help="A registered pipeline, such as unet of the demo, or a folder with a diffusers pipeline.")
]
PolicyOption = Annotated[str, typer.Option("--policy", "-p", help="A policy file, or builtin://NAME.")]
PromptOption = Annotated[list[str] | None, typer.Option("--prompt", help="May be repeated.", show_default=False)]
FileOption = Annotated[Path | None, typer.Option("--file", "-f", help="A file with one prompt a line; - is stdin.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the first prompt; the next ones count on.")]
StepsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Sampling steps. Default: the usual ones of a registered pipeline, or the pipeline class's own."),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(help="Guidance scale. Default: the usual ones of a registered pipeline, or the pipeline class's own."),
]
WordOption = Annotated[
    list[Path] | None,
    typer.Option("--word", help="The file of a learned word, to be loaded first; may be repeated.", show_default=False),
]
AuditOption = Annotated[Path | None, typer.Option(help="Folder of the audit log. Default: none is kept.")]
CalibrationOption = Annotated[
    str,
    typer.Option(
        help="A file of safeguard calibrate, or none. Default: what comes with a registered pipeline, none for a folder."
    ),
]
ScreenerOption = Annotated[
    str, typer.Option(help="default, or none: then concepts act on every prompt, or go by evidence where calibrated.")
]


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one prompt: ``image`` is where it lies, or None where it was refused, and ``reason`` says why."""

    row: int
    seed: int
    result: str
    image: Path | None
    reason: str
    decision: Decision | None


@app.command()
def generate(
    pipeline: PipelineOption = "unet",
    policy: PolicyOption = "builtin://demo",
    prompt: PromptOption = None,
    file: FileOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    word: WordOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("out/images"),
    audit: AuditOption = None,
    screener: ScreenerOption = "default",
    calibration: CalibrationOption = "default",
    json_output: JsonOption = False,
) -> None:
    """Make an image a prompt, and say what was decided. Exit 1 where a prompt is refused; the others are made.

    JSON names prompts by row, never by text.
    """
    prompts = read_prompts(prompt, file)
    chosen = load_policy(policy)  # before the pipeline is loaded, which takes seconds
    pipe, call = open_pipeline(pipeline, steps, guidance, word)
    import safeguard
    from safeguard.evaluation.pipeline_sources import calibration_of

    gauged = calibration_of(calibration, pipeline)
    with safeguard.protect(pipe, chosen, audit=audit, screener=screener_of(screener), calibration=gauged) as guard:
        results = [_make(guard, pipe, call, text, row, seed + row, out) for row, text in enumerate(prompts)]
        revision = guard.policy.revision
    data = {
        "policy": {"name": chosen.name, "revision": revision},
        "audit": audit,
        "images": [_data(result) for result in results],
    }
    emit(data, json_output, lambda console: _render(results, chosen.name, revision, audit, console))
    refused = [result for result in results if result.image is None]
    for result in refused:
        stderr.print(Text.assemble(("refused: ", "bold red"), f"prompt {result.row + 1}: {result.reason}"), soft_wrap=True)
    if refused:
        raise typer.Exit(EXIT_UNEXPECTED)


def _make(guard: Guard, pipe: Any, call: dict[str, Any], text: str, row: int, seed: int, out: Path) -> Made:
    import torch

    with guard.request(request_id=f"generate-{row}") as request:
        try:
            with stderr.status(f"prompt {row + 1}"):
                image = pipe(text, generator=torch.Generator().manual_seed(seed), **call).images[0]
        except PolicyViolation as refusal:
            decision = request.decisions[-1] if request.decisions else None
            return Made(row, seed, "block", None, str(refusal), decision)
    decision = request.decisions[-1]
    return Made(row, seed, decision.result, save(image, out / f"{row:03d}-seed{seed}.png"), "", decision)


def save(image: Any, path: Path) -> Path:
    """Writes it whole or not at all, as its suffix says, else as PNG. Raises SafeguardError where it cannot be written."""
    from PIL import Image

    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions().get(path.suffix.lower(), "PNG"))
    try:
        write_whole(path, buffer.getvalue())
    except OSError as fault:
        raise SafeguardError(f"{path}: cannot be written ({fault.strerror}); choose another --out") from fault
    return path


def read_prompts(prompts: Sequence[str] | None, file: Path | None) -> list[str]:
    """Prompts of the command line and of a file. Ends the command where there are none."""
    lines = list(prompts or [])
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8", errors="replace")
        except OSError as fault:
            raise SafeguardError(f"{file}: cannot be read ({fault.strerror})") from fault
        lines += [line for line in text.splitlines() if line.strip()]
    if not lines:
        stderr.print("error: nothing to make; give --prompt, or --file")
        raise typer.Exit(EXIT_USAGE)
    return lines


def open_pipeline(
    place: str, steps: int | None, guidance: float | None, words: Sequence[Path] | None = None
) -> tuple[Any, dict[str, Any]]:
    """The pipeline, which knows these words, and the arguments that every call of it gets. Raises AssetError where there is
    none, and what `load_words` raises.
    """
    from safeguard.evaluation.harness import quiet_libraries
    from safeguard.evaluation.pipeline_sources import pipeline_source

    source = pipeline_source(place)
    quiet_libraries()
    pipe = source.load()
    pipe.set_progress_bar_config(disable=True)
    load_words(pipe, words)
    usual = {
        "num_inference_steps": steps or source.steps,
        "guidance_scale": source.guidance if guidance is None else guidance,
    }
    return pipe, {**source.call_options(pipe), **{name: value for name, value in usual.items() if value is not None}}


def load_words(pipe: Any, files: Sequence[Path] | None) -> None:
    """Teach a pipeline learned words. Raises CapabilityError for a file that is none, or does not fit."""
    if files:
        from safeguard.training.textual_inversion import LearnedWord

        for file in files:
            LearnedWord.load(file).into(pipe)


def screener_of(word: str) -> str | None:
    if word not in ("default", "none"):
        raise typer.BadParameter("--screener is default or none")
    return None if word == "none" else word


def _data(result: Made) -> dict[str, Any]:
    decision = result.decision
    return {
        "row": result.row,
        "seed": result.seed,
        "result": result.result,
        "image": result.image,
        "reason": result.reason or None,
        "decision_id": decision and decision.decision_id,
        "activated": () if decision is None else decision.screen.activated,
        "scores": {} if decision is None else dict(decision.screen.scores),
        "evidence": {} if decision is None else dict(decision.evidence.concepts),
        "applied": () if decision is None else decision.applied,
        "image_sha256": decision.output.image_sha256 if decision is not None and decision.output is not None else None,
    }


def _render(results: Sequence[Made], name: str, revision: str, audit: Path | None, console: Console) -> None:
    table = Table("prompt", "seed", "result", "erased", "image", box=box.SIMPLE_HEAD, pad_edge=False)
    styles = {"erase": "yellow", "block": "red", "flag": "magenta", "review": "cyan", "pass": "green"}
    for result in results:
        erased = ", ".join(_effect(part) for part in result.decision.applied) if result.decision else ""
        path = Text(str(result.image), overflow="fold") if result.image else Text("none: refused", style="red")
        table.add_row(
            str(result.row + 1), str(result.seed), Text(result.result, style=styles.get(result.result, "")), Text(erased), path
        )
    console.print(table)
    console.print(f"policy {name}, revision {revision[:12]}", style="dim", highlight=False)
    if audit is not None:
        console.print(f"audit log: {audit}", style="dim", highlight=False)


def _effect(applied: Any) -> str:
    change = applied.effect.relative_change
    return applied.concept if change is None else f"{applied.concept} ({100 * change:.1f} % changed)"
