"""Calibrate a pipeline for the adaptive concepts of a policy, without labels.

Ordinary prompts run through the first step, as they are and with a concept's phrases added. A detector is fitted that tells the
two apart, and its score is given in standard deviations of ordinary prompts. So a prompt that leads to the concept without
naming it stands out as well. The report also says how many prompts are caught that name a concept by words near its phrases,
which no policy has and no fit has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from safeguard.errors import CapabilityError
from safeguard.guard.guard import Guard, PolicySource, loaded
from safeguard.plan.calibration import Calibration, Detector
from safeguard.plan.detectors import FIRST, LAST
from safeguard.policy import Concept, derive
from safeguard.screening.near_words import near_words
from safeguard.sdk.pipeline import Pipeline

Features = npt.NDArray[np.float64]  # [n, F]
Looks = dict[float, npt.NDArray[np.float64]]  # [n, C, F] by the share of the schedule

RATE: Final = 0.001
RESIDUAL_RATE: Final = 0.01  # of pictures of ordinary prompts, in which more of a concept may be seen than counts as enough
FOLDS: Final = 5
FEWEST: Final = 40  # ordinary prompts, with fewer of which nothing can be said of them
OTHERS: Final = 4  # concepts whose prompts stand on the harmless side with their whole weight
NEAR: Final = 10  # words near a concept's phrases that are tried, at most
FEWEST_NEAR: Final = 2  # words, with fewer of which nothing is said of unseen ones
_FORMS: Final = ("{text}, {phrase}", "{phrase}, {text}", "{text} {phrase}")


def calibrate(
    pipe: Any,
    policy: PolicySource,
    prompts: Sequence[str],
    *,
    rate: float = RATE,
    step: int = 0,
    residual: int = 0,
    seed: int = 0,
    batch: int = 16,
    example: Mapping[str, Any] | None = None,
    call: Mapping[str, Any] | None = None,
    advance: Callable[[int, int], None] = lambda done, of: None,
) -> Calibration:
    """Calibrate a pipeline for the adaptive concepts of a policy, so that evidence can activate them. Stable.

    No labels are needed and no image is made. Of each call only the first step runs, or what leads to ``step``; for
    ``residual`` prompts all steps do.

    Args:
        pipe: A pipeline that is not guarded.
        policy: A path, ``builtin://NAME`` or a `Policy`.
        prompts: Ordinary prompts, as users write them, at least `FEWEST`. Prompts that lead to a concept raise its threshold.
        rate: The share of ordinary prompts that may activate a concept, by the tail of a normal distribution.
        step: The step in which evidence will be measured. The steps before it run unprotected.
        residual: Of how many of the prompts, as they are and with each concept's phrases, the last step is looked at, too. By
            it a record says what an erased concept has left. At least `FEWEST`; 0 for none.
        seed: For the noise.
        batch: Images at once.
        example: As of `protect`.
        call: Further arguments of the pipeline (steps, guidance, size), as in production.
        advance: Is called with the number of prompts that are done, and of all.

    Returns:
        The calibration. Save it, and pass it to `protect`.

    Raises:
        CapabilityError: If the policy has no adaptive concept, there are too few prompts, features are not finite, or a concept
            cannot be told from ordinary prompts.
        SafeguardError: Whatever else `protect` raises.
    """
    texts = list(dict.fromkeys(prompts))
    if len(texts) < FEWEST:
        raise CapabilityError(f"calibration needs at least {FEWEST} different ordinary prompts, not {len(texts)}")
    if residual and not FEWEST <= residual <= len(texts):
        raise CapabilityError(
            f"residual is a number of the {len(texts)} prompts, at least {FEWEST}, or 0 for none, not {residual}"
        )
    if not 0 < rate < 0.5:
        raise CapabilityError(f"the rate is a share of ordinary prompts, above 0 and below 0.5, not {rate}")
    whole = loaded(policy)
    concepts = [item for item in whole.concepts.values() if item.activation == "adaptive" and item.action != "flag"]
    if not concepts:
        raise CapabilityError(f"policy {whole.name!r} has no adaptive concept to calibrate", missing="an adaptive concept")
    blank = Calibration.blank(concepts, rate, whole.revision, step)
    done = 0
    watched = derive(whole, concepts=[item.id for item in concepts], on_residual="record")
    with Guard(pipe, watched, None, None, example, blank) as guard:
        near = [_near(concept, guard.attachment) for concept in concepts]
        looks = 1 + len(concepts) + sum(map(bool, near))
        total = len(texts) * looks + sum(len(item.safe_examples) for item in concepts) + residual * (1 + len(concepts))

        def look(some: Sequence[str], at: str = "first") -> Looks:
            nonlocal done
            painted = list[dict[float, list[list[float]]]]()
            for start in range(0, len(some), batch):
                part = list(some[start : start + batch])
                painted += guard.look(part, at=at, generator=_noise(seed + done, len(part)), **(call or {}))
                done += len(part)
                advance(done, total)
            return _stacked(painted)

        ordinary = look(texts)[FIRST]
        shown = [look(_with(concept.phrases, texts))[FIRST] for concept in concepts]
        harmless = [look(concept.safe_examples)[FIRST] if concept.safe_examples else ordinary[:0] for concept in concepts]
        unseen = [look(_with(words, texts))[FIRST] if words else ordinary[:0] for words in near]
        few = texts[:residual]
        late = [look(few, "last"), *(look(_with(concept.phrases, few), "last") for concept in concepts)] if residual else []
        fingerprint = guard.attachment.fingerprint
    gauges, left = {}, _residuals(concepts, late)
    for column, concept in enumerate(concepts):
        others = [item[:, column] for place, item in enumerate(shown) if place != column]
        own, safe = shown[column][:, column], harmless[column][:, column]
        gauges[concept.id] = _gauge(concept, own, ordinary[:, column], safe, others, unseen[column][:, column], rate)
    residuals = left.pop(LAST, {})
    return Calibration(fingerprint, gauges, rate, whole.revision, step, residuals=residuals, midway=left)


def _with(phrases: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Every text with one of the phrases beside it."""
    return [
        _FORMS[place % len(_FORMS)].format(text=text, phrase=phrases[place % len(phrases)]) for place, text in enumerate(texts)
    ]


