"""torch's attention, with the log-sum-exp of every query's scores where the kernel that torch takes gives that as well.

A concept's share of the attention needs that sum over every key, the image's own among them; the fused kernels have it anyway,
and computing it anew would make the largest product of an attention twice. A kernel is asked for it only after a first call in
which its output was torch's own to the bit, and its sum right; else the output is torch's, and the sum is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

original: Final = functional.scaled_dot_product_attention
_agrees: dict[Any, bool] = {}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    gqa: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention over [B, H, S, d], as `torch.nn.functional.scaled_dot_product_attention` gives it; and log sum exp of each
    query's scaled and masked scores, [B, H, N]. That is None where no kernel gives it: with dropout, a causal mask or keys that
    heads share, where a gradient is wanted, and while torch compiles.
    """
    without = torch.compiler.is_compiling() or dropout or causal
    kernel = None if without else _kernel(query, key, value, mask, scale)
    if kernel is not None and _agrees.get(kernel[0]):
        return kernel[1]()
    output = original(query, key, value, mask, dropout, causal, scale=scale, enable_gqa=gqa)
    if kernel is not None and kernel[0] not in _agrees and output.isfinite().all():
        _agrees[kernel[0]] = _agree(output, *kernel[1](), query, key, mask, scale)
    return output, None


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Any, Callable[[], tuple[Tensor, Tensor]]] | None:
    """The kernel that torch would take, as it is called for its sums too; with what tells it from others."""
    plain = type(query) is Tensor and query.dim() == 4 and key.shape[:2] == query.shape[:2]
    choose = getattr(torch, "_fused_sdp_choice", None)
    if not plain or choose is None or query.requires_grad or key.requires_grad:
        return None
    choice = choose(query, key, value, attn_mask=mask, scale=scale)
    where, ops = query.device.type, torch.ops.aten
    tag = (choice, where, query.dtype, query.shape[-1], mask is None)
    if (choice, where) == (1, "cpu"):
        bias = _additive(mask, query)
        return tag, lambda: ops._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias, scale=scale)
    if mask is None and where == "cuda" and query.shape[-1] % 8 == 0:
        if choice == 1:
            return tag, lambda: ops._scaled_dot_product_flash_attention(query, key, value, scale=scale)[:2]
        if choice == 2:
            return tag, lambda: ops._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=scale)[:2]
    return None


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))


def _agree(
    expected: Tensor, output: Tensor, sums: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> bool:
    """Whether a kernel gave just what torch gives, and whether its sums are right for the first queries of a first head."""
    if output.shape != expected.shape or sums.shape != query.shape[:3] or not torch.equal(output, expected):
        return False
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = factor * query[:1, :1, :8].float() @ key[:1, :1].float().transpose(-1, -2)
    bias = _additive(mask, query)
    if bias is not None:
        scores = scores + bias.expand(*query.shape[:3], key.shape[2])[:1, :1, :8]
    return torch.allclose(sums[:1, :1, :8].float(), scores.logsumexp(-1), rtol=1e-2, atol=1e-2)
