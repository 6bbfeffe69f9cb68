"""Training of ``gie`` (arXiv 2408.01014 v2): from what the first step shows of a token to the scale at which it is inhibited.

Pictures of prompts that name the concept, that imply it and that have nothing of it are painted at a grid of constant scales; a
judge says at which the concept is gone. The paper has GPT-4o rank them; here it is any `ConceptJudge`. The gentlest scale
at which a picture is clean is what is wanted for it, the highest where none is, and 0 where the unprotected picture shows no
concept. A small network learns that from the features of each token.

The authors state no loss. Too little lets the concept through and too much costs a little of the picture, so it is that of a
quantile: by `QUANTILE` = 0.95 the network says what is enough for nineteen pictures in twenty of a kind, not for the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from safeguard.instrument import Attachment
from safeguard.policy import Policy, derive
from safeguard.sdk.adapter import Adapter, Perceptron
from safeguard.training.attention_shares import attached, shares_of
from safeguard.training.sources import SeededPrompt
from safeguard.training.task import Task
from safeguard.training.trainer import Trainer

SCALES: Final = (0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
ENOUGH: Final = 0.9  # of the pictures that show a concept are clean at the constant
QUANTILE: Final = 0.95
WIDTHS: Final = (64, 32)  # of the hidden layers, as in the authors' code
EPOCHS: Final = 1500
RATE: Final = 1e-2
FOLDS: Final = 5

Scales = npt.NDArray[np.float64]  # wanted for each case, [n]


@dataclass(frozen=True, eq=False)
class _Samples:
    """Tokens in pictures: ``features`` [n, S], the scale that is ``wanted`` [n], how much each counts (a concept of many words
    no more than one of few), and its ``fold``, the same for all tokens of a picture.
    """

    features: Tensor
    wanted: Tensor
    emphasis: Tensor
    fold: Tensor

    def of(self, some: Tensor) -> _Samples:
        return _Samples(self.features[some], self.wanted[some], self.emphasis[some], self.fold[some])


def train(task: Task) -> Adapter:
    """Paint, judge and fit. Raises what `safeguard.protect` raises, and ValueError where the split holds fewer prompts."""
    names = [concept.id for concept in task.concepts]
    kinds = [*((kind, name) for name in names for kind in ("explicit", "implicit")), ("benign", None)]
    chosen = [case for kind, name in kinds for case in task.world().cases(kind, name, task.count, task.seed)]
    shown = _judged(task, chosen, None, "unprotected")
    wanted = {name: _wanted(task, name, chosen, shown[name]) for name in names}
    constant = _constant(np.concatenate(list(wanted.values())))
    with attached(task.pipe) as attachment:
        samples, bound = _samples(task, attachment, chosen, wanted, constant), attachment.fingerprint
    settings = {
        "constant": constant,
        "highest": SCALES[-1],
        "scales": list(SCALES),
        "quantile": QUANTILE,
        "concepts": {one.id: list(one.phrases) for one in task.concepts},
        "prompts": task.count,
        "seed": task.seed,
        "steps": task.steps,
        "guidance": task.guidance,
    }
    report = _report(samples, task.seed)
    return Adapter("gie", bound, _fit(samples, task.seed), settings, report)


def _judged(task: Task, chosen: Sequence[SeededPrompt], policy: Policy | None, title: str) -> dict[str, npt.NDArray[Any]]:
    """What the judge says of the pictures of these cases under a policy, or unprotected."""
    parts = []
    judge = task.judging()
    with task.under(policy):
        for start in range(0, len(chosen), task.batch):
            some = chosen[start : start + task.batch]
            parts.append(judge.predict(task.paint(some)))
            task.advance(title, len(some), len(chosen))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _wanted(task: Task, concept: str, chosen: Sequence[SeededPrompt], shown: npt.NDArray[Any]) -> Scales:
    """For each case the gentlest constant scale at which the concept is gone, 0 where it is not shown."""
    wanted = np.zeros(len(chosen))
    left: list[int] = np.flatnonzero(shown).tolist()
    for scale in SCALES:
        wanted[left] = scale
        if left:
            own: dict[str, Any] = {"eraser": "gie", "params": {"adapter": "none"}, "strength": scale}
            policy = derive(task.policy, name="scale", concepts=[concept], activation="always", action="erase", **own)
            judged = _judged(task, [chosen[place] for place in left], policy, f"{concept} at {scale:g}")
            left = [place for place, still in zip(left, judged[concept], strict=True) if still]
    return wanted


def _constant(wanted: Scales) -> float:
    """The gentlest scale that is enough for most pictures that show a concept."""
    needed = wanted[wanted > 0]
    return next((scale for scale in SCALES if len(needed) and np.mean(needed <= scale) >= ENOUGH), SCALES[-1])


def _samples(
    task: Task, attachment: Attachment, chosen: Sequence[SeededPrompt], wanted: Mapping[str, Scales], constant: float
) -> _Samples:
    """Every token of every concept in every picture."""
    parts = []
    for concept, scales in wanted.items():
        shares = shares_of(attachment, task, concept, chosen, constant)
        words = shares.shape[1]
        each = (torch.from_numpy(scales).float(), torch.full((len(chosen),), 1 / words), torch.arange(len(chosen)) % FOLDS)
        parts.append((shares.flatten(0, 1), *(part.repeat_interleave(words) for part in each)))
    return _Samples(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.random.fork_rng(devices=[])
def _fit(samples: _Samples, seed: int) -> dict[str, Tensor]:
    """Layers for `Perceptron`, of features as they are. Pictures with a concept and those without count alike."""
    torch.manual_seed(seed)
    x, y = samples.features, samples.wanted
    mean, spread = x.mean(0), x.std(0) + 1e-8
    layers = [nn.Linear(width_in, width_out) for width_in, width_out in pairwise((x.shape[1], *WIDTHS, 1))]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    shown = y > 0
    with_it, without = (samples.emphasis[side].sum().clamp_min(1e-8) for side in (shown, ~shown))
    emphasis = samples.emphasis / torch.where(shown, with_it, without)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    standard = (x - mean) / spread
    for _ in range(EPOCHS):
        missing = y - network(standard)[:, 0]
        loss = (emphasis * torch.maximum(QUANTILE * missing, (QUANTILE - 1) * missing)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        layers[0].weight /= spread
        layers[0].bias.sub_(layers[0].weight @ mean)
    return {
        f"{place}.{name}": part.detach().clone()
        for place, layer in enumerate(layers)
        for name, part in (("weight", layer.weight), ("bias", layer.bias))
    }


def _report(samples: _Samples, seed: int) -> dict[str, float]:
    """How it does on pictures that were left out of the fit, fold by fold, token by token."""
    x, y = samples.features, samples.wanted
    predictions = torch.empty_like(y)
    for number in range(FOLDS):
        training_rows = samples.fold != number
        network = Perceptron(_fit(samples.of(training_rows), seed), x.shape[1], 1)
        predictions[~training_rows] = network(x[~training_rows])[:, 0].clamp(0, SCALES[-1])
    shown = y > 0
    return {
        "tokens": float(len(y)),
        "wanted_where_shown": float(y[shown].mean()),
        "predicted_where_shown": float(predictions[shown].mean()),
        "enough_where_shown": float((predictions[shown] >= y[shown]).float().mean()),
        "predicted_elsewhere": float(predictions[~shown].mean()),
    }


trainer: Final = Trainer(
    "gie",
    train,
    count=16,
    batch=20,
    needs=frozenset({"data", "judge"}),
    help="Paints prompts at several scales, lets a judge say where each concept is gone, and fits a network to that.",
)