def _near(concept: Concept, pipeline: Pipeline) -> list[str]:
    """Words near the concept's phrases that the pipeline's tokenizer knows as a whole: others its model will not have learnt.
    None where they are too few.
    """
    words = near_words(concept.phrases, 4 * NEAR)
    if words:
        words = [word for word, text in zip(words, pipeline.encode(words), strict=True) if len(text.content) == 1][:NEAR]
    return words if len(words) >= FEWEST_NEAR else []


def _noise(seed: int, count: int) -> Any:
    import torch

    return [torch.Generator().manual_seed(seed + place) for place in range(count)]


def _gauge(
    concept: Concept,
    shown: Features,
    ordinary: Features,
    harmless: Features,
    others: Sequence[Features],
    near: Features,
    rate: float,
) -> Detector:
    """Fitted on all but ``near``; its units and its report come from prompts that were left out of the fit, fold by fold."""
    from sklearn.metrics import roc_auc_score

    fold = np.arange(len(ordinary)) % FOLDS
    unseen, caught = np.empty(len(ordinary)), np.empty(len(ordinary))
    foreign = np.empty((len(others), len(ordinary)))
    for number in range(FOLDS):
        out, rest = fold == number, fold != number
        weights, offset = _fit(shown[rest], np.concatenate([ordinary[rest], harmless]), [feature[rest] for feature in others])
        unseen[out], caught[out] = (part[out] @ weights + offset for part in (ordinary, shown))
        for place, feature in enumerate(others):
            foreign[place, out] = feature[out] @ weights + offset
    mean, spread = float(unseen.mean()), float(unseen.std())
    if not spread > 0 or not caught.mean() > mean:
        raise CapabilityError(
            f"concept {concept.id!r} cannot be told from ordinary prompts on this pipeline; give it phrases that the model "
            "knows, or make it always active",
            missing="evidence",
        )
    weights, offset = _fit(shown, np.concatenate([ordinary, harmless]), others)
    threshold = NormalDist().inv_cdf(1 - rate)
    caught, unseen, foreign = ((part - mean) / spread for part in (caught, unseen, foreign))
    report = {
        "prompts": float(len(ordinary)),
        "auroc": float(roc_auc_score(np.repeat([1, 0], len(unseen)), np.concatenate([caught, unseen]))),
        "caught": float((caught >= threshold).mean()),
        "opened_by_ordinary": float((unseen >= threshold).mean()),
        "opened_by_other_concepts": float((foreign >= threshold).mean()) if len(others) else 0.0,
        "typical_score": float(np.median(caught)),
        "highest_ordinary_score": float(unseen.max()),
    }
    if len(near):
        apart = (near @ weights + offset - mean) / spread
        labels = np.repeat([1, 0], [len(apart), len(unseen)])
        report["auroc_near_words"] = float(roc_auc_score(labels, np.append(apart, unseen)))
        report["caught_near_words"] = float((apart >= threshold).mean())
    return Detector.of(concept, (weights / spread).tolist(), (offset - mean) / spread, threshold, **report)


