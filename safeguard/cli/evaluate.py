"""``safeguard eval``: measure on the demo pipeline what a method erases and what it leaves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from safeguard.cli.generate import CalibrationOption, WordOption, load_words
from safeguard.cli.output import EXIT_TESTS_FAILED, EXIT_USAGE, JsonOption, emit, progress_bar, stderr
from safeguard.errors import SafeguardError

if TYPE_CHECKING:
    from safeguard.evaluation.arms import Arm, ArmMethod
    from safeguard.evaluation.harness import Harness
    from safeguard.evaluation.prompt_sets import PromptCase, PromptSet
    from safeguard.evaluation.run import CellResult, RunSettings
    from safeguard.policy import Policy

app = typer.Typer(no_args_is_help=True)

CountOption = Annotated[int, typer.Option("--n", min=1, help="Prompts a cell.")]
SplitOption = Annotated[str, typer.Option(help="dev (to choose strengths) or test (to report).")]
MethodsOption = Annotated[
    str, typer.Option(help="Separated by commas: NAME, NAME@STRENGTH or NAME:PARAMETER=VALUE@STRENGTH; an eraser each.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures painted at once.")]
OutOption = Annotated[Path, typer.Option(help="Folder for results, plots and finished cells.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on where an earlier run in --out was stopped.")]
ConceptsOption = Annotated[str, typer.Option(help="Only these concepts, separated by commas.")]
PipelineOption = Annotated[
    str, typer.Option(help="A registered pipeline, such as unet or mmdit, or a folder with one trained on the demo world.")
]
JudgeOption = Annotated[Path | None, typer.Option(help="Weights of another judge.")]
PromptsOption = Annotated[str, typer.Option(help="A registered prompt set: demo, or language in ordinary words.")]
JudgedByOption = Annotated[
    str, typer.Option(help="Registered judges, by commas: demo, demo-pixels, demo-transformer. The first makes the columns.")
]
CellsOption = Annotated[
    str,
    typer.Option(help="Kinds of prompts, of explicit, implicit, short, list, template, two, policy, absent, negative; or all."),
]
DEMO = "demo"  # the prompt set, and the judge


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a run is about: concepts and their prompts; the names of the prompt set and the judge; pipeline, judge's weights and
    calibration; split, count, seed and batch; learned words; the folder for what it gives; the kinds of cells.
    """

    concepts: tuple[str, ...]
    prompts: PromptSet
    names: tuple[str, str]
    where: tuple[str, Path | None, str]
    what: tuple[str, int, int, int]
    words: Sequence[Path]
    out: Path
    kinds: Sequence[str]

    @property
    def origin(self) -> dict[str, str]:
        """What was measured on and who judged, for the results: the first judge. Rows name the others."""
        return {"prompts": self.names[0], "judge": self.names[1].split(",")[0].strip()}


