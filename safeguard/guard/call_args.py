"""What a call of a pipeline asks for, read from its arguments by name: which texts, how many images, which seeds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from safeguard.instrument.discover.modular import given_in, guidance_of, signature_of

_POSITIVE: Final = re.compile(r"prompt(_\d+)?")
_NEGATIVE: Final = re.compile(r"negative_prompt(_\d+)?")
_EMBEDDED: Final = re.compile(r"(pooled_)?prompt_embeds(_\d+)?")
_PER_PROMPT: Final = ("num_images_per_prompt", "num_videos_per_prompt")


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of a call. ``texts`` are its prompt fields, ``negative`` its negative ones. ``embedded``: some of what it
    asks for came as embeddings, which nobody can read.
    """

    texts: tuple[str, ...]
    negative: tuple[str, ...]
    embedded: bool = False

    @property
    def readable(self) -> bool:
        """Whether its texts say all that it asks for."""
        return bool(self.texts) and not self.embedded

    @property
    def source(self) -> str:
        return "prompt" if self.texts else "prompt_embeds"


@dataclass(frozen=True, slots=True)
class PipelineCall:
    """One call: its prompts, images a prompt, a seed and a generator an image (None: not given).

    ``inverted``: guidance is turned round, towards the negative prompt. ``guided``: guidance leads away from it, or is not
    given; otherwise some of the negative branch may be mixed into the image.
    """

    rows: tuple[PromptRow, ...]
    per_prompt: int
    seeds: tuple[int | None, ...]
    inverted: bool
    guided: bool = True
    generators: tuple[Any, ...] = ()

    @property
    def images(self) -> int:
        return len(self.rows) * self.per_prompt


def read_call(base: type, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> PipelineCall:
    """Read a call of ``base.__call__``. Arguments that do not fit are left for the pipeline to refuse."""
    arguments = _arguments(base, pipe, args, kwargs)
    positive = [_texts(value) for name, value in arguments.items() if _POSITIVE.fullmatch(name) and value is not None]
    negative = [_texts(value) for name, value in arguments.items() if _NEGATIVE.fullmatch(name) and value is not None]
    embeds = [value for name, value in arguments.items() if _EMBEDDED.fullmatch(name) and value is not None]
    count = max((len(texts) for texts in positive), default=0)
    if not count:
        count = len(embeds[0]) if embeds and hasattr(embeds[0], "__len__") else 1
    rows = tuple(PromptRow(_row(positive, index), _row(negative, index), bool(embeds)) for index in range(count))
    per_prompt = next((arguments[name] for name in _PER_PROMPT if isinstance(arguments.get(name), int)), 1)
    guidance = arguments.get("guidance_scale", guidance_of(pipe))
    number = guidance if isinstance(guidance, (int, float)) else 1.0
    generators = _generators(arguments.get("generator"), count * per_prompt)
    seeds = tuple(None if generator is None else generator.initial_seed() for generator in generators)
    return PipelineCall(rows, per_prompt, seeds, number < 0, number >= 1, generators)


def _arguments(base: type, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    signature = signature_of(pipe, base)
    try:
        arguments = dict(signature.bind_partial(pipe, *args, **kwargs).arguments)
    except TypeError:
        return dict(kwargs)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
    return {**given_in(arguments.get("state"), signature.parameters), **arguments}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, (list, tuple)) else []


def _row(fields: Sequence[Sequence[str]], index: int) -> tuple[str, ...]:
    """The texts of one row: a single text stands for every row, as pipelines have it."""
    return tuple(texts[index] if index < len(texts) else texts[0] for texts in fields if texts)


def _generators(generator: Any, images: int) -> tuple[Any, ...]:
    """The generator of each image: one for all of them, where the call has one."""
    several = isinstance(generator, (list, tuple))
    generators = tuple(
        candidate if hasattr(candidate, "initial_seed") else None for candidate in (generator if several else [generator])
    )
    return generators if several else generators * images
