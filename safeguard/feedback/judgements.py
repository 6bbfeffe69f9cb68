"""The three records of a feedback store, as typed values: a picture asked about, what was said of it, what was taken back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from safeguard.audit.canonical import Record, plain
from safeguard.audit.decision import is_revision as is_digest

SCHEMA: Final = "safeguard.dev/feedback/v1"
ANSWERS: Final = ("yes", "no", "unsure")
KINDS: Final = ("binary", "ranking")
BY: Final = ("person", "judge")
LONGEST: Final = 200  # characters of a name

_CONCEPT: Final = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")  # as in policies

Key: TypeAlias = tuple[str, str, str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class PictureModel:
    """What painted a picture: the pipeline's class, where it was loaded from, and the digest of its weights where known."""

    pipeline: str
    repo: str | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A picture, and the ``concept`` that people are asked about in it. ``image`` is its `safeguard.audit.image_digest`, so
    that a decision record and an item name a picture alike; ``size`` is (width, height).

    Of the prompt there is a keyed HMAC and the id of the key, as in the audit log, never the text.
    """

    image: str
    concept: str
    model: PictureModel
    size: tuple[int, int]
    created: str
    prompt_hmac: str | None = None
    prompt_key: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_digest(self.image)
        _check_concept(self.concept)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What ``who`` said at ``time`` (RFC 3339) of whether pictures show ``concept``. ``by`` is ``person``, or ``judge`` where a
    program stands in for people.

    ``binary``: an ``answer`` (yes, no, unsure) about one picture. ``ranking``: ``images`` from least to most of the concept.
    Raises ValueError for anything else.
    """

    id: str
    concept: str
    kind: str
    images: tuple[str, ...]
    who: str
    by: str
    time: str
    answer: str | None = None

    def __post_init__(self) -> None:
        _check_concept(self.concept)
        check_who(self.who)
        _one_of("kind", self.kind, KINDS)
        _one_of("by", self.by, BY)
        for image in self.images:
            _check_digest(image)
        if self.kind == "binary":
            _one_of("answer", self.answer, ANSWERS)
            if len(self.images) != 1:
                raise ValueError("an answer is about one picture")
        elif self.answer is not None or len(self.images) < 2 or len(set(self.images)) < len(self.images):
            raise ValueError("a ranking is an order of two pictures or more, each named once")

    @property
    def key(self) -> Key:
        """The question: a later judgement of the same key replaces an earlier one."""
        return (self.who, self.concept, self.kind, frozenset(self.images))


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """``who`` takes back the ``judgement`` of that id: what was said before it stands again."""

    id: str
    judgement: str
    who: str
    time: str

    def __post_init__(self) -> None:
        check_who(self.who)


Entry: TypeAlias = Item | Judgement | Withdrawal
_NAMES: Final[dict[type[Entry], str]] = {Item: "item", Judgement: "judgement", Withdrawal: "withdrawal"}


def to_record(entry: Entry) -> Record:
    """As it stands in the file."""
    data: Record = plain(asdict(entry))
    return {"record": _NAMES[type(entry)], **{name: value for name, value in data.items() if value is not None}}


def from_record(data: Mapping[str, Any]) -> Entry:
    """What `to_record` made. Raises ValueError with the reason for anything else."""
    rest = dict(data)
    name = rest.pop("record", None)
    try:
        if name == "item":
            model, size, seed = PictureModel(**rest.pop("model")), rest.pop("size"), rest.pop("seed", None)
            width, height = size
            return Item(model=model, size=(int(width), int(height)), seed=None if seed is None else int(seed), **_texts(rest))
        if name == "judgement":
            images = tuple(rest.pop("images"))
            return Judgement(images=images, **_texts(rest))
        if name == "withdrawal":
            return Withdrawal(**_texts(rest))
    except (KeyError, TypeError) as fault:
        raise ValueError(f"a field of this {name} is missing, unknown or of a wrong type ({fault})") from None
    raise ValueError("it is no item, judgement or withdrawal")


def _texts(data: Mapping[str, Any]) -> dict[str, Any]:
    wrong = [name for name, value in data.items() if not isinstance(value, str)]
    if wrong:
        raise TypeError(f"{wrong[0]} is no text")
    return dict(data)


def check_who(who: str) -> None:
    """Raises ValueError for what can be no name of a person: empty, too long, or with control characters."""
    if not who.strip() or len(who) > LONGEST or not who.isprintable():
        raise ValueError(f"who is the name of a person, of 1 to {LONGEST} printable characters")


def _check_digest(image: Any) -> None:
    if not is_digest(image):
        raise ValueError("a picture is named by a hex SHA-256")


def _check_concept(concept: str) -> None:
    if len(concept) > LONGEST or not _CONCEPT.fullmatch(concept):
        raise ValueError("a concept is named by its id in a policy: small letters, digits, - and _")


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}")
