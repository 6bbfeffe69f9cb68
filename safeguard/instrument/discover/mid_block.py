"""Where the middle of a denoiser is: found by running it, for no table of models is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safeguard.instrument.call_values import leaves, pick, stacked
from safeguard.instrument.discover.denoiser import Denoiser
from safeguard.instrument.hooks.denoiser_hooks import Handles
from safeguard.plan.request_state import quiet
from safeguard.sdk.pipeline import FeatureSite


@dataclass(frozen=True, slots=True)
class _Seen:
    """One output of a block: where it stands, and whether its module is one of a list."""

    name: str
    shape: tuple[int, ...]
    listed: bool


def find_mid_block(denoiser: Denoiser) -> FeatureSite | None:
    """A UNet's middle block, or the image stream behind the middle block of a transformer's longest list of blocks.

    The middle block of a UNet is the block of its own, in no list, at which a picture is smallest; of the image stream it is
    known that its tokens tile the latent, as neither the text's do nor both together. None where neither is found.
    """
    seen = _outputs(denoiser)
    maps = [output for output in seen if len(output.shape) == 3 and not output.listed]
    sizes = [math.prod(output.shape[1:]) for output in seen if len(output.shape) == 3]
    if len(set(sizes)) > 1:
        smallest = [output for output in maps if math.prod(output.shape[1:]) == min(sizes)]
        return FeatureSite(f"{denoiser.name}.{smallest[-1].name}", smallest[-1].shape) if smallest else None
    text = stacked(pick(denoiser.values, denoiser.text.states)).shape[1]
    area = _area(denoiser)
    streams = [
        output
        for output in seen
        if len(output.shape) == 2 and output.listed and output.shape[0] != text and _tiles(area, output.shape[0])
    ]
    lists: dict[str, list[_Seen]] = {}
    for output in streams:
        lists.setdefault(output.name.rpartition(".")[0], []).append(output)
    if not lists:
        return None
    longest = max(lists.values(), key=len)
    middle = longest[(len(longest) - 1) // 2]
    return FeatureSite(f"{denoiser.name}.{middle.name}", middle.shape)


def _outputs(denoiser: Denoiser) -> list[_Seen]:
    """What the blocks of a denoiser give, in the order in which they are run: of those that are run once."""
    seen: dict[str, list[_Seen]] = {}
    handles = Handles()

    def watch(name: str, listed: bool) -> Any:
        def on_done(module: Any, args: tuple[Any, ...], output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            rows = [(place, part) for place, part in enumerate(parts) if isinstance(part, Tensor) and part.dim() > 2]
            for place, part in rows:
                if len(part) == denoiser.rows:
                    end = f"#{place}" if isinstance(output, tuple) else ""
                    seen.setdefault(name + end, []).append(_Seen(name + end, tuple(part.shape[1:]), listed))

        return on_done

    try:
        for name, module, listed in _blocks(denoiser.module):
            handles.add(module, "forward", watch(name, listed))
        with torch.inference_mode(False), torch.no_grad(), quiet():
            denoiser.forward(denoiser.values)
    finally:
        handles.remove()
    return [outputs[0] for outputs in seen.values() if len(outputs) == 1]


def _blocks(module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{place}", block, True) for place, block in enumerate(child))
        else:
            yield name, child, False


def _area(denoiser: Denoiser) -> int:
    """Pixels of the latent that it is called with; 0 where that is no picture."""
    grid = denoiser.grid_of(denoiser.values)
    if grid is not None:
        return grid[0] * grid[1]
    packed = [
        v for p, v in leaves(denoiser.values, 0) if isinstance(v, Tensor) and v.dim() == 3 and p not in denoiser.text.every
    ]
    return packed[0].shape[1] if packed else 0


def _tiles(area: int, tokens: int) -> bool:
    """Whether so many tokens are square patches of the latent."""
    side = math.isqrt(area // tokens) if tokens else 0
    return side > 0 and side * side * tokens == area