@app.command()
def demo(
    count: CountOption = 200,
    split: SplitOption = "test",
    methods: MethodsOption = "eiup",
    baselines: Annotated[
        str, typer.Option(help="Methods to compare with, each concept alone: measured in no other mode. May be empty.")
    ] = "negative_prompt",
    modes: Annotated[
        str, typer.Option(help="Of alone, together, screened, adaptive, adaptive-screened.")
    ] = "alone,together,screened,adaptive",
    erasers: Annotated[
        str,
        typer.Option(
            help="Instead of methods, baselines and modes: all, or methods as above (all,sld@4: sld otherwise). Each concept "
            "alone, what it costs, and 1, 3 and 5 concepts at once, in one table."
        ),
    ] = "",
    training: Annotated[
        Path | None,
        typer.Option(help="With --erasers: what safeguard train --log wrote, for what training took.", show_default=False),
    ] = None,
    concepts: ConceptsOption = "",
    cells: CellsOption = "explicit,implicit,short",
    word: WordOption = None,
    phrase: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=TEXT",
            help="A phrase in place of the concept's own, such as blood=<blood>; may be repeated.",
            show_default=False,
        ),
    ] = None,
    batch: BatchOption = 20,
    seed: Annotated[int, typer.Option(help="Chooses prompts and noise.")] = 0,
    out: OutOption = Path("out/eval"),
    resume: ResumeOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the first method with the targets; exit 4 where one is missed.")
    ] = False,
    pipeline: PipelineOption = "unet",
    judge: JudgeOption = None,
    judged_by: JudgedByOption = DEMO,
    prompts: PromptsOption = DEMO,
    calibration: CalibrationOption = "default",
    json_output: JsonOption = False,
) -> None:
    """Unprotected against every method, from the same seeds: each concept alone, all at once, opened by the screener, and by
    what the first step shows.
    """
    from safeguard.evaluation import results_files
    from safeguard.evaluation.arms import ArmMethod, arms, demo_policy
    from safeguard.evaluation.prompt_sets import prompt_set
    from safeguard.evaluation.summary import summarise
    from safeguard.evaluation.tables import rich_tables, verdict_table
    from safeguard.evaluation.targets import judge_targets
    from safeguard.evaluation.training_costs import training_seconds

    own = prompt_set(prompts)
    chosen, base = _concepts(concepts, own), demo_policy(_phrases(phrase or (), own))
    where, what, kinds = (pipeline, judge, calibration), (split, count, seed, batch), _kinds(cells)
    asked = _Asked(chosen, own, (prompts, judged_by), where, what, word or (), out, kinds)
    if training is not None and not erasers:
        raise typer.BadParameter("--training goes with --erasers")
    if erasers:
        seconds = {} if training is None else training_seconds(training, pipeline, chosen)
        _every_eraser(erasers, base, asked, seconds, resume, json_output)
        return
    tried = [ArmMethod.parse(text) for text in _words(methods)]
    wanted = [arm for method in tried for arm in arms(method, chosen, _modes(modes), base, kinds)]
    wanted += [arm for text in _words(baselines) for arm in arms(ArmMethod.parse(text), chosen, ("alone",), base, kinds)]
    _check_out(out, resume)
    studio, settings = _opened(asked)
    results = _painted(studio, settings, wanted, asked)
    rows = summarise(results, wanted, chosen)
    verdicts = judge_targets(rows, tried[0].name) if check else []
    data = results_files.results_data("demo", settings, rows, wanted, verdicts) | asked.origin
    files = results_files.write_all(out, data, rows, wanted, results)

    def render(console: Console) -> None:
        console.print(rich_tables(rows, f"Demo pipeline, {split} prompts, {count} a cell, 95 % intervals"))
        if check:
            console.print(verdict_table(verdicts))
        for name, path in files.items():
            console.print(f"{name}: {path}", highlight=False, soft_wrap=True)

    emit(data, json_output, render)
    if any(not verdict.met for verdict in verdicts):
        raise typer.Exit(EXIT_TESTS_FAILED)


@app.command()
def curve(
    count: CountOption = 40,
    split: SplitOption = "dev",
    methods: MethodsOption = "eiup,negative_prompt",
    strengths: Annotated[
        str, typer.Option(help="To try with every method that is given without one.")
    ] = "0.25,0.5,0.75,1,1.25,1.5,2",
    modes: Annotated[str, typer.Option(help="Of alone, together, screened, adaptive, adaptive-screened.")] = "alone",
    concepts: ConceptsOption = "",
    batch: BatchOption = 20,
    seed: Annotated[int, typer.Option(help="Chooses prompts and noise.")] = 0,
    out: OutOption = Path("out/curve"),
    resume: ResumeOption = False,
    pipeline: PipelineOption = "unet",
    judge: JudgeOption = None,
    judged_by: JudgedByOption = DEMO,
    prompts: PromptsOption = DEMO,
    calibration: CalibrationOption = "default",
    json_output: JsonOption = False,
) -> None:
    """Erasure against retention over the strengths of each method."""
    import json

    from safeguard.evaluation import plots, results_files
    from safeguard.evaluation.arms import UNPROTECTED, ArmMethod, arms
    from safeguard.evaluation.prompt_sets import USUAL, prompt_set
    from safeguard.evaluation.summary import summarise
    from safeguard.evaluation.tables import MODES, markdown, rich_tables

    own = prompt_set(prompts)
    chosen, ways = _concepts(concepts, own), _modes(modes)
    where, what = (pipeline, judge, calibration), (split, count, seed, batch)
    asked = _Asked(chosen, own, (prompts, judged_by), where, what, (), out, USUAL)
    tried = [
        (ArmMethod(method.eraser, method.params).name, strength, ArmMethod(method.eraser, method.params, strength))
        for method in map(ArmMethod.parse, _words(methods))
        for strength in _strengths(method, strengths)
    ]
    wanted = [arm for _, _, method in tried for arm in arms(method, chosen, ways)]
    _check_out(out, resume)
    studio, settings = _opened(asked)
    results = _painted(studio, settings, wanted, asked)
    rows = summarise(results, wanted, chosen)
    data = results_files.results_data("curve", settings, rows, wanted) | asked.origin
    results_files.write_text(out / "curve.json", json.dumps(results_files.finite(data), indent=2) + "\n")
    results_files.write_text(out / "curve.md", markdown(rows))
    plotted: list[Path] = []
    title = f"Erasure against retention, {split} prompts, {count} a cell"
    for concept in (None, *chosen) if len(chosen) > 1 else chosen:
        points = [
            (f"{name}, {MODES[mode]}" if len(ways) > 1 else name, strength, row)
            for mode in ways
            for name, strength, method in tried
            for row in rows
            if (row.method, row.mode, row.concept) == (method.name, mode, concept)
        ]
        plotted.append(
            plots.curve(
                points, out / f"curve{'' if concept is None else '-' + concept}.png", f"{title}, {concept or 'all concepts'}"
            )
        )

    def render(console: Console) -> None:
        pooled = [row for row in rows if row.concept is None or row.method == UNPROTECTED or len(chosen) == 1]
        console.print(rich_tables(pooled, title))
        console.print(f"curves, figures and table: {out}", highlight=False, soft_wrap=True)

    emit(data, json_output, render)


