"""What a tiny random pipeline is, and the few helpers that build every one of them.

A family lays its parts on a shelf: a mapping from the name of a slot to what makes the part. A pipeline takes from the
shelf the slots that its class asks for, so derived classes (image to image, inpainting, ...) share one shelf. A name that
starts with a dot is set on the pipeline afterwards: sizes that its class keeps as attributes.
"""

from __future__ import annotations

import inspect
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from safeguard.instrument.discover.modular import is_modular

SIDE: Final = 32  # pixels
STEPS: Final = 2

Make = Callable[[], Any]
Shelf = Mapping[str, Any]  # a callable makes the part; anything else is passed as it is


@dataclass(frozen=True, slots=True)
class Whole:
    """A tiny random pipeline, and how to call it."""

    pipeline: str
    build: Make
    call: Callable[[Sequence[str]], dict[str, Any]]
    prompts: int = 3
    note: str = ""

    def first(self, output: Any) -> Any:
        return output[0]


class Omit:
    """Marks a keyword that a pipeline knows and a call leaves to its default."""


OMIT: Final = Omit()


def run(whole: Whole, pipe: Any, prompts: Sequence[str], **changes: Any) -> Tensor:
    """Run a pipeline and give its first output as one float tensor [images, ...].

    Some classes draw a few numbers past the generators that they are given: the global seed is set for these.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        return as_tensor(whole.first(pipe(**{**whole.call(prompts), **changes})))


def as_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, (np.ndarray, Image.Image)):
        return torch.from_numpy(np.array(output)).float()
    return torch.stack([as_tensor(item) for item in output])


def stir(module: nn.Module) -> nn.Module:
    """Give every weight that was made as zeros, or not at all, small random numbers: nothing computed is lost."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            blank = name.endswith("pad_token") or not (name.endswith("bias") or weight.any())
            if blank and weight.is_floating_point():
                weight.normal_(std=0.1)
    return module


def part(name: str, loud: float = 1.0, **options: Any) -> Make:
    """What makes a network of diffusers from its configuration.

    In a few random networks the text hardly matters: their matrices are made larger (``loud``).
    """

    def make() -> Any:
        module = stir(getattr(diffusers, name)(**options))
        with torch.no_grad():
            for weight in module.parameters():
                if loud != 1.0 and weight.ndim > 1:
                    weight.mul_(loud)
        return module.eval()

    return make


def plain(name: str, **options: Any) -> Make:
    """What makes a part without weights, a scheduler for instance."""
    return lambda: getattr(diffusers, name)(**options)


def several(makes: Mapping[str, Any]) -> dict[str, Any]:
    """Make the parts, each from a seed of its own: a part stays the same whatever stands beside it."""
    made = {}
    for slot, make in makes.items():
        torch.manual_seed(zlib.crc32(slot.encode()))
        made[slot] = make() if callable(make) else make
    return made


def mend(module: ModuleType) -> None:
    """Some pipelines clean their prompts with a package that need not be there: then texts stay as they are."""
    if "is_ftfy_available" in vars(module) and "ftfy" not in vars(module):
        vars(module)["ftfy"] = SimpleNamespace(fix_text=str)


def assemble(pipeline: str, shelf: Shelf) -> Any:
    kind = getattr(diffusers, pipeline)
    mend(sys.modules[kind.__module__])
    wanted = inspect.signature(kind.__init__).parameters
    pipe = kind(**several({slot: shelf[slot] for slot in wanted if slot in shelf}))
    pipe.set_progress_bar_config(disable=True)
    for name, value in shelf.items():
        if name.startswith("."):
            setattr(pipe, name[1:], value)
    for made in pipe.components.values():
        if isinstance(made, nn.Module):
            made.eval()
    return pipe


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + place) for place in range(count)]


def picture(seed: int = 0, mode: str = "RGB", side: int = SIDE) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB").convert(mode)


def pictures(count: int) -> list[Image.Image]:
    return [picture(place) for place in range(count)]


def masks(count: int) -> list[Image.Image]:
    return [picture(50 + place, "L") for place in range(count)]


def one_picture(count: int) -> Image.Image:
    return picture()


def one_mask(count: int) -> Image.Image:
    return picture(50, "L")


def arguments(pipeline: str, prompts: Sequence[str], alone: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of one call: what nearly every class knows, and what this one is given besides.

    A callable among the given is called with the number of prompts.
    """
    kind = getattr(diffusers, pipeline)
    known = kind().default_call_parameters if is_modular(kind) else inspect.signature(kind.__call__).parameters
    count = len(prompts)
    usual: dict[str, Any] = {
        "prompt": prompts[0] if alone else list(prompts),
        "num_inference_steps": STEPS,
        "height": SIDE,
        "width": SIDE,
        "generator": generators(1)[0] if alone else generators(count),
        "output_type": "latent",
    }
    options = {name: value for name, value in usual.items() if name in known}
    options |= {name: value(count) if callable(value) else value for name, value in given.items()}
    return {name: value for name, value in options.items() if value is not OMIT}


def whole(pipeline: str, shelf: Shelf, given: Mapping[str, Any] | None = None, prompts: int = 3, note: str = "") -> Whole:
    return Whole(
        pipeline,
        lambda: assemble(pipeline, shelf),
        lambda asked: arguments(pipeline, asked, prompts == 1, given or {}),
        prompts,
        note,
    )


def table(shelf: Shelf, rows: Mapping[str, Mapping[str, Any]], prompts: int = 3) -> list[Whole]:
    """Classes over the same parts: each row is a class and what its calls are given."""
    return [whole(pipeline, shelf, given, prompts) for pipeline, given in rows.items()]
