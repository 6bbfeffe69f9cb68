"""Stage 1 of HFI (arXiv 2407.21032), but for the people: pictures are painted into a feedback store, and a judge can stand
in where a demo or a test has no people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from safeguard.errors import FeedbackError
from safeguard.feedback import FeedbackStore, Item, Judgement, PictureModel
from safeguard.feedback.next_pictures import to_rank
from safeguard.training.frozen_pipeline import weights_digest
from safeguard.training.sources import ConceptJudge

JUDGE: Final = "judge"  # as which a judge answers


def paint(
    store: FeedbackStore,
    pipe: Any,
    concept: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 8,
    call: Mapping[str, Any] | None = None,
) -> Iterator[list[Item]]:
    """A picture of each seed, of these prompts in turn, as the pipeline paints them unprotected.

    A picture that is painted again is the same one, and is asked about once.

    Args:
        store: Where the pictures go.
        pipe: The pipeline that paints them.
        concept: What people will be asked about.
        prompts: Texts, at least one.
        seeds: Of the pictures' noise, in order.
        batch: Pictures painted at once.
        call: What else the pipeline is called with.

    Yields:
        The pictures of each batch, once they are in the store. Nothing is painted before the first is asked for.
    """
    import torch

    model = PictureModel(type(pipe).__name__, pipe.config.get("_name_or_path") or None, weights_digest(pipe.components))
    for start in range(0, len(seeds), batch):
        some = seeds[start : start + batch]
        texts = [prompts[(start + place) % len(prompts)] for place in range(len(some))]
        noise = [torch.Generator().manual_seed(seed) for seed in some]
        images = pipe(texts, generator=noise, output_type="pil", **(call or {})).images
        pictures = zip(images, texts, some, strict=True)
        yield [store.add(image, concept, model=model, prompt=text, seed=seed) for image, text, seed in pictures]


def stand_in(store: FeedbackStore, concept: str, judge: ConceptJudge, *, rankings: int = 0, size: int = 4) -> list[Judgement]:
    """What a judge says of every picture, or with ``rankings`` as many orders of ``size`` pictures by how sure it is, kept as
    said by a judge. A judge that has ``probabilities`` beside ``predict`` says how sure it is; another is sure of all it says.

    Raises FeedbackError for a concept that it does not know.
    """
    items = store.items(concept)
    images = [item.image for item in items]
    sure = dict(zip(images, _seen(store, judge, concept, images), strict=True))
    if not rankings:
        answers = {image: "yes" if share > 0.5 else "no" for image, share in sure.items()}
        return list(store.answer_all(concept, answers, who=JUDGE, by="judge"))
    return list(_ranked(store, items, sure, concept, rankings, size))


def _seen(store: FeedbackStore, judge: ConceptJudge, concept: str, images: Sequence[str]) -> npt.NDArray[np.float32]:
    """How sure the judge is of the concept in each picture, in 0..1: [n]."""
    ask: Callable[[Any], Mapping[str, npt.NDArray[Any]]] = getattr(judge, "probabilities", judge.predict)
    parts = []
    for start in range(0, len(images), 64):
        answers = ask(store.pixels(images[start : start + 64]))
        if concept not in answers:
            known = ", ".join(name for name, part in answers.items() if np.asarray(part).dtype.kind in "bf" and part.ndim == 1)
            raise FeedbackError(f"the judge knows no {concept!r}, but {known}; ask people about it: safeguard feedback serve")
        parts.append(np.asarray(answers[concept], np.float32))
    return np.concatenate(parts)


def _ranked(
    store: FeedbackStore, items: Sequence[Item], sure: Mapping[str, float], concept: str, count: int, size: int
) -> Iterator[Judgement]:
    judgements = [
        judgement
        for judgement in store.judgements(concept, replaced=True)
        if judgement.kind == "ranking" and judgement.who == JUDGE
    ]
    for _ in range(count):
        group, _ = to_rank(items, judgements, size)
        order = sorted((item.image for item in group), key=lambda image: (sure[image], image))
        judgements.append(store.rank(concept, order, who=JUDGE, by="judge"))
        yield judgements[-1]
