"""What a text-site edit is shown of an attention, and how what it finds gets back into the attention's output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from safeguard.instrument.discover.nan_trace import Layout, Span
from safeguard.instrument.discover.sites import CrossAttentionSite, JointAttentionSite, every_head
from safeguard.instrument.hooks.denoiser_hooks import AttentionCall
from safeguard.plan.request_state import ActiveEdit
from safeguard.sdk.calls import EveryKey, PromptTokens, SiteCall
from safeguard.sdk.pipeline import TextSite


class SiteView(ABC):
    """One attention call at a text site. ``changed`` is the whole output with what was added, or None."""

    def __init__(self, site: TextSite, output: Tensor) -> None:
        self.site = site
        self.changed: Tensor | None = None
        self._given = output

    @property
    def count(self) -> int:
        """How many rows its batch has."""
        return len(self._given)

    @property
    def device(self) -> torch.device:
        return self._given.device

    @property
    def _so_far(self) -> Tensor:
        return self._given if self.changed is None else self.changed

    def add(self, active: ActiveEdit, delta: Tensor) -> None:
        """Add ``delta`` [R, N, H * d] to the output in the edit's rows."""
        self.changed = self._given.clone() if self.changed is None else self.changed
        self._add(self.changed, active.index, delta)

    @abstractmethod
    def call(self, active: ActiveEdit, progress: float) -> SiteCall:
        """What an edit sees of the rows in which it is active; its output is what other edits left."""

    @abstractmethod
    def _add(self, whole: Tensor, index: Span, delta: Tensor) -> None: ...


def _add_to_rows(whole: Tensor, index: slice | Tensor, delta: Tensor) -> None:
    """``whole[index] += delta``, in place and without a copy."""
    if isinstance(index, slice):
        whole[index].add_(delta)
    else:
        whole.index_add_(0, index, delta)


class CrossAttentionView(SiteView):
    """A separate cross-attention: ``output`` and ``query`` [B, N, H * d]; ``states`` [B or 1, L, D]."""

    def __init__(self, site: CrossAttentionSite, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> None:
        super().__init__(site.info, output)
        self._layers, self._query, self._states, self._mask = site, query, states, mask

    def call(self, active: ActiveEdit, progress: float) -> SiteCall:
        index, site = active.index, self._layers
        text = self._states[index] if len(self._states) == self.count else self._states
        return SiteCall(
            site.info,
            self._so_far[index],
            site.query(self._query[index]),
            PromptTokens(
                lambda: site.keys(text),
                lambda: site.values(text),
                None if self._mask is None else _mask_rows(self._mask, index, self.count),
            ),
            strengths=active.strengths,
            progress=progress,
            memory=active.memory,
        )

    def _add(self, whole: Tensor, index: Span, delta: Tensor) -> None:
        _add_to_rows(whole, index, delta)


class JointAttentionView(SiteView):
    """A call of torch's attention, in which some queries are image tokens and some keys text."""

    def __init__(self, site: JointAttentionSite, layout: Layout, call: AttentionCall) -> None:
        super().__init__(site.info, call.output)
        self._layout, self._call = layout, call
        self._mask = _causal(call.mask, call.query, call.key) if call.causal else call.mask

    def call(self, active: ActiveEdit, progress: float) -> SiteCall:
        index, layout = active.index, self._layout
        output = self._so_far[index][:, :, layout.image]
        bias = self._bias(index)
        return SiteCall(
            self.site,
            output.transpose(1, 2).flatten(2),
            self._call.query[index][:, :, layout.image],
            PromptTokens(
                lambda: self._heads(self._call.key[index][:, :, layout.text]),
                lambda: self._heads(self._call.value[index][:, :, layout.text]),
                None if bias is None else bias[..., layout.text],
            ),
            None if self._alone else EveryKey(lambda: self._heads(self._call.key[index]), bias, self._log_mass(index)),
            strengths=active.strengths,
            progress=progress,
            memory=active.memory,
        )

    @property
    def _alone(self) -> bool:
        """Whether there are no keys but the text's."""
        text, keys = self._layout.text, self._call.key.shape[2]
        return (len(range(*text.indices(keys))) if isinstance(text, slice) else len(text)) == keys

    def _log_mass(self, index: Span) -> Tensor | None:
        """Of the image queries in some rows, over every key: [R, H, N]."""
        return None if self._call.log_mass is None else self._call.log_mass[index][:, :, self._layout.image].float()

    def _heads(self, part: Tensor) -> Tensor:
        return every_head(part, self.site.heads)

    def _bias(self, index: Span) -> Tensor | None:
        """What the mask adds to the scores of the image queries in some rows: [R or 1, H or 1, N or 1, S]."""
        if self._mask is None:
            return None
        mask = self._mask
        while mask.dim() < 4:
            mask = mask[None]
        mask = mask[index] if len(mask) == self.count else mask
        if mask.shape[2] > 1:
            mask = mask[:, :, self._layout.image]
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))

    def _add(self, whole: Tensor, index: Span, delta: Tensor) -> None:
        heads = delta.unflatten(-1, (self.site.heads, -1)).transpose(1, 2)
        image = self._layout.image
        if isinstance(image, slice):
            _add_to_rows(whole[:, :, image], index, heads)
        else:
            spread = torch.zeros_like(whole[index])
            spread[:, :, image] = heads
            _add_to_rows(whole, index, spread)


def _causal(mask: Tensor | None, query: Tensor, key: Tensor) -> Any:
    below = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return below
    return mask & below if mask.dtype == torch.bool else mask.masked_fill(~below, float("-inf"))


def _mask_rows(mask: Tensor, index: slice | Tensor, count: int) -> Tensor:
    """An attention bias [B or 1, 1, L] for some rows: [R or 1, 1, 1, L]."""
    picked = mask[index] if len(mask) == count else mask
    return picked.unsqueeze(1) if picked.dim() == 3 else picked
