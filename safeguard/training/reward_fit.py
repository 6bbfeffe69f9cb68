"""Training of a reward model (stage 2 of HFI, arXiv 2407.21032) from what stands in a feedback store.

Answers are learnt by their mean square error, ``(r(x) - y)^2`` with y 1 for yes; rankings by the Bradley-Terry likelihood of
their pairs, ``-log sigmoid(r(x+) - r(x-))``. Width, rate and updates are ours; the paper's are not known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from safeguard.errors import FeedbackError
from safeguard.feedback import FeedbackStore
from safeguard.feedback.agreement import pairs_of
from safeguard.feedback.judgements import KINDS
from safeguard.sdk.adapter import Perceptron
from safeguard.training.image_features import ImageEncoder, open_encoder
from safeguard.training.reward import Reward

HIDDEN: Final = 64
UPDATES: Final = 300
RATE: Final = 1e-3
DECAY: Final = 0.1
FOLDS: Final = 5
LEAST: Final = 2 * FOLDS  # pictures to learn from

Report = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Labels:
    """What was said of ``images``, by digest: either ``values`` [n], the mean over people of yes (1) and no (0), or ``pairs``,
    places (less, more) among the images, as often as they were said.
    """

    images: tuple[str, ...]
    values: tuple[float, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()

    def of(self, rows: list[int]) -> Labels:
        """Of some of the images alone; a pair needs both of its own."""
        place = {row: at for at, row in enumerate(rows)}
        pairs = tuple((place[less], place[more]) for less, more in self.pairs if less in place and more in place)
        return Labels(tuple(self.images[row] for row in rows), tuple(self.values[row] for row in rows if self.values), pairs)


def labels_of(store: FeedbackStore, concept: str, kind: str, by: str | None = None) -> Labels:
    """The labels of a concept that stand. Unsure is left out. Raises FeedbackError where there are too few to learn from."""
    store.items(concept)
    if kind == "binary":
        labelled = sorted(store.labels(concept, by=by).items())
        votes = {image: [answer == "yes" for answer in answers.values() if answer != "unsure"] for image, answers in labelled}
        shares = {image: sum(answer) / len(answer) for image, answer in votes.items() if answer}
        labels = Labels(tuple(shares), tuple(shares.values()))
    else:
        named = pairs_of(store.rankings(concept, by=by))
        images = tuple(sorted({image for pair in named for image in pair}))
        place = {image: at for at, image in enumerate(images)}
        labels = Labels(images, pairs=tuple((place[less], place[more]) for less, more in named))
    if len(labels.images) < LEAST:
        what = "answered with yes or no" if kind == "binary" else "ranked"
        message = f"{store.folder}: {len(labels.images)} pictures are {what} for {concept!r}; at least {LEAST} are needed"
        raise FeedbackError(message, path=str(store.folder))
    return labels


def train_reward(
    store: FeedbackStore,
    concept: str,
    *,
    kind: str | None = None,
    encoder: ImageEncoder | None = None,
    by: str | None = None,
    seed: int = 0,
) -> Reward:
    """Learn a concept's reward from a store. ``kind``: from answers (``binary``) or rankings; without it from answers, where
    there are any. ``by``: labels of a ``person`` or of the ``judge`` alone.

    The same labels, encoder and seed give the same bits on one machine. Raises FeedbackError for too few labels.
    """
    chosen = kind or ("ranking" if store.rankings(concept, by=by) and not store.labels(concept, by=by) else "binary")
    if chosen not in KINDS:
        raise FeedbackError(f"a reward is learnt from {' or '.join(KINDS)}, not {chosen!r}")
    labels, image_encoder = labels_of(store, concept, chosen, by), encoder or open_encoder()
    features = image_encoder(store.pixels(labels.images))
    settings = {
        **_learnt_from(store, concept, chosen, by, labels),
        "seed": seed,
        "updates": UPDATES,
        "rate": RATE,
        "decay": DECAY,
    }
    return Reward(concept, chosen, image_encoder, fit(features, labels, seed), settings, report(features, labels, seed))


def _learnt_from(store: FeedbackStore, concept: str, kind: str, by: str | None, labels: Labels) -> dict[str, Any]:
    """What a model is learnt from, in numbers, without a person's name."""
    judgements = [judgement for judgement in store.judgements(concept, by=by) if judgement.kind == kind]
    return {
        "pictures": len(labels.images),
        "pairs": len(labels.pairs),
        "by_person": sum(judgement.by == "person" for judgement in judgements),
        "by_judge": sum(judgement.by == "judge" for judgement in judgements),
        "people": len({judgement.who for judgement in judgements if judgement.by == "person"}),
        "labels": hashlib.sha256(json.dumps([labels.images, labels.values, labels.pairs]).encode()).hexdigest(),
    }


