"""Several concepts erased at one place: what they share is taken once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

SWEEPS: Final = 8  # over all concepts; what they mean alike is found in the first


def overlap_factors(products: Tensor) -> Tensor:
    """How much of each concept's own change is needed when all are made together: x in [0, 1], [..., C]. A number to gradients.

    ``products`` [..., C, C] are those of the changes v_c that the concepts would make alone. Changes that have nothing in
    common are made whole. Where they point the same way their sum would go too far, by as many times as there are concepts; so
    x is that of the smallest change that still goes each one's whole way along it: |sum x_j v_j| least where
    <sum x_j v_j, v_c> >= <v_c, v_c> for all c; but no x is above 1 (changes against one another could only be had in full by
    both growing).

    The dual problem has the same x, min <x, G x> / 2 - <x, diag G>; it is solved coordinate by coordinate (Hildreth, 1957).
    """
    import torch

    with torch.no_grad():
        rates = products.movedim((-2, -1), (0, 1)).contiguous()  # sums over a short last axis are slow
        own = rates.diagonal().movedim(-1, 0)
        rates = rates / own.clamp_min(1e-20)[:, None]  # a change of nothing asks for nothing
        factors = torch.ones_like(own)
        for column, rate in enumerate(rates):
            rate[column] = 0
        for _ in range(SWEEPS):
            for column, rate in enumerate(rates):
                factors[column] = (1 - (rate * factors).sum(0)).clamp_(0, 1)
        return factors.movedim(0, -1)
