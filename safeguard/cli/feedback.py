"""``safeguard feedback``: pictures are shown to people, what they say is kept, and a reward model learns from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from safeguard.cli.evaluate import JudgeOption
from safeguard.cli.generate import GuidanceOption, StepsOption, open_pipeline, read_prompts
from safeguard.cli.output import JsonOption, emit, progress_bar
from safeguard.errors import SafeguardError
from safeguard.feedback import FeedbackStore, agreement
from safeguard.feedback.agreement import pair_agreement

if TYPE_CHECKING:
    from safeguard.training.reward import Reward

app = typer.Typer(no_args_is_help=True, help="Ask people about pictures, and learn from what they say.")

StoreArgument = Annotated[Path, typer.Argument(help="The feedback store, a folder.", metavar="STORE")]
ConceptOption = Annotated[str, typer.Option(help="The concept that people are asked about, by its id in a policy.")]


@app.command("make")
def make(
    store: StoreArgument,
    concept: ConceptOption,
    count: Annotated[int, typer.Option("--n", min=1, help="Pictures to paint.")] = 200,
    pipeline: Annotated[str, typer.Option(help="unet, mmdit, or a folder with a diffusers pipeline.")] = "unet",
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts, one a line; - is stdin. Default for the demo pipelines: captions of their world."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture; the next ones count on.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 8,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Paint pictures, unprotected, and put them into a store, which is made where there is none.

    Of prompts an HMAC is kept, not the text.
    """
    from safeguard.training.feedback_collection import paint
    from safeguard.training.sources import REMEDY, open_data

    if prompts is not None:
        texts = read_prompts(None, prompts)
    elif Path(pipeline).is_dir():
        raise SafeguardError(f"{pipeline}: say with --prompts FILE what this pipeline is to paint")
    else:
        world = open_data()
        if world is None:
            raise SafeguardError(
                f"{pipeline} has no prompts of its own; say with --prompts what to paint, or {REMEDY}training_data"
            )
        texts = list(world.survey(concept, seed))
    opened = FeedbackStore(store, create=True)
    pipe, call = open_pipeline(pipeline, steps, guidance)
    with progress_bar() as progress:
        bar = progress.add_task("pictures", total=count)
        for pictures in paint(opened, pipe, concept, texts, range(seed, seed + count), batch=batch, call=call):
            progress.advance(bar, len(pictures))
    data = {"store": store, "concept": concept, "painted": count, "pictures": len(opened.items(concept))}
    emit(data, json_output, lambda console: _say(console, f"{data['pictures']} pictures to ask about {concept} in {store}"))