def _every_eraser(
    erasers: str, base: Policy, asked: _Asked, training: Mapping[str, float], resume: bool, json_output: bool
) -> None:
    from safeguard.evaluation import plots, results_files
    from safeguard.evaluation.arms import UNPROTECTED
    from safeguard.evaluation.eraser_table import SCHEMA, arms_of, chosen, costs, markdown, rich_tables
    from safeguard.evaluation.summary import summarise

    methods, concepts, out = chosen(erasers), asked.concepts, asked.out
    _check_out(out, resume)
    studio, settings = _opened(asked)
    known = _own_words(studio.pipe, methods)
    with stderr.status("what each eraser costs"):
        found_costs = costs(studio, methods, concepts, base=base, words=known, training=training)
    wanted = arms_of(methods, found_costs, base, asked.kinds)
    results = _painted(studio, settings, wanted, asked)
    rows = summarise(results, wanted, concepts)
    data = results_files.results_data("erasers", settings, rows, wanted)
    data |= asked.origin | {
        "schema": SCHEMA,
        "split": settings.split,
        "count": settings.count,
        "costs": [cost.to_dict() for cost in found_costs],
    }
    alone = [row for row in rows if row.mode in ("", "alone")]
    files = results_files.write_all(out, data, alone, [arm for arm in wanted if arm.mode == "alone"], results)
    results_files.write_text(files["table"], markdown(data))
    points = [
        (row.method, None, row) for row in alone if row.method != UNPROTECTED and (row.concept is None or len(concepts) == 1)
    ]
    title = f"Every eraser, {settings.split} prompts, {settings.count} a cell"
    files["plot"] = plots.curve(points, out / "erasers.png", title)

    def render(console: Console) -> None:
        console.print(rich_tables(data, f"{title}, 95 % intervals"))
        for name, path in files.items():
            console.print(f"{name}: {path}", highlight=False, soft_wrap=True)

    emit(data, json_output, render)


def _own_words(pipe: Any, methods: Sequence[ArmMethod]) -> dict[str, int]:
    """Teach a pipeline the words that come with the erasers of these methods and fit; their files' sizes by token.

    Only after its digest was taken: a cell of an eraser that reads no such word stays what it was before there was the word.
    """
    from safeguard.errors import CapabilityError
    from safeguard.evaluation.eraser_table import shipped_words
    from safeguard.training.textual_inversion import LearnedWord

    known = {}
    for file in shipped_words(methods):
        word = LearnedWord.load(file)
        with contextlib.suppress(CapabilityError):  # an eraser that needs a word which is not there says so itself
            word.into(pipe)
            known[word.token] = file.stat().st_size
    return known


