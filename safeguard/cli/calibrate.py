"""``safeguard calibrate``: learn by what evidence the adaptive concepts of a policy open on a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from safeguard.cli.generate import GuidanceOption, StepsOption, WordOption, open_pipeline, read_prompts
from safeguard.cli.output import JsonOption, emit, progress_bar
from safeguard.errors import SafeguardError
from safeguard.policy import load_policy

if TYPE_CHECKING:
    from safeguard.plan.calibration import Calibration

app = typer.Typer()
ORDINARY_PROMPTS = 200


@app.command()
def calibrate(
    pipeline: Annotated[
        str,
        typer.Argument(help="A registered pipeline, such as unet or mmdit of the demo, or a folder with a diffusers pipeline."),
    ],
    policy: Annotated[str, typer.Argument(help="A policy file, or builtin://NAME.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Ordinary prompts of your users, one a line. Default: those of the pipeline, or prompts shipped here."
        ),
    ] = None,
    rate: Annotated[float, typer.Option(help="Share of ordinary prompts that may open a concept.")] = 0.001,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    word: WordOption = None,
    residual: Annotated[
        int,
        typer.Option(min=0, help="Run so many of the prompts to their last step, so that records say what is left; 0: none."),
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts looked at at once.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the first prompt's noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("out/calibration.json"),
    json_output: JsonOption = False,
) -> None:
    """Look at ordinary prompts, with each concept's phrases beside them and without, and write what tells them apart.

    No labels and no images are needed: only the first step is run. Give the file to protect(..., calibration=).
    """
    chosen = load_policy(policy)
    texts = read_prompts(None, prompts) if prompts is not None else _ordinary(pipeline)
    pipe, call = open_pipeline(pipeline, steps, guidance, word)
    import safeguard

    with progress_bar() as progress:
        task = progress.add_task("prompts", total=None)

        def advance(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)

        how: dict[str, Any] = {"rate": rate, "residual": residual, "seed": seed, "batch": batch}
        calibration = safeguard.calibrate(pipe, chosen, texts, **how, call=call, advance=advance)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        calibration.save(out)
    except OSError as fault:
        raise SafeguardError(f"{out}: cannot be written ({fault.strerror}); choose another --out") from fault
    reports = {name: dict(gauge.report) for name, gauge in calibration.gauges.items()}
    data = {"file": out, "digest": calibration.digest, "rate": rate, "prompts": len(set(texts)), "concepts": reports}
    emit(data, json_output, lambda console: _render(console, calibration, out, len(set(texts))))


def _ordinary(pipeline: str) -> list[str]:
    """Ordinary prompts that come with a registered pipeline, or for a folder those that the screener's heads are fitted on."""
    from safeguard.evaluation.pipeline_sources import pipeline_source

    return list(pipeline_source(pipeline).ordinary_prompts(ORDINARY_PROMPTS))


def _render(console: Console, calibration: Calibration, path: Path, count: int) -> None:
    table = Table("concept", box=None, padding=(0, 1, 0, 0))  # so that every name fits 80 columns
    for title in ("AUROC", "caught", "near words", "ordinary", "others", "threshold", "typical", "highest"):
        table.add_column(title, justify="right")
    for name, gauge in calibration.gauges.items():
        table.add_row(name, *_cells(gauge.report, gauge.threshold))
    console.print(table)
    console.print(
        f"{count} ordinary prompts, each also with the concept's phrases. % that open the concept: with its phrases (caught), "
        "with English words near them that the fit never saw, ordinary prompts, those of other concepts; all left out of the "
        "fit. Scores in standard deviations above ordinary prompts: typical with a phrase, highest ordinary",
        style="dim",
        highlight=False,
    )
    console.print(f"calibration: {path}, digest {calibration.digest[:12]}", highlight=False, soft_wrap=True)


def _cells(report: Any, threshold: float) -> Sequence[str]:
    names = ("caught", "caught_near_words", "opened_by_ordinary", "opened_by_other_concepts")
    shares = [f"{100 * report[name]:.1f}" if name in report else "-" for name in names]
    scores = [f"{score:.1f}" for score in (threshold, report["typical_score"], report["highest_ordinary_score"])]
    return [f"{report['auroc']:.3f}", *shares, *scores]
