"""Training of ``hfi`` (human feedback inversion, arXiv 2407.21032): unlearn what people's answers point at, no word of theirs.

What people said of pictures (`safeguard.feedback`), by the reward model that learnt from it (`safeguard.training.reward_fit`),
is inverted to a learned word (`safeguard.training.feedback_inversion`); then, as in ``sdd``, linear layers are taught to
predict of that word what is predicted of nothing (`safeguard.training.distillation`), with the time drawn from Beta(3, 3): more
often in the middle of a picture's way.

Where a task names no feedback, pictures are painted of the training data's prompts and a judge stands in for people.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

import safeguard_plugins.sdd.train as sdd
from safeguard.errors import SafeguardError
from safeguard.feedback import FeedbackStore
from safeguard.policy import Concept
from safeguard.sdk.adapter import Adapter
from safeguard.sdk.delta_eraser import whole
from safeguard.training.delta_training import frozen_of, taught, the_one, told
from safeguard.training.distillation import DistillationSettings, Recipe
from safeguard.training.feedback_collection import paint, stand_in
from safeguard.training.feedback_inversion import Inversion, InversionSettings, best
from safeguard.training.frozen_pipeline import FrozenPipeline, Pixels
from safeguard.training.holdout import Holdout
from safeguard.training.reward import Reward
from safeguard.training.reward_fit import train_reward
from safeguard.training.settings import FLAG, REAL, WHOLE, fixed, setting
from safeguard.training.task import Task
from safeguard.training.text_pairs import TextPair
from safeguard.training.textual_inversion import beside, plain
from safeguard.training.trainer import Trainer

METHOD: Final = "hfi"
BETA: Final = 3
LEAST: Final = 4  # pictures to learn a word from


@dataclass(frozen=True)
class HFISettings(DistillationSettings):
    """``average``, ``moving`` and ``beta`` are those of `recipe`; ``vectors`` the rows of the word (0: as many as the concept's
    first phrase has tokens), ``best`` is K, the pictures that it is learnt from, in ``inversion`` updates at
    ``inversion_rate``. Learnt slowly, with a row a token, it stays near the phrase, so that what is unlearnt of the word is
    unlearnt of the phrase as well.
    """

    context: int = fixed(0)  # what is unlearnt is a word, which stands in no whole text
    average: float = setting(sdd.AVERAGE, REAL, "Share of the teacher that stays at each update.")
    moving: int = setting(0, FLAG, "1: the target moves with the student.")
    beta: int = setting(BETA, WHOLE, "Times are drawn from Beta(beta, beta); more is nearer to the middle.")
    vectors: int = setting(0, WHOLE, "Rows of the learned word; by default as many as the phrase has tokens.")
    best: int = setting(48, WHOLE, "Pictures that the word is learnt from.")
    inversion: int = setting(150, WHOLE, "Updates of the word.")
    inversion_rate: float = setting(0.0003, REAL, "Learning rate of the word.")


def recipe(*, average: float = sdd.AVERAGE, moving: bool = False, beta: int = BETA) -> Recipe:
    """What ``hfi`` teaches of a learned word."""
    recipe_used = sdd.recipe(average=average, moving=moving)
    return replace(recipe_used, method=METHOD, beta=beta, numbers={**recipe_used.numbers, "beta": beta})


def train(task: Task) -> Adapter:
    """The deltas of the one concept of a task; its learned word goes to ``task.keep``.

    Raises SafeguardError for several concepts and for feedback of another one, FeedbackError and CapabilityError where nothing
    can be learnt from the feedback, or beside the pipeline.
    """
    concept, usual, numbers = the_one(task, METHOD), frozen_of(task), task.numbers(HFISettings())
    settings = InversionSettings(numbers.inversion, 2 * task.batch, numbers.inversion_rate, task.seed)
    first = plain(usual.pipe, f"<{concept.id}>", concept.phrases[0], numbers.vectors)
    frozen = FrozenPipeline(beside(usual.pipe, [first]), usual.options)
    images, weights, options = _shown(task, concept, numbers.best)
    inversion = Inversion(frozen, [first], usual.latents_of(images), weights, settings, checkpoint=_checkpoint_of(task))
    (word,) = inversion.run(told(task, f"{concept.id}: inversion"))
    task.keep("word", word.to_bytes())
    options |= {"word": word.digest, "token": word.token, "inversion": settings.updates, "inversion_rate": settings.rate}
    own = recipe(average=numbers.average, moving=bool(numbers.moving), beta=numbers.beta)
    adapter = taught(task, own, frozen, concept, [TextPair("", word.token)], **options)
    named = _named(frozen, concept, adapter)
    return replace(adapter, report={**adapter.report, **named, **inversion.report()})


def _checkpoint_of(task: Task) -> Path | None:
    """Of the inversion, beside that of what follows."""
    return None if task.checkpoint is None else task.checkpoint.with_name(f"{task.checkpoint.name}-word")


def _named(frozen: FrozenPipeline, concept: Concept, adapter: Adapter) -> dict[str, float]:
    """What the deltas do to the concept's own phrases, of which they were not told."""
    settings, pairs = adapter.settings, [TextPair("", phrase) for phrase in concept.phrases]
    exam = Holdout(frozen, concept.id, pairs, count=settings["batch"], steps=settings["steps"], seed=settings["seed"])
    deltas = {name.removeprefix(f"{frozen.name}."): delta for name, delta in whole(adapter.tensors).items()}
    return {f"named_{name}": mark for name, mark in exam.marks(deltas).items() if name != "elsewhere"}


