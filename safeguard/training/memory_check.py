"""Whether there is memory for a training, asked before its first update."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from safeguard.errors import SafeguardError
from safeguard.training.frozen_pipeline import FrozenPipeline


def require_memory(frozen: FrozenPipeline, needed: int, what: str, less: str) -> None:
    """Raises SafeguardError where so many bytes are not free on the denoiser's device; ``less`` says how it takes fewer."""
    free = free_memory(next(frozen.denoiser.parameters()).device)
    if needed > free:
        raise SafeguardError(
            f"training {what} of {frozen.attachment.name} takes {needed / 2**20:.0f} MB besides the pipeline, and "
            f"{free / 2**20:.0f} MB are free; {less}, or train where there is more memory"
        )


def require_backward(
    frozen: FrozenPipeline,
    row: Callable[[], Tensor],
    rows: int,
    what: str,
    *,
    known: Iterable[Tensor] = (),
    besides: int = 0,
    less: str = "",
) -> None:
    """Raises SafeguardError where an update on so many rows does not fit, by the loss of one ``row``; ``besides`` are bytes
    that it takes besides, and ``known`` as in `kept_for_backward`.
    """
    needed = rows * kept_for_backward(frozen, row, known) + besides
    require_memory(frozen, needed, what, f"take fewer pictures at once with --batch{less}")


def kept_for_backward(frozen: FrozenPipeline, loss: Callable[[], Tensor], known: Iterable[Tensor] = ()) -> int:
    """Bytes that a loss keeps for its backward pass, each storage once; but for the pipeline's weights and ``known`` ones.
    What it draws of torch's own numbers is drawn as if it had not been asked.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # held here, so that no other takes its place
        storages[storage.data_ptr()] = storage
        return tensor

    device = next(frozen.denoiser.parameters()).device
    drawing = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with drawing, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    parts = [part for part in frozen.pipe.components.values() if isinstance(part, nn.Module)]
    weights = [weight for part in parts for weight in (*part.parameters(), *part.buffers())]
    there = {held.untyped_storage().data_ptr() for held in (*weights, *known)}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in there)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, or lie there unused in torch's hands; for any but CUDA those of the machine."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    import psutil

    return int(psutil.virtual_memory().available)
