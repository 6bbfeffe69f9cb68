"""What a call of a pipeline asks for, read from its arguments by name: which texts, how many images, which seeds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_POSITIVE: Final = re.compile(r"prompt(_\d+)?")
_NEGATIVE: Final = re.compile(r"negative_prompt(_\d+)?")


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One prompt of a call. ``texts`` are its prompt fields, ``negative`` its negative ones; no text: embeddings."""

    texts: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def source(self) -> str:
        return "prompt" if self.texts else "prompt_embeds"


@dataclass(frozen=True, slots=True)
class Asked:
    """One call: its prompts, images a prompt, a seed an image (None: not given), and whether guidance is turned round."""

    rows: tuple[AskedRow, ...]
    per_prompt: int
    seeds: tuple[int | None, ...]
    inverted: bool

    @property
    def images(self) -> int:
        return len(self.rows) * self.per_prompt


def read_call(base: type, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Asked:
    """Read a call of ``base.__call__``. Arguments that do not fit are left for the pipeline to refuse."""
    signature = inspect.signature(base.__call__)  # type: ignore[operator]
    try:
        given = dict(signature.bind_partial(pipe, *args, **kwargs).arguments)
    except TypeError:
        given = dict(kwargs)
    given.update(given.pop("kwargs", {}))
    positive = [_texts(value) for name, value in given.items() if _POSITIVE.fullmatch(name) and value is not None]
    negative = [_texts(value) for name, value in given.items() if _NEGATIVE.fullmatch(name) and value is not None]
    count = max((len(texts) for texts in positive), default=0)
    embeds = given.get("prompt_embeds")
    if not count:
        count = len(embeds) if embeds is not None else 1
    rows = tuple(AskedRow(_row(positive, index), _row(negative, index)) for index in range(count))
    per_prompt = int(given.get("num_images_per_prompt") or 1)
    guidance = given.get("guidance_scale")
    inverted = isinstance(guidance, (int, float)) and guidance < 0
    return Asked(rows, per_prompt, _seeds(given.get("generator"), count * per_prompt), inverted)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for text in value if isinstance(text, str)]


def _row(fields: Sequence[Sequence[str]], index: int) -> tuple[str, ...]:
    """The texts of one row: a single text stands for every row, as pipelines have it."""
    return tuple(texts[index] if index < len(texts) else texts[0] for texts in fields if texts)


def _seeds(generator: Any, images: int) -> tuple[int | None, ...]:
    if generator is None:
        return (None,) * images
    if isinstance(generator, (list, tuple)):
        return tuple(one.initial_seed() for one in generator)
    return (generator.initial_seed(),) * images