def _shown(task: Task, concept: Concept, count: int) -> tuple[Pixels, Tensor, dict[str, Any]]:
    """The ``count`` pictures of the highest reward with their weights, and what they were chosen by. Of answers, pictures that
    are more likely to be called no are left out.
    """
    with _judged(task, concept) as (store, reward):
        images = store.pixels(item.image for item in store.items(concept.id))
    above = 0.5 if reward.kind == "binary" else float("-inf")
    places, weights = best(reward(images), count, above)
    if len(places) < LEAST:
        raise SafeguardError(
            f"by the reward model {len(places)} of {len(images)} pictures show {concept.id!r}, and a word is learnt from at "
            f"least {LEAST}; paint and ask about more"
        )
    counts = {name: reward.settings.get(name) for name in ("by_person", "by_judge", "people")}
    return images[places], weights, {"reward": reward.digest, **counts, "best": len(places)}


@contextmanager
def _judged(task: Task, concept: Concept) -> Iterator[tuple[FeedbackStore, Reward]]:
    """Pictures that somebody was asked about, and what was learnt from the answers."""
    if task.feedback is None and task.reward is not None:
        raise SafeguardError("a reward model says of which pictures a word is learnt; name their store with --feedback")
    with tempfile.TemporaryDirectory() as folder:
        store = _painted(task, concept, Path(folder)) if task.feedback is None else FeedbackStore(task.feedback)
        reward = train_reward(store, concept.id, seed=task.seed) if task.reward is None else Reward.load(task.reward)
        if reward.concept != concept.id:
            raise SafeguardError(f"{task.reward} is a reward model of {reward.concept!r}; fit one of {concept.id!r}")
        yield store, reward


def _painted(task: Task, concept: Concept, folder: Path) -> FeedbackStore:
    """Pictures of the training data's prompts, of which the judge says what people would."""
    judge, prompts = task.judging(), task.world().survey(concept.id, task.seed)
    store = FeedbackStore(folder / "store", create=True)
    call = {"num_inference_steps": task.steps, "guidance_scale": task.guidance, **task.call}
    for pictures in paint(store, task.pipe, concept.id, prompts, range(task.seed, task.seed + task.count), call=call):
        task.advance(f"{concept.id}: pictures", len(pictures), task.count)
    stand_in(store, concept.id, judge)
    return store


trainer: Final = Trainer(
    METHOD,
    train,
    HFISettings,
    count=160,
    resumes=True,
    feedback=True,
    help="As sdd for a learned word, which is made of people's feedback and written beside --out, as FILE.word.safetensors.",
)
