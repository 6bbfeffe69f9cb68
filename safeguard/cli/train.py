"""``safeguard train``: give an eraser what its method has to learn on a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from safeguard.cli.evaluate import BatchOption, JudgeOption
from safeguard.cli.output import JsonOption, emit, progress_bar
from safeguard.errors import SafeguardError

if TYPE_CHECKING:
    from safeguard.erasing import Adapter

app = typer.Typer()


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="An eraser that is trained: gie.")],
    out: Annotated[Path, typer.Option(help="The file to write. Name it in the policy: params: {adapter: FILE}.")],
    concept: Annotated[
        list[str] | None, typer.Option(help="A concept of the policy; may be repeated. Default: all.", show_default=False)
    ] = None,
    pipeline: Annotated[str, typer.Option(help="unet, mmdit, or a folder with a pipeline trained on the demo world.")] = "unet",
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="What the concepts' phrases are: a file, or builtin://NAME.")
    ] = ("builtin://demo"),
    count: Annotated[int, typer.Option("--n", min=1, help="Prompts of each kind and concept, of the train split.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, noise and fit.")] = 0,
    batch: BatchOption = 20,
    judge: JudgeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Paint prompts with the concepts and without at several scales, let the demo's judge say where each concept is gone, and
    learn from that. The file is bound to the pipeline.
    """
    from safeguard.evaluation.studio import open_studio, quiet_libraries
    from safeguard.policy import derive, load_policy
    from safeguard.training import Task, train

    whole = load_policy(policy)
    chosen = whole if concept is None else derive(whole, concepts=concept)
    quiet_libraries()
    studio = open_studio(pipeline, judge, calibration="none")
    with progress_bar() as progress:
        bar = progress.add_task("pictures", total=None)

        def advance(what: str, pictures: int) -> None:
            progress.update(bar, description=what, advance=pictures)

        made = train(method, Task(studio, chosen, count, seed, batch, advance))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made.save(out)
    except OSError as fault:
        raise SafeguardError(f"{out}: cannot be written ({fault.strerror}); choose another --out") from fault
    data = {"file": out, "digest": made.digest, "settings": made.settings, "report": made.report}
    emit(data, json_output, lambda console: _render(console, made, out))


def _render(console: Console, made: Adapter, path: Path) -> None:
    for name, value in made.report.items():
        console.print(f"{name.replace('_', ' ')}: {value:g}", highlight=False)
    console.print("figures on pictures left out of the fit, token by token", style="dim")
    console.print(f"adapter: {path}, digest {made.digest[:12]}", highlight=False, soft_wrap=True)
