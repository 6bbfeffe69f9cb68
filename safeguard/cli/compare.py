"""``safeguard compare``: an image before and after erasure, where every concept stood and how it went, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from safeguard.cli.generate import (
    CalibrationOption,
    FileOption,
    GuidanceOption,
    PipelineOption,
    PolicyOption,
    PromptOption,
    SeedOption,
    StepsOption,
    WordOption,
    open_pipeline,
    read_prompts,
    save,
    screener_of,
)
from safeguard.cli.output import JsonOption, emit, stderr
from safeguard.errors import SafeguardError
from safeguard.policy import Policy, derive, load_policy

if TYPE_CHECKING:
    from safeguard.audit import Decision
    from safeguard.guard import Request

app = typer.Typer()

FAINT = 0.01  # a strength that changes next to nothing


@app.command()
def compare(
    pipeline: PipelineOption = "unet",
    policy: PolicyOption = "builtin://demo",
    prompt: PromptOption = None,
    file: FileOption = None,
    concepts: Annotated[str, typer.Option(help="Only these concepts of the policy, separated by commas.")] = "",
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    word: WordOption = None,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("out/compare.png"),
    screener: Annotated[str, typer.Option(help="none, or default (what the screener finds).")] = "none",
    calibration: CalibrationOption = "default",
    json_output: JsonOption = False,
) -> None:
    """Show each prompt's image without and with the policy, where each concept stood, and its share of attention from step to
    step. Without a screener and a calibration every concept acts on every prompt.
    """
    prompts = read_prompts(prompt, file)
    chosen = load_policy(policy)
    # A refused prompt has no image to show, so that everything is erased here, whatever the policy's action.
    wanted = [name.strip() for name in concepts.split(",") if name.strip()] or list(chosen.concepts)
    shown = derive(chosen, concepts=wanted, action="erase")
    pipe, call = open_pipeline(pipeline, steps, guidance, word)
    from safeguard.evaluation.comparison import ImagePair, comparison
    from safeguard.evaluation.pipeline_sources import calibration_of

    before = [_paint(pipe, call, text, seed + row) for row, text in enumerate(prompts)]
    # All but unprotected: what each concept's share of attention is where nothing is taken from it.
    faint = derive(shown, strength=FAINT, activation="always")
    unprotected, _ = _requests(pipe, call, prompts, seed, faint, None, None)
    gauged = calibration_of(calibration, pipeline)
    protected, after = _requests(pipe, call, prompts, seed, shown, screener_of(screener), gauged)
    decisions = [request.decisions[0] for request in protected]
    pairs = [
        ImagePair(
            text,
            before[row],
            after[row],
            unprotected[row].maps[0],
            _courses(unprotected[row], protected[row]),
            _notes(decisions[row]),
        )
        for row, text in enumerate(prompts)
    ]
    subtitle = (
        f"Policy {chosen.name}, revision {chosen.revision[:12]}, seed {seed}. Below each map: the concept's share of attention "
        "from step to step, without the policy (grey) and with it (red)"
    )
    path = save(comparison(pairs, list(shown.concepts), subtitle), out)
    images = [
        {
            "row": row,
            "mean_pixel_change": pair.change,
            "applied": decisions[row].applied,
            "evidence": dict(decisions[row].evidence.concepts),
            "unprotected": {name: without for name, (without, _) in pair.courses.items()},
        }
        for row, pair in enumerate(pairs)
    ]
    emit({"picture": path, "images": images}, json_output, lambda console: _render(console, path, images))


def _requests(
    pipe: Any,
    call: dict[str, Any],
    prompts: Sequence[str],
    seed: int,
    policy: Policy,
    screener: str | None,
    calibration: Path | None,
) -> tuple[list[Request], list[Any]]:
    """Every prompt's image under a policy, with its request."""
    import safeguard

    requests, images = [], []
    with safeguard.protect(pipe, policy, screener=screener, calibration=calibration) as guard:
        for row, text in enumerate(prompts):
            with guard.request(maps=True) as request, stderr.status(f"prompt {row + 1}, policy {policy.name}"):
                images.append(_paint(pipe, call, text, seed + row))
            requests.append(request)
    return requests, images


def _courses(without: Request, protected: Request) -> dict[str, tuple[Any, Any]]:
    """Each concept's share of attention from step to step, without and with the policy: nothing where it was not erased."""
    acted = {applied.concept: applied.effect.course for applied in protected.decisions[0].applied}
    bare = {applied.concept: applied.effect.course for applied in without.decisions[0].applied}
    return {name: (line, acted.get(name, ())) for name, line in bare.items() if line}


def _notes(decision: Decision) -> dict[str, str]:
    """What evidence said of each concept that it was asked about."""
    return {
        name: f"{name}: {'opened' if seen.opened else 'not opened'}, {seen.score:.2f} of {seen.threshold:.2f}"
        for name, seen in decision.evidence.concepts.items()
    }


def _paint(pipe: Any, call: dict[str, Any], text: str, seed: int) -> Any:
    import torch

    image = pipe(text, generator=torch.Generator().manual_seed(seed), **call).images[0]
    if not hasattr(image, "convert"):
        raise SafeguardError("this pipeline gives no pictures that can be shown")
    return image


def _render(console: Console, path: Path, images: Sequence[dict[str, Any]]) -> None:
    for image in images:
        names = ", ".join(effect.concept for effect in image["applied"]) or "nothing"
        change = image["mean_pixel_change"]
        console.print(
            f"prompt {image['row'] + 1}: erased {names}; pixels changed by {change:.1f} of 255 on average", highlight=False
        )
    console.print(f"picture: {path}", highlight=False, soft_wrap=True)