@app.command("serve")
def serve(
    store: StoreArgument,
    who: Annotated[str, typer.Option(help="Under which name the answers are kept: a person's, or what stands for it.")],
    size: Annotated[int, typer.Option(min=2, max=9, help="Pictures of a ranking.")] = 4,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    host: Annotated[str, typer.Option(help="Another address than this machine's own needs --token, too.")] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(help="The key in the address. Default: a new one each time.", show_default=False)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show the pictures to one person in a browser until Ctrl-C. Open the address that is printed.

    Who has the address sees the pictures and answers in that name. There is no encryption: to reach it from another machine,
    an SSH tunnel to the same port is better than another --host.
    """
    from safeguard.feedback.server import FeedbackServer
    from safeguard.feedback.session import FeedbackSession

    server = FeedbackServer(FeedbackSession(FeedbackStore(store), who, size), host, port, token)
    text = f"for {who}: {server.address}\nCtrl-C ends it; what was answered is kept at once"
    emit({"address": server.address, "who": who, "store": store}, json_output, lambda console: _say(console, text))
    typer.get_text_stream("stdout").flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


@app.command("judge")
def judge(
    store: StoreArgument,
    concept: ConceptOption,
    rankings: Annotated[int, typer.Option(min=0, help="So many rankings, instead of an answer for each picture.")] = 0,
    size: Annotated[int, typer.Option(min=2, max=9, help="Pictures of a ranking.")] = 4,
    weights: JudgeOption = None,
    json_output: JsonOption = False,
) -> None:
    """Let the demo's judge stand in for people: what it says is kept as a judge's, not a person's. For the demo world only."""
    from safeguard._entry_points import load
    from safeguard.training.feedback_collection import stand_in
    from safeguard.training.sources import REMEDY

    opened = load("safeguard.judges", "demo", "judge", f"{REMEDY}judges")
    judgements = stand_in(FeedbackStore(store), concept, opened(weights), rankings=rankings, size=size)
    data = {
        "store": store,
        "concept": concept,
        "judgements": len(judgements),
        "yes": sum(judgement.answer == "yes" for judgement in judgements),
    }
    what = f"{len(judgements)} rankings" if rankings else f"{len(judgements)} answers, {data['yes']} of them yes"
    emit(data, json_output, lambda console: _say(console, f"{what}, by the judge"))


@app.command("show")
def show(store: StoreArgument, json_output: JsonOption = False) -> None:
    """Count what was said of each concept, and say how far people agree."""
    opened = FeedbackStore(store)
    concepts = {concept: _counts(opened, concept) for concept in opened.concepts}
    emit({"store": store, "concepts": concepts}, json_output, lambda console: _render(console, concepts))


@app.command("fit")
def fit(
    store: StoreArgument,
    concept: ConceptOption,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    kind: Annotated[
        str | None, typer.Option(help="binary (answers) or ranking. Default: answers, where there are any.", show_default=False)
    ] = None,
    encoder: Annotated[str, typer.Option(help="demo, or a folder with a CLIP vision tower or an autoencoder.")] = "demo",
    by: Annotated[
        str | None, typer.Option(help="Labels of a person or of the judge alone. Default: all.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what the fit begins with, and of what is left out for the figures.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Learn a reward model from what stands in a store, and write it into one file that is bound to its encoder."""
    from safeguard.evaluation.harness import quiet_libraries
    from safeguard.training.image_features import open_encoder
    from safeguard.training.reward_fit import train_reward

    if by not in (None, "person", "judge"):
        raise typer.BadParameter("--by is person or judge")
    quiet_libraries()
    opened = FeedbackStore(store)
    reward = train_reward(opened, concept, kind=kind, encoder=open_encoder(encoder), by=by, seed=seed)
    try:
        reward.save(out)
    except OSError as fault:
        raise SafeguardError(f"{out}: cannot be written ({fault.strerror}); choose another --out") from fault
    data = {"file": out, "digest": reward.digest, "kind": reward.kind, "settings": reward.settings, "report": reward.report}
    emit(data, json_output, lambda console: _render_fit(console, reward, out))


def _counts(store: FeedbackStore, concept: str) -> dict[str, Any]:
    labels, rankings = store.labels(concept), store.rankings(concept)
    answers = [answer for answers_given in labels.values() for answer in answers_given.values()]
    judgements = store.judgements(concept)
    alike = pair_agreement(rankings)
    return {
        "pictures": len(store.items(concept)),
        "answered": len(labels),
        **{answer: answers.count(answer) for answer in ("yes", "no", "unsure")},
        "rankings": len(rankings),
        "people": sorted({item.who for item in judgements if item.by == "person"}),
        "judgements_of_the_judge": sum(item.by == "judge" for item in judgements),
        "agreement": [asdict(item) for item in agreement(labels)],
        "ranked_alike": None if alike is None else {"comparisons": alike[0], "share": alike[1]},
    }


def _render(console: Console, concepts: dict[str, Any]) -> None:
    table = Table("concept", box=box.SIMPLE_HEAD, pad_edge=False)
    titles = ("pictures", "answered", "yes", "no", "unsure", "rankings", "people", "by the judge")
    for title in titles:
        table.add_column(title, justify="right")
    for name, counts in concepts.items():
        numbers = [counts[title] for title in titles[:6]]
        table.add_row(name, *map(str, [*numbers, len(counts["people"]), counts["judgements_of_the_judge"]]))
    console.print(table)
    for name, counts in concepts.items():
        for agreed in counts["agreement"]:
            kappa = "not known" if agreed["kappa"] is None else f"{agreed['kappa']:.2f}"
            _say(
                console,
                f"{name}: {', '.join(agreed['who'])}: kappa {kappa}, "
                f"{100 * agreed['share']:.0f} % of {agreed['pictures']} alike",
            )
        if counts["ranked_alike"] is not None:
            alike = counts["ranked_alike"]
            _say(console, f"{name}: {100 * alike['share']:.0f} % of {alike['comparisons']} comparisons ranked alike")


def _render_fit(console: Console, reward: Reward, path: Path) -> None:
    _say(console, *(f"{name.replace('_', ' ')}: {value:g}" for name, value in reward.report.items() if value is not None))
    console.print("figures on pictures left out of the training, a fifth at a time", style="dim")
    learnt = reward.settings
    _say(console, f"learnt from {learnt['by_person']} judgements of people and {learnt['by_judge']} of the judge")
    _say(console, f"reward: {path}, digest {reward.digest[:12]}")


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