def answer_loss(rewards: Tensor, values: Tensor) -> Tensor:
    """L_MSE of rewards [n] against answers [n] in 0..1."""
    return (rewards - values).square().mean()


def pair_loss(more: Tensor, less: Tensor) -> Tensor:
    """L_NLL of the rewards [m] of the pictures that were put higher and of those put lower, as a mean over the pairs."""
    return -nn.functional.logsigmoid(more - less).mean()


def fit(features: Tensor, labels: Labels, seed: int = 0, updates: int = UPDATES) -> dict[str, Tensor]:
    """Layers for `Perceptron` of features [n, width] as they are, one row an image of ``labels``.

    The last layer begins at 0 and at the mean answer: where all say the same, that is what is learnt.
    """
    mean, spread = features.mean(0), features.std(0) + 1e-6
    x, loss = (features - mean) / spread, _loss(labels)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        first, last = nn.Linear(features.shape[1], HIDDEN), nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, sum(labels.values) / len(labels.values) if labels.values else 0.0)
        network = nn.Sequential(first, nn.ReLU(), last)
        weights, biases = [first.weight, last.weight], [first.bias, last.bias]
        optimiser = torch.optim.AdamW(
            [{"params": weights, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}], lr=RATE
        )
        for _ in range(updates):
            optimiser.zero_grad()
            loss(network(x)[:, 0]).backward()
            optimiser.step()
    with torch.no_grad():
        if labels.pairs:
            last.bias.sub_(network(x).mean())
        weight = first.weight / spread
        return {
            "0.weight": weight,
            "0.bias": first.bias - weight @ mean,
            "1.weight": last.weight.detach(),
            "1.bias": last.bias.detach(),
        }


def _loss(labels: Labels) -> Callable[[Tensor], Tensor]:
    if labels.pairs:
        less, more = (torch.tensor(side) for side in zip(*labels.pairs, strict=True))
        return lambda rewards: pair_loss(rewards[more], rewards[less])
    values = torch.tensor(labels.values)
    return lambda rewards: answer_loss(rewards, values)


def report(features: Tensor, labels: Labels, seed: int = 0) -> Report:
    """How models do on what was left out of them: each fifth of the pictures in turn, with every pair that has one of them."""
    folds = (torch.randperm(len(labels.images), generator=torch.Generator().manual_seed(seed)) % FOLDS).tolist()
    rewards, right = torch.zeros(len(folds)), list[bool]()
    for held in range(FOLDS):
        training_rows, out = ([row for row, fold in enumerate(folds) if (fold == held) == left] for left in (False, True))
        part = labels.of(training_rows)
        if not part.values and not part.pairs:
            continue
        predictions = Perceptron(fit(features[training_rows], part, seed), features.shape[1], 1)(features)[:, 0]
        rewards[out] = predictions[out]
        right += [
            bool(predictions[more] > predictions[less]) for less, more in labels.pairs if held in (folds[less], folds[more])
        ]
    if labels.pairs:
        return {"pair_accuracy": sum(right) / len(right) if right else None, "pairs": len(right)}
    return _of_answers(rewards, torch.tensor(labels.values))


def _of_answers(rewards: Tensor, values: Tensor) -> Report:
    """Accuracy at 0.5 and AUROC, where most people said yes or no; None where nobody said the one or the other."""
    from sklearn.metrics import roc_auc_score

    clear = values != 0.5
    r, yes = rewards[clear].numpy(), values[clear].numpy() > 0.5
    both = bool(yes.any()) and not bool(yes.all())
    return {
        "accuracy": float(np.mean((r > 0.5) == yes)) if len(yes) else None,
        "auroc": float(roc_auc_score(yes, r)) if both else None,
        "pictures": len(yes),
        "yes": int(yes.sum()),
    }
