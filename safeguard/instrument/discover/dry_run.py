"""Running a pipeline up to its denoiser and catching what it would be called with: no table of ways to encode a text."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import (
    Path,
    TextArguments,
    Values,
    argument_names,
    inner,
    leaves,
    named,
    row_count,
)
from safeguard.instrument.discover.modular import set_apart, signature_of, unheard

SIDES: Final = (8, 16, 32, 64)  # latent pixels a side, tried in turn: a UNet of four levels still sees one pixel in its middle
PICTURES: Final = ("image", "mask_image", "control_image")
FRAMES: Final = 9
OURS: Final = frozenset({"prompt", "num_inference_steps", "output_type", "generator", "negative_prompt"})  # said by each trial
TOKEN_STATES: Final = "token states"  # what is missing where a component is given no text
TEXTS: Final = ("", "a picture of a person", "one small picture of a wooden house")
SWAPPED: Final = (TEXTS[0], TEXTS[2], TEXTS[1])


class _Caught(BaseException):
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = (args, kwargs)


class _Catcher:
    """Stands in for a denoiser in a copy of the pipeline: passes for it, by ``isinstance`` too; to call it ends the run."""

    def __init__(self, denoiser: Any) -> None:
        self.__dict__["_denoiser"] = denoiser

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(inner(self.__dict__["_denoiser"]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _Caught(args, kwargs)


class NeverCalledError(CapabilityError):
    """A run of the pipeline ended without a call of this component."""


@dataclass(frozen=True, slots=True)
class Catch:
    """What to run a pipeline on: the side of its latent, and what is asked for besides the prompt.

    ``example``: what a call of one prompt needs besides, where a prompt and a blank picture do not do; it overrides the rest.
    """

    side: int | None = SIDES[0]
    guidance: float | None = 1.0
    negative: tuple[str, ...] | None = None
    seed: int = 0
    pictures: bool = False  # give a blank one, too, where a picture may be left out
    alone: bool = False  # one text a run, said as a string
    gradients: bool = False  # keep those of what is caught: pipelines are called without
    example: Mapping[str, Any] = field(default_factory=dict)


def catch_call(pipe: Any, base: type, name: str, texts: Sequence[str], how: Catch) -> Values:
    """The arguments with which ``pipe`` would first call its denoiser ``name`` for ``texts``, by name.

    Runs the pipeline's own ``__call__`` on a shallow copy with a scheduler of its own, so that a request under way is not
    disturbed. Raises CapabilityError where the pipeline needs more than a prompt and an image.
    """
    denoiser = pipe.__dict__[name] if name in pipe.__dict__ else getattr(pipe, name)
    twin = copy.copy(pipe)
    object.__setattr__(twin, "__class__", base)
    set_apart(twin, base, how.guidance)
    twin.__dict__[name] = _Catcher(denoiser)
    twin.__dict__["_progress_bar_config"] = {"disable": True}
    called: Callable[..., object] = inspect.unwrap(base.__call__) if how.gradients else base.__call__
    try:
        with _processors_kept(pipe), unheard():
            called(twin, **_wanted(pipe, base, list(texts), how))
    except _Caught as caught:
        return named(argument_names(inner(denoiser)), *caught.call)
    except Exception as fault:
        raise CapabilityError(
            f"{base.__name__} could not be run on {'the example' if how.example else 'a prompt alone'}, so its protection "
            f"cannot be tested ({type(fault).__name__}: {fault}); say what a call needs: protect(..., example={{...}})",
            pipeline=base.__name__,
            missing="a self-test",
        ) from fault
    raise NeverCalledError(f"{base.__name__} never called its {name}", pipeline=base.__name__, missing=name)


@contextlib.contextmanager
def _processors_kept(pipe: Any) -> Iterator[None]:
    """Some pipelines (PAG) exchange attention processors for a run, and put them back only where it comes to its end."""
    parts = [inner(part) for part in pipe.components.values() if hasattr(inner(part), "attn_processors")]
    before = [dict(part.attn_processors) for part in parts]
    try:
        yield
    finally:
        for part, processors in zip(parts, before, strict=True):
            now = part.attn_processors
            if any(now.get(name) is not processor for name, processor in processors.items()):
                part.set_attn_processor(dict(processors))


def _wanted(pipe: Any, base: type, texts: list[str], how: Catch) -> Values:
    parameters = signature_of(pipe, base).parameters
    generators = [torch.Generator().manual_seed(how.seed + place) for place in range(len(texts))]
    wanted: Values = {
        "prompt": texts[0] if how.alone else texts,
        "num_inference_steps": 4,
        "output_type": "latent",
        "generator": generators[0] if how.alone else generators,
        "num_frames": FRAMES,
    }
    if how.guidance is not None:
        wanted["guidance_scale"] = how.guidance
    if how.negative is not None:
        wanted["negative_prompt"] = how.negative[0] if how.alone else list(how.negative)
    side = None if how.side is None else how.side * int(getattr(pipe, "vae_scale_factor", None) or 8)
    if side is not None:
        wanted |= {"height": side, "width": side, "max_area": side * side}
        wanted |= {"_auto_resize": False, "use_resolution_binning": False}  # the size is meant as it is said
    for image in PICTURES:
        if image in parameters and (how.pictures or parameters[image].default is inspect.Parameter.empty):
            wanted[image] = _blank(side or 512, len(texts))
    example = {key: value for key, value in how.example.items() if key not in OURS}
    return {**{key: value for key, value in wanted.items() if key in parameters}, **example}


def takes_more_pictures(pipe: Any, base: type, example: Mapping[str, Any]) -> bool:
    """Whether a picture may be left out: where none may, to ask for pictures gives the same call."""
    parameters = signature_of(pipe, base).parameters
    free = [name for name in PICTURES if name in parameters and name not in example]
    return any(parameters[name].default is not inspect.Parameter.empty for name in free)


def _blank(side: int, count: int) -> list[Any]:
    from PIL import Image

    return [Image.new("RGB", (side, side), (128, 128, 128))] * count


def text_arguments(left: Values, right: Values, noisy: Values, count: int, stride: int, *, who: str) -> TextArguments:
    """Which arguments say the text and nothing else: from two calls that differ only in the order of two texts, and one that
    differs from the first only in its noise. Texts stand at every ``stride``-th row.

    Raises CapabilityError where none does token by token, or one does in which rows cannot be told apart.
    """
    tokens: list[Path] = []
    pooled: list[Path] = []
    rest: list[Path] = []
    rows = count * stride
    theirs, others = dict(leaves(right, rows)), dict(leaves(noisy, rows))
    for path, value in leaves(left, rows):
        mates = (theirs.get(path), others.get(path))
        if any(type(mate) is not type(value) for mate in mates) or _equal(value, mates[0]) or not _equal(value, mates[1]):
            continue
        if row_count(value) not in (count, count * stride):
            raise CapabilityError(
                f"{who} is given text in {'.'.join(path)!r}, in which the rows of a batch cannot be told apart",
                pipeline=who,
                missing="rows",
            )
        first = value[0]
        if not isinstance(first, Tensor) or not first.dtype.is_floating_point or first.dim() == 0:
            rest.append(path)
        elif first.dim() >= 2 and not (isinstance(value, Tensor) and min(first.shape[:-1]) == max(first.shape[:-1]) == 1):
            tokens.append(path)
        elif _like_mask(value):
            rest.append(path)
        else:
            pooled.append(path)
    if not tokens:
        raise CapabilityError(
            f"{who} is given no text token by token, so there is none to erase by", pipeline=who, missing=TOKEN_STATES
        )
    return TextArguments(tokens[0], tuple(tokens[1:]), tuple(pooled), tuple(rest))


def _like_mask(value: Any) -> bool:
    parts = [value] if isinstance(value, Tensor) else value
    return all(bool(((part == 0) | (part == 1)).all()) for part in parts)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    return isinstance(left, Tensor) == isinstance(right, Tensor) and bool(left == right)


@contextlib.contextmanager
def watching_encoders(pipe: Any) -> Iterator[list[tuple[str, Tensor]]]:
    """Every batch of token numbers [n, l] that goes into a text encoder of ``pipe`` meanwhile, with the encoder's name."""
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        def on_call(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if isinstance(ids, Tensor) and not ids.dtype.is_floating_point and ids.dim() == 2:
                seen.append((name, ids.detach().cpu()))

        return on_call

    handles = [
        part.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and "text_encoder" in name
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
