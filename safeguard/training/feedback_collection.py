"""Stage 1 of HFI (arXiv 2407.21032), but for the people: pictures are painted into a feedback store, and the demo's judge can
stand in where a demo or a test has no people.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from safeguard.errors import FeedbackError
from safeguard.evaluation.harness import weights_digest
from safeguard.feedback import FeedbackStore, Item, Judgement, PictureModel
from safeguard.feedback.next_pictures import to_rank

JUDGE: Final = "judge"  # as which the demo's judge answers
DRAWN: Final = 40  # different demo prompts of a kind; beyond that they come again, with other seeds

Advance = Callable[[int], None]


def paint(
    store: FeedbackStore,
    pipe: Any,
    concept: str,
    prompts: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    batch: int = 8,
    call: Mapping[str, Any] | None = None,
    advance: Advance | None = None,
) -> list[Item]:
    """``count`` pictures of these prompts in turn, each from a seed of its own, as the pipeline paints them unprotected. A
    picture that is painted again is the same one, and is asked about once.
    """
    import torch

    model = PictureModel(type(pipe).__name__, pipe.config.get("_name_or_path") or None, weights_digest(pipe.components))
    made = []
    for start in range(0, count, batch):
        seeds = range(seed + start, seed + min(start + batch, count))
        texts = [prompts[(one - seed) % len(prompts)] for one in seeds]
        noise = [torch.Generator().manual_seed(one) for one in seeds]
        images = pipe(texts, generator=noise, output_type="pil", **(call or {})).images
        for image, text, one in zip(images, texts, seeds, strict=True):
            made.append(store.add(image, concept, model=model, prompt=text, seed=one))
        if advance is not None:
            advance(len(seeds))
    return made


def demo_prompts(concept: str, seed: int = 0) -> list[str]:
    """Captions of the demo world, in an order drawn by ``seed``: half of them without the concept, a quarter that name it,
    and a quarter that only imply it. Raises FeedbackError for a concept that it does not have.
    """
    from safeguard_demo.captions import prompts

    _check_known(concept)
    kinds = [("explicit", concept, DRAWN), ("implicit", concept, DRAWN), ("benign", None, 2 * DRAWN)]
    drawn = [prompts("train", kind, name, count, seed=seed) for kind, name, count in kinds]
    texts = [prompt.text for prompt in chain.from_iterable(drawn)]
    random.Random(seed).shuffle(texts)
    return texts


def stand_in(store: FeedbackStore, concept: str, judge: Any, *, rankings: int = 0, size: int = 4) -> list[Judgement]:
    """What the demo's judge (`safeguard_demo.Judge`) says of every picture, or with ``rankings`` as many orders of ``size``
    pictures by how sure it is, kept as said by a judge. Raises FeedbackError for a concept that it does not know.
    """
    _check_known(concept)
    items = store.items(concept)
    images = [item.image for item in items]
    sure = dict(zip(images, _seen(store, judge, concept, images), strict=True))
    if not rankings:
        answers = {image: "yes" if share > 0.5 else "no" for image, share in sure.items()}
        return list(store.answer_all(concept, answers, who=JUDGE, by="judge"))
    return list(_ranked(store, items, sure, concept, rankings, size))


def _seen(store: FeedbackStore, judge: Any, concept: str, images: Sequence[str]) -> npt.NDArray[np.float32]:
    """How sure the judge is of the concept in each picture, in 0..1: [n]."""
    parts = [judge.probabilities(store.pixels(images[start : start + 64]))[concept] for start in range(0, len(images), 64)]
    return np.concatenate(parts)


def _ranked(
    store: FeedbackStore, items: Sequence[Item], sure: Mapping[str, float], concept: str, count: int, size: int
) -> Iterator[Judgement]:
    said = [one for one in store.judgements(concept, replaced=True) if one.kind == "ranking" and one.who == JUDGE]
    for _ in range(count):
        group, _ = to_rank(items, said, size)
        order = sorted((item.image for item in group), key=lambda image: (sure[image], image))
        said.append(store.rank(concept, order, who=JUDGE, by="judge"))
        yield said[-1]


def _check_known(concept: str) -> None:
    from safeguard_demo.world import CONCEPTS

    if concept not in CONCEPTS:
        known = ", ".join(CONCEPTS)
        raise FeedbackError(f"the demo world has no {concept!r}, but {known}; give prompts of your own, and ask people")
