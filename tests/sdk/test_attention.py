"""The sums of a fused attention's softmax: taken with its output, and only where they are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from safeguard.sdk import attention as module
from safeguard.sdk.attention import attention

MASKS = ("none", "bool", "float")


def _parts(seed: int, queries: int, keys: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, count, width, generator=source).to(dtype) for count in (queries, keys, keys)]


def _mask(kind: str, seed: int, queries: int, keys: int) -> Tensor | None:
    kept = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(seed)) < 0.7
    kept[..., 0] = True
    return {"none": None, "bool": kept, "float": torch.zeros(kept.shape).masked_fill(~kept, -3.0)}[kind]


@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 70),
    keys=st.integers(1, 70),
    width=st.sampled_from([4, 16, 48]),
    kind=st.sampled_from(MASKS),
    scale=st.sampled_from([None, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_its_output_is_torchs_own_and_its_sums_are_right(
    seed: int, queries: int, keys: int, width: int, kind: str, scale: float | None
) -> None:
    query, key, value = _parts(seed, queries, keys, width)
    mask = _mask(kind, seed, queries, keys)
    for _ in range(2):  # the first call of a kind is the one in which a kernel is tried
        output, sums = attention(query, key, value, mask, scale=scale)
        assert torch.equal(output, functional.scaled_dot_product_attention(query, key, value, mask, scale=scale))
    assert sums is not None
    scores = query @ key.transpose(-1, -2) * (width**-0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if kind == "bool" else scores + mask
    torch.testing.assert_close(sums, scores.logsumexp(-1))


@pytest.mark.parametrize("how", ["causal", "grouped", "differentiated"])
def test_what_no_kernel_gives_sums_for_is_torchs_attention_without(how: str) -> None:
    query, key, value = _parts(1, 8, 8, 16)
    options: dict[str, bool] = {}
    if how == "causal":
        options = {"is_causal": True}
    elif how == "grouped":
        key, value, options = key[:, :1], value[:, :1], {"enable_gqa": True}
    else:
        query.requires_grad_()
    output, sums = attention(query, key, value, causal=how == "causal", gqa=how == "grouped")
    assert sums is None
    assert torch.equal(output, functional.scaled_dot_product_attention(query, key, value, **options))


def test_a_kernel_that_gives_another_output_than_torchs_function_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody put an attention of his own in torch's place before safeguard was imported."""
    monkeypatch.setattr(module, "_agrees", {})

    def theirs(*given: Any, **options: Any) -> Tensor:
        return 2 * functional.scaled_dot_product_attention(*given, **options)

    monkeypatch.setattr(module, "original", theirs)
    query, key, value = _parts(2, 8, 8, 16)
    for _ in range(2):
        output, sums = attention(query, key, value)
        assert sums is None
        assert torch.equal(output, 2 * functional.scaled_dot_product_attention(query, key, value))


def test_numbers_that_are_not_finite_decide_nothing_about_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_agrees", {})
    query, key, value = _parts(3, 8, 8, 16)
    assert attention(query, key, value * torch.nan)[1] is None
    attention(query, key, value)
    assert attention(query, key, value)[1] is not None
