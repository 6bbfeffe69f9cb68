"""``safeguard compare``: an image before and after erasure, with the heat map of every concept, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from safeguard.cli.generate import (
    FileOption,
    GuidanceOption,
    PipelineOption,
    PolicyOption,
    PromptOption,
    SeedOption,
    StepsOption,
    open_pipeline,
    read_prompts,
    save,
    screener_of,
)
from safeguard.cli.output import JsonOption, emit, stderr
from safeguard.errors import SafeguardError
from safeguard.policy import derive, load_policy

if TYPE_CHECKING:
    from safeguard.audit import Decision

app = typer.Typer()


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
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("out/compare.png"),
    screener: Annotated[
        str, typer.Option(help="none (every concept acts on every prompt), or default (what the screener finds).")
    ] = "none",
    json_output: JsonOption = False,
) -> None:
    """Show each prompt's image without and with the policy, and where each concept stood: its share of attention."""
    prompts = read_prompts(prompt, file)
    chosen = load_policy(policy)
    # A refused prompt has no image to show, so that everything is erased here, whatever the policy's action.
    wanted = [name.strip() for name in concepts.split(",") if name.strip()] or list(chosen.concepts)
    shown = derive(chosen, concepts=wanted, action="erase")
    pipe, call = open_pipeline(pipeline, steps, guidance)
    import safeguard
    from safeguard.evaluation.comparing import Pair, comparison

    before = [_paint(pipe, call, text, seed + row) for row, text in enumerate(prompts)]
    pairs: list[Pair] = []
    decisions: list[Decision] = []
    with safeguard.protect(pipe, shown, screener=screener_of(screener)) as guard:
        for row, text in enumerate(prompts):
            with guard.request(maps=True) as request, stderr.status(f"prompt {row + 1}"):
                after = _paint(pipe, call, text, seed + row)
            pairs.append(Pair(text, before[row], after, request.maps[0]))
            decisions.append(request.decisions[0])
    subtitle = f"Policy {chosen.name}, revision {chosen.revision[:12]}, seed {seed}"
    path = save(comparison(pairs, list(shown.concepts), subtitle), out)
    images = [
        {"row": row, "mean_pixel_change": pair.change, "applied": decisions[row].applied} for row, pair in enumerate(pairs)
    ]
    emit({"picture": path, "images": images}, json_output, lambda console: _render(console, path, images))


def _paint(pipe: Any, call: dict[str, Any], text: str, seed: int) -> Any:
    import torch

    image = pipe(text, generator=torch.Generator().manual_seed(seed), **call).images[0]
    if not hasattr(image, "convert"):
        raise SafeguardError("this pipeline gives no pictures that can be shown")
    return image


def _render(console: Console, path: Path, images: Sequence[dict[str, Any]]) -> None:
    for image in images:
        names = ", ".join(one.concept for one in image["applied"]) or "nothing"
        change = image["mean_pixel_change"]
        console.print(
            f"prompt {image['row'] + 1}: erased {names}; pixels changed by {change:.1f} of 255 on average", highlight=False
        )
    console.print(f"picture: {path}", highlight=False, soft_wrap=True)
