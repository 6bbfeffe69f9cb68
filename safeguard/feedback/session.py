"""What the page asks of the store, for one person: which pictures there are, what they said, what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from safeguard.errors import FeedbackError
from safeguard.feedback.judgements import Judgement, check_who
from safeguard.feedback.next_pictures import shuffled, to_rank
from safeguard.feedback.store import FeedbackStore

SIZE: Final = 4  # pictures of a ranking
MOST: Final = 9  # of them: each has a number key


class FeedbackSession:
    """One person's place at a store. Methods take what the page sent and give what it is told, as JSON values.

    Raises FeedbackError where the store does, and ValueError for what the page cannot have sent.
    """

    def __init__(self, store: FeedbackStore, who: str, size: int = SIZE) -> None:
        try:
            check_who(who)
        except ValueError as fault:
            raise FeedbackError(f"{fault}") from None
        if not 2 <= size <= MOST:
            raise FeedbackError(f"a ranking is of 2 to {MOST} pictures")
        if not store.concepts:
            raise FeedbackError(f"{store.folder}: nobody is asked about anything here; add pictures: safeguard feedback make")
        self.store, self.who, self.size = store, who, size

    def state(self, concept: str | None) -> dict[str, Any]:
        """All that the page shows of a concept, or of the first one."""
        concepts = self.store.concepts
        if concept not in concepts:
            concept = concepts[0]
        answers = self._answers(concept)
        pictures = [
            {"image": item.image, "size": list(item.size), "answer": answers.get(item.image)}
            for item in shuffled(self.store.items(concept))
        ]
        about = {"who": self.who, "concepts": list(concepts), "concept": concept, "pictures": pictures}
        return {**about, **self._progress(concept)}

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``concept``, ``image``, ``answer``."""
        concept, image = _text(body, "concept"), _text(body, "image")
        self.store.answer(concept, image, _text(body, "answer"), who=self.who)
        return self._changed(concept, [image])

    def rank(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``concept``, and ``images`` from least to most."""
        concept = _text(body, "concept")
        self.store.rank(concept, _texts(body, "images"), who=self.who)
        return self._changed(concept, [])

    def undo(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``concept``, and the ``judgement`` to take back, by its id."""
        concept, judgement = _text(body, "concept"), _text(body, "judgement")
        images = next((latest.images for latest in self._said(concept) if latest.id == judgement), ())
        self.store.take_back(judgement, who=self.who)
        return self._changed(concept, images)

    def _changed(self, concept: str, images: Sequence[str]) -> dict[str, Any]:
        answers = self._answers(concept)
        return {"changed": {image: answers.get(image) for image in images}, **self._progress(concept)}

    def _answers(self, concept: str) -> dict[str, str]:
        labels = self.store.labels(concept)
        return {image: answers[self.who] for image, answers in labels.items() if self.who in answers}

    def _said(self, concept: str, kind: str | None = None) -> list[Judgement]:
        judgements = self.store.judgements(concept, replaced=True)
        return [judgement for judgement in judgements if judgement.who == self.who and kind in (None, judgement.kind)]

    def _progress(self, concept: str) -> dict[str, Any]:
        rankings = self._said(concept, "ranking")
        group, unranked = to_rank(self.store.items(concept), rankings, self.size)
        last = {"binary": self._said(concept, "binary")[-1:], "ranking": rankings[-1:]}
        return {
            "labelled": len(self._answers(concept)),
            "rankings": len(rankings),
            "unranked": unranked,
            "group": [item.image for item in group],
            "last": {
                kind: {"judgement": judgement.id, "images": list(judgement.images)}
                for kind, judgements in last.items()
                for judgement in judgements
            },
        }


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is a text")
    return value


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is a list of texts")
    return value
