"""``safeguard train``: give an eraser what its method has to learn on a pipeline."""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperCommand

from safeguard.cli.evaluate import JudgeOption
from safeguard.cli.generate import read_prompts
from safeguard.cli.output import JsonOption, emit, plain, progress_bar, stderr
from safeguard.errors import SafeguardError

if TYPE_CHECKING:
    from safeguard.training import Made
    from safeguard.training.settings import SettingInfo
    from safeguard.training.task import Advance

ASKED: Final = "safeguard.train"


class TrainCommand(TyperCommand):
    """Help of a trainer's own settings behind that of the command, where a trainer is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[ASKED] = list(args)  # --help is answered before METHOD is read
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from safeguard.training.trainer import trainer_names, trainer_of

        installed = trainer_names()
        named = [name for name in ctx.meta.get(ASKED, ()) if name in installed]
        for name in named[:1]:
            trainer = trainer_of(name)
            formatter.write_text(f"{name}: {trainer.help} --n {trainer.count}, --batch {trainer.batch} by default.")
            rows = [
                (f"--set {option.name}={option.default:g}", f"{option.help} {_range(option)}")
                for option in trainer.options().values()
            ]
            if rows:
                with formatter.section(f"Settings of {name}, with their defaults"):
                    formatter.write_dl(rows)
        if not named:
            formatter.write_text(f"METHOD is one of {', '.join(installed)}. safeguard train METHOD --help shows its settings.")


def _range(option: SettingInfo) -> str:
    return f"({option.kind.words})"


def _list_trainers(wanted: bool) -> None:
    """Say which trainers are installed, and end."""
    if not wanted:
        return
    from safeguard.training.trainer import trainer_names, trainer_of

    for name in trainer_names():
        typer.echo(f"{name}: {trainer_of(name).help}")
    raise typer.Exit


app = typer.Typer()


@app.command(cls=TrainCommand)
def train(
    method: Annotated[
        str, typer.Argument(help="An eraser that is trained; --list names them, and METHOD --help shows its settings.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write. Name it in the policy: params: {adapter: FILE}.")],
    concept: Annotated[
        list[str] | None,
        typer.Option(help="A concept of the policy; may be repeated, in the order of ccrt. Default: all.", show_default=False),
    ] = None,
    pipeline: Annotated[str, typer.Option(help="unet, mmdit, or a folder with a pipeline trained on the demo world.")] = "unet",
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="What the concepts' phrases are: a file, or builtin://NAME.")
    ] = ("builtin://demo"),
    count: Annotated[
        int,
        typer.Option(
            "--n",
            min=0,
            help="Prompts of each kind and concept, or pictures. 0: what the method has; METHOD --help shows it.",
        ),
    ] = 0,
    batch: Annotated[
        int,
        typer.Option(min=0, help="Pictures at once. 0: what the method has."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn: prompts, noise, what the fit begins with.")] = 0,
    chosen: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=NUMBER",
            help="A setting of the method; may be repeated. METHOD --help lists them.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Ordinary prompts to learn from, one a line, for a pipeline of another world. Not every method."),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(help="A store of what people said of the pipeline's pictures (hfi). Default: the judge is asked."),
    ] = None,
    reward: Annotated[
        Path | None, typer.Option(help="A reward model of that store's (hfi). Default: one is fitted.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep a checkpoint beside --out, and go on from the one there.")
    ] = False,
    within: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="MINUTES",
            help="Stop after a few updates of a part where the rest of it would take longer than this.",
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="A file to add a line of JSON to: what was trained, and how long it took.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Installed training data with prompts of the concepts. Default: the demo's.", show_default=False),
    ] = None,
    judge: JudgeOption = None,
    json_output: JsonOption = False,
    listed: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list_trainers, help="Name the trainers, and end.")
    ] = False,
) -> None:
    """Train what an eraser has to learn on a pipeline, and write it into one file that is bound to that pipeline."""
    from safeguard.evaluation.harness import open_harness, quiet_libraries
    from safeguard.policy import derive, load_policy
    from safeguard.training import Task, check
    from safeguard.training import train as train_method
    from safeguard.training.sources import open_data

    settings = dict(_setting(text) for text in chosen or ())
    judged = (feedback, reward) != (None, None)
    check(method, settings=settings, prompts=prompts is not None, resumes=resume, feedback=judged)
    own = load_policy(policy) if concept is None else derive(load_policy(policy), concepts=concept)
    texts: Sequence[str] = () if prompts is None else read_prompts(None, prompts)
    checkpoint = out.with_name(f"{out.name}.checkpoint") if resume else None
    beside: dict[Path, bytes] = {}
    _write(out, None, beside)
    if log is not None:
        _append(log, b"")
    world = open_data(data)
    quiet_libraries()
    studio = open_harness(pipeline, judge, calibration="none")
    begun, used = time.perf_counter(), time.process_time()

    def keep(what: str, data: bytes) -> None:
        beside[out.with_suffix(f".{what}.safetensors")] = data

    with _listener(within, _less(method, resume)) as advance:
        task = Task(
            studio.pipe,
            own,
            count,
            seed,
            batch,
            settings,
            texts,
            feedback,
            reward,
            checkpoint,
            advance,
            keep,
            data=world,
            judge=studio.judge,
            steps=studio.steps,
            guidance=studio.guidance,
            options={**studio.usual, **studio.options},
        )
        trained = train_method(method, task)
    took = {"seconds": round(time.perf_counter() - begun, 2), "cpu_seconds": round(time.process_time() - used, 2)}
    _write(out, trained, beside)
    if checkpoint is not None:
        for file in out.parent.glob(f"{glob.escape(checkpoint.name)}*"):
            file.unlink()
    if log is not None:
        name = type(studio.pipe).__name__ if Path(pipeline).is_dir() else pipeline
        line = {"method": method, "pipeline": name, "concepts": list(own.concepts), **took, "settings": trained.settings}
        _append(log, json.dumps(plain(line)).encode() + b"\n")
    summary = {
        "file": out,
        "digest": trained.digest,
        "settings": trained.settings,
        "report": trained.report,
        "beside": list(beside),
    }
    emit({**summary, **took}, json_output, lambda console: _render(console, trained, out, list(beside), took))


@contextmanager
def _listener(within: float | None, less: str) -> Iterator[Advance]:
    """Shows a bar of the part that is under way, and says how long its rest takes."""
    from safeguard.training.time_budget import TimeBudget

    pace = TimeBudget(within, say=lambda line: stderr.print(line, highlight=False, soft_wrap=True), less=less)
    with progress_bar() as progress:
        bar = progress.add_task("pictures", total=None)

        def advance(what: str, more: int, whole: int | None = None, anew: int | None = None) -> None:
            if what != progress.tasks[0].description:
                progress.reset(bar, description=what)
            progress.update(bar, advance=more, total=whole)
            pace(what, more, whole, anew)

        yield advance


def _write(out: Path, trained: Made | None, beside: Mapping[Path, bytes]) -> None:
    """Write the files; without one, see before hours of training that there is a folder for it."""
    from safeguard._io import write_whole

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, data in beside.items():
            write_whole(path, data)
        if trained is not None:
            trained.save(out)
    except OSError as fault:
        raise SafeguardError(f"{out}: cannot be written ({fault.strerror}); choose another --out") from fault


def _append(log: Path, line: bytes) -> None:
    """Add to a file; nothing, to see before hours of training that it can be done."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(line)
    except OSError as fault:
        raise SafeguardError(f"{log}: cannot be written ({fault.strerror}); choose another --log") from fault


def _less(method: str, resume: bool) -> str:
    """What to do about a training that takes too long."""
    from safeguard.training.trainer import trainer_of

    fewer = (
        "train for fewer --set updates=NUMBER" if "updates" in trainer_of(method).options() else "take fewer prompts with --n"
    )
    return f"{fewer}, or allow more{'; --resume goes on from the checkpoint' if resume else ''}"


def _setting(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise SafeguardError(f"--set {text}: this is no NAME=NUMBER") from None


def _render(console: Console, trained: Made, path: Path, beside: Sequence[Path], took: Mapping[str, float]) -> None:
    for name, value in trained.report.items():
        console.print(f"{name.replace('_', ' ')}: {value:g}", highlight=False)
    console.print("figures on what was left out of the training", style="dim")
    console.print("took {seconds:.0f} s, {cpu_seconds:.0f} s of processor time".format(**took), highlight=False)
    console.print(f"file: {path}, digest {trained.digest[:12]}", highlight=False, soft_wrap=True)
    for file in beside:
        console.print(f"beside it: {file}", highlight=False, soft_wrap=True)