def _opened(asked: _Asked) -> tuple[Harness, RunSettings]:
    from safeguard.evaluation.harness import open_harness, quiet_libraries, require_packages
    from safeguard.evaluation.prompt_sets import cells
    from safeguard.evaluation.run import settings_of

    require_packages()
    split, count, seed, batch = asked.what
    try:
        there = asked.prompts.cells(asked.concepts)
        for cell in (cell for cell in cells(asked.concepts, asked.kinds) if cell in there):
            asked.prompts.cases(cell, split, count, seed)  # before anything is painted: are there so many?
    except (ValueError, KeyError) as fault:
        stderr.print(f"error: {fault}", highlight=False)
        raise typer.Exit(EXIT_USAGE) from fault
    quiet_libraries()
    studio = open_harness(*asked.where, prompts=asked.names[0], judged_by=asked.names[1])
    load_words(studio.pipe, asked.words)
    return studio, settings_of(studio, split, count, seed, batch)


def _painted(studio: Harness, settings: RunSettings, wanted: Sequence[Arm], asked: _Asked) -> list[CellResult]:
    from safeguard.evaluation.arms import unprotected
    from safeguard.evaluation.prompt_sets import BENIGN
    from safeguard.evaluation.run import evaluate, images_of

    total = images_of([unprotected(asked.concepts, asked.kinds), *wanted], settings.count)
    some = studio.prompt_set.cases(BENIGN, settings.split, min(settings.batch, settings.count), settings.seed)
    minutes = total * _seconds_per_image(studio, some) / 60
    stderr.print(f"{total} pictures, about {minutes:.0f} min on this machine as it is now", highlight=False)
    with progress_bar() as progress:
        task = progress.add_task("", total=total)

        def advance(title: str, images: int) -> None:
            progress.update(task, advance=images, description=title)

        return evaluate(studio, wanted, settings, out=asked.out, advance=advance)


def _seconds_per_image(studio: Harness, some: Sequence[PromptCase]) -> float:
    """Paint a batch that no figure uses: it warms the pipeline up, and says how long the rest will take."""
    begun = time.perf_counter()
    studio.paint(some)
    return (time.perf_counter() - begun) / len(some)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _concepts(text: str, prompts: PromptSet) -> tuple[str, ...]:
    wanted = tuple(_words(text)) or prompts.concepts
    unknown = [name for name in wanted if name not in prompts.concepts]
    if unknown:
        raise typer.BadParameter(f"no concept {unknown[0]!r} among these prompts; there is {', '.join(prompts.concepts)}")
    return wanted


def _phrases(pairs: Sequence[str], prompts: PromptSet) -> dict[str, list[str]]:
    by_concept: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in prompts.concepts or not text:
            raise typer.BadParameter(f"--phrase is ID=TEXT, with one of {', '.join(prompts.concepts)} as ID")
        by_concept.setdefault(name, []).append(text)
    return by_concept


def _modes(text: str) -> list[str]:
    from safeguard.evaluation.arms import MODES

    modes = _words(text)
    if not modes or set(modes) - set(MODES):
        raise typer.BadParameter(f"--modes are of {', '.join(MODES)}")
    return modes


def _kinds(text: str) -> tuple[str, ...]:
    from safeguard.evaluation.prompt_sets import EVERY

    kinds = EVERY if text.strip() == "all" else tuple(dict.fromkeys(_words(text)))
    if set(kinds) - set(EVERY):
        raise typer.BadParameter(f"--cells are of {', '.join(EVERY)}, or all")
    return kinds


def _strengths(method: ArmMethod, text: str) -> list[float]:
    """The strengths to try: the method's own where it names one, or has words that all mean the same."""
    from safeguard.plan.registry import Registry

    if isinstance(method.strength, float):
        return [method.strength]

    scale = set(Registry().get(method.eraser).strengths.values())
    try:
        return [scale.pop()] if len(scale) == 1 else [float(word) for word in _words(text)]
    except ValueError as fault:
        raise typer.BadParameter("--strengths are numbers, separated by commas") from fault


def _check_out(out: Path, resume: bool) -> None:
    from safeguard.evaluation.cell_store import holds_cells

    if holds_cells(out) and not resume:
        raise SafeguardError(f"{out} holds cells of an earlier run; add --resume to go on there, or choose another --out")