def _stacked(painted: Sequence[Mapping[float, Sequence[Sequence[float]]]]) -> Looks:
    """What images have shown, at the shares of the schedule that all of them have."""
    shares = set.intersection(*(set(item) for item in painted))
    looks = {share: np.array([item[share] for item in painted], dtype=np.float64) for share in shares}
    if not all(np.isfinite(features).all() for features in looks.values()):
        raise CapabilityError("the pipeline shows features that are not finite; use a wider dtype", missing="evidence")
    return looks


def _residuals(concepts: Sequence[Concept], late: Sequence[Looks]) -> dict[float, dict[str, Detector]]:
    """The detectors of what is left, at each share of the schedule that was seen: of the last step one of every concept, of
    the others one of each that can be told there.
    """
    found = dict[float, dict[str, Detector]]()
    for share in sorted(set.intersection(*(set(looks) for looks in late)) if late else ()):
        gauges = {
            concept.id: _residual(concept, column, [looks[share] for looks in late], must=share == LAST)
            for column, concept in enumerate(concepts)
        }
        found[share] = {name: gauge for name, gauge in gauges.items() if gauge is not None}
    return found


def _residual(concept: Concept, column: int, seen: Sequence[Features], *, must: bool) -> Detector | None:
    """Of what one step shows: ``seen`` has the features [n, C, F] of ordinary prompts, then with phrases."""
    plain, *beside = [item[:, column] for item in seen]
    foreign = [item for place, item in enumerate(beside) if place != column]
    try:
        return _gauge(concept, beside[column], plain, plain[:0], foreign, plain[:0], RESIDUAL_RATE)
    except CapabilityError as fault:
        if not must:
            return None
        raise CapabilityError(
            f"concept {concept.id!r}: the last step of this pipeline does not show whether it is in the picture; leave "
            "residual out, or give it phrases that the model knows",
            missing="residual",
        ) from fault


def _fit(shown: Features, ordinary: Features, others: Sequence[Features]) -> tuple[Features, float]:
    """A logistic regression on standardised features, given back for the features as they are. Of a policy of many concepts the
    others weigh no more than `OTHERS` of them would: they would outvote the ordinary prompts.
    """
    from sklearn.linear_model import LogisticRegression

    every = np.concatenate([shown, ordinary, *others])
    mean, scale = every.mean(0), every.std(0) + 1e-9
    labels = np.repeat([1, 0], [len(shown), len(every) - len(shown)])
    emphasis = np.ones(len(every))
    emphasis[len(shown) + len(ordinary) :] = min(1.0, OTHERS / max(1, len(others)))
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
    model.fit((every - mean) / scale, labels, sample_weight=emphasis)
    weights = np.asarray(model.coef_[0] / scale, dtype=np.float64)
    return weights, float(model.intercept_[0] - weights @ mean)
