"""A feedback store: a folder of pictures with what people said of them (stage 1 of HFI, arXiv 2407.21032).

``images/<digest>.png`` are the pictures, ``feedback.jsonl`` the records, ``hmac.key`` the key of the prompts' digests.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from uuid_utils.compat import uuid7

from safeguard.audit.canonical import Record, rfc3339, utc_now
from safeguard.audit.durable import put_file
from safeguard.audit.image_digest import image_digest
from safeguard.audit.keys import check_key, load_or_make_key
from safeguard.audit.mask import key_id, prompt_hmac
from safeguard.errors import FeedbackError
from safeguard.feedback.jsonl import JsonLines, writing
from safeguard.feedback.judgements import SCHEMA, Entry, Item, Judgement, PictureModel, Withdrawal, from_record, to_record
from safeguard.feedback.replay import JudgementReplay

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

Made = TypeVar("Made", Item, Judgement, Withdrawal)

FILE: Final = "feedback.jsonl"
IMAGES: Final = "images"


class FeedbackStore:
    """Pictures that people are asked about, and what stands of their answers.

    ``create`` makes the folder where it is missing, for its owner only: these are pictures of what is not wanted. ``key``
    makes the prompts' HMACs; without it ``hmac.key`` in the folder does. Safe for threads and for several programs: what
    another one wrote is seen by the next call. Every method raises FeedbackError, with the line where the file is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        create: bool = False,
        key: bytes | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.folder = Path(folder)
        self._key, self._clock = None if key is None else self._checked(key), clock
        self._ledger = JudgementReplay()
        self._named = False  # whether the first line, which names the schema, was read
        file = self.folder / FILE
        if create:
            with writing(self.folder):
                (self.folder / IMAGES).mkdir(parents=True, exist_ok=True, mode=0o700)
                self.folder.chmod(0o700)
            self._lines = JsonLines.create(file, {"schema": SCHEMA, "store": str(uuid7()), "created": self._now()})
        elif not file.is_file():
            message = f"{self.folder}: there is no feedback store here; make one: safeguard feedback make {self.folder}"
            raise FeedbackError(message, path=str(self.folder))
        else:
            self._lines = JsonLines(file)
        self.refresh()

    def refresh(self) -> None:
        """Take in what others wrote since. Every method does so by itself."""
        self._lines.read(self._take)

    def _take(self, record: Record) -> None:
        if self._named:
            self._ledger.take(from_record(record))
        elif record.get("schema") != SCHEMA:
            raise ValueError(f"the first line of a feedback store names its schema, {SCHEMA}")
        self._named = True

    # What is asked

    def add(
        self,
        image: Image.Image | npt.NDArray[np.uint8],
        concept: str,
        *,
        model: PictureModel,
        prompt: str | None = None,
        seed: int | None = None,
    ) -> Item:
        """Ask about ``concept`` in a picture (PIL, or uint8 [h, w, 3]). The same picture is asked about once: the first item
        stays. Of ``prompt`` an HMAC is kept.
        """
        from PIL import Image

        picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
        digest, key = image_digest(picture), self._prompt_key() if prompt is not None else None
        named = {} if prompt is None or key is None else {"prompt_hmac": prompt_hmac(prompt, key), "prompt_key": key_id(key)}
        item = self._made(Item, digest, concept, model, picture.size, self._now(), seed=seed, **named)
        file = self._file(digest)
        with self._lines.held():
            self.refresh()
            known = self._ledger.items.get((concept, digest))
            if known is not None and file.is_file():
                return known
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", optimize=True)
            with writing(file):
                put_file(file, buffer.getvalue(), replace=True)
            if known is None:
                self._append([item])
        return known or item

    @property
    def concepts(self) -> tuple[str, ...]:
        """Every concept that is asked about, in the order in which they came."""
        with self._reading() as ledger:
            return tuple(dict.fromkeys(concept for concept, _ in ledger.items))

    def items(self, concept: str) -> tuple[Item, ...]:
        """The pictures in which a concept is asked about, in their order. None: an error that names what there is."""
        with self._reading() as ledger:
            items = tuple(item for item in ledger.items.values() if item.concept == concept)
        if not items:
            there = ", ".join(self.concepts) or "nothing"
            raise FeedbackError(
                f"{self.folder}: nobody is asked about {concept!r} here, but about {there}", path=str(self.folder)
            )
        return items

    # What is said

    def answer(self, concept: str, image: str, answer: str, *, who: str, by: str = "person") -> Judgement:
        """``who`` says whether one picture shows a concept: yes, no or unsure."""
        (judgement,) = self.answer_all(concept, {image: answer}, who=who, by=by)
        return judgement

    def answer_all(self, concept: str, answers: Mapping[str, str], *, who: str, by: str = "person") -> tuple[Judgement, ...]:
        """Answers about several pictures, by their digests, in one write."""
        judgements = [
            self._made(Judgement, str(uuid7()), concept, "binary", (image,), who, by, self._now(), answer)
            for image, answer in answers.items()
        ]
        self._say(judgements)
        return tuple(judgements)

    def rank(self, concept: str, images: Sequence[str], *, who: str, by: str = "person") -> Judgement:
        """``who`` orders pictures from least to most of a concept."""
        judgement = self._made(Judgement, str(uuid7()), concept, "ranking", tuple(images), who, by, self._now())
        self._say([judgement])
        return judgement

    def take_back(self, judgement: str, *, who: str) -> Withdrawal:
        """``who`` takes one of their judgements back, by its id; what they said before it stands again."""
        withdrawal = self._made(Withdrawal, str(uuid7()), judgement, who, self._now())
        self._say([withdrawal])
        return withdrawal

    def judgements(self, concept: str | None = None, *, by: str | None = None, replaced: bool = False) -> list[Judgement]:
        """What stands: of a concept, and by whom (``person``, ``judge``), or all of it. ``replaced`` ones are given only when
        asked for; what was taken back never is.
        """
        with self._reading() as ledger:
            judgements = list(ledger.kept() if replaced else ledger.standing())
        return [judgement for judgement in judgements if concept in (None, judgement.concept) and by in (None, judgement.by)]

    def labels(self, concept: str, *, by: str | None = None) -> dict[str, dict[str, str]]:
        """The answers that stand: picture to person to answer. Pictures without one are not there."""
        labels: dict[str, dict[str, str]] = {}
        for judgement in self.judgements(concept, by=by):
            if judgement.kind == "binary" and judgement.answer is not None:
                labels.setdefault(judgement.images[0], {})[judgement.who] = judgement.answer
        return labels

    def rankings(self, concept: str, *, by: str | None = None) -> list[Judgement]:
        """The orders that stand."""
        return [judgement for judgement in self.judgements(concept, by=by) if judgement.kind == "ranking"]

    # The pictures

    def png(self, image: str) -> bytes:
        """The file of a picture that somebody is asked about. Only such a digest reaches the disk."""
        with self._reading() as ledger:
            known = image in ledger.images
        if not known:
            raise FeedbackError(f"{self.folder}: there is no such picture", path=str(self.folder))
        file = self._file(image)
        try:
            return file.read_bytes()
        except OSError as fault:
            message = f"{file}: cannot be read ({fault.strerror}); put the picture back from a copy"
            raise FeedbackError(message, path=str(file)) from fault

    def pixels(self, images: Iterable[str]) -> npt.NDArray[np.uint8]:
        """Pictures of one size by their digests, each checked against its own: uint8 [n, h, w, 3]."""
        import numpy as np
        from PIL import Image

        pictures = []
        for digest in images:
            try:
                picture = Image.open(io.BytesIO(self.png(digest))).convert("RGB")
                same = image_digest(picture) == digest
            except (OSError, SyntaxError, Image.DecompressionBombError):
                same = False
            if not same:
                file = self._file(digest)
                raise FeedbackError(f"{file}: this picture was changed; put it back from a copy", path=str(file))
            pictures.append(np.asarray(picture))
        if len({image.shape for image in pictures}) > 1:
            raise FeedbackError(f"{self.folder}: these pictures are not of one size", path=str(self.folder))
        return np.stack(pictures) if pictures else np.zeros((0, 0, 0, 3), np.uint8)

    # Inside

    @contextlib.contextmanager
    def _reading(self) -> Iterator[JudgementReplay]:
        """What stands now; no other thread changes it meanwhile."""
        with self._lines.lock:
            self.refresh()
            yield self._ledger

    def _say(self, entries: Sequence[Entry]) -> None:
        with self._lines.held():
            self.refresh()
            self._append(entries)

    def _append(self, entries: Sequence[Entry]) -> None:
        """Only while held: what does not follow on the store as it is now is refused before it is written."""
        for entry in entries:
            try:
                self._ledger.check(entry)
            except ValueError as fault:
                raise FeedbackError(f"{self.folder}: {fault}", path=str(self.folder)) from None
        self._lines.append([to_record(entry) for entry in entries])
        self.refresh()

    def _made(self, kind: type[Made], *values: Any, **named: Any) -> Made:
        try:
            return kind(*values, **named)
        except ValueError as fault:
            raise FeedbackError(f"{self.folder}: {fault}", path=str(self.folder)) from None

    def _file(self, digest: str) -> Path:
        return self.folder / IMAGES / f"{digest}.png"

    def _now(self) -> str:
        return rfc3339(self._clock())

    def _prompt_key(self) -> bytes:
        if self._key is None:
            with writing(self.folder / "hmac.key"):
                self._key = load_or_make_key(self.folder)
        return self._key

    def _checked(self, key: bytes) -> bytes:
        with writing(self.folder):
            return check_key(key)
