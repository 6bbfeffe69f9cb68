"""Keys and values of erasure prompts at joint sites: recorded in a pass of their own.

Where text and image meet in one attention, the text's keys and values depend on the time and, a little, on the image. So the
denoiser is run once on the erasure prompts, each beside one small image of noise, and what its text tokens are at every site
is kept for that time: one pass for each step of a schedule, and none for any later request with the same schedule.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import Path, TextRow, Values, leaves
from safeguard.instrument.discover.denoiser import TIMES, Denoiser, Numbers, call_with
from safeguard.instrument.discover.sites import CrossAttentionSite, JointAttentionSite, Site, SiteTokens, every_head
from safeguard.instrument.hooks import sdpa
from safeguard.instrument.hooks.denoiser_hooks import Handles, text_of
from safeguard.sdk.pipeline import EncodedText, TextSite

MOMENTS: Final = 128  # kept for each set of texts, the least used forgotten first


def numbers_of(values: Values, rows: int, skip: Sequence[Path] = ()) -> Numbers:
    """The single numbers of a call (time, embedded guidance), those of its first row where each row has its own."""
    numbers: list[tuple[Path, Tensor | float]] = []
    for path, value in leaves(values, rows):
        if path in skip or isinstance(value, bool):
            continue
        if isinstance(value, Tensor) and value.dim() <= 1 and value.numel() and value.dtype != torch.bool:
            numbers.append((path, value.flatten()[0]))
        elif isinstance(value, (int, float)) and path[-1] in TIMES:  # other numbers are sizes
            numbers.append((path, float(value)))
    tensors = [value.double() for _, value in numbers if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])  # one transfer from the device
    return tuple((path, next(read) if isinstance(value, Tensor) else value) for path, value in numbers)


class _Listener:
    """Takes down the keys and values of text columns of one joint site."""

    def __init__(self, kept: dict[int, tuple[Tensor, Tensor]], sites: Mapping[int, JointAttentionSite], shapes: Any) -> None:
        self._kept, self._sites, self._shapes = kept, sites, shapes

    def attend(
        self, turn: int, compute: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        first = self._sites.get(0)
        site = first if first is not None and first.each else self._sites.get(turn)
        layout = None if site is None else site.layout(self._shapes, turn)
        if site is not None and layout is not None:
            keys, values = (every_head(part, query.shape[1])[:, :, layout.text].detach().clone() for part in (key, value))
            before = self._kept.get(site.info.index) if site.each else None
            self._kept[site.info.index] = (keys, values) if before is None else _behind(before, (keys, values))
        return compute(query, key, value, **options)


def _taking(tokens: dict[int, tuple[Tensor, Tensor]], site: CrossAttentionSite) -> Callable[..., None]:
    """A hook that takes down what a separate site makes of the text that comes to it."""

    def on_call(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states = text_of(args, kwargs)
        if states is not None:
            tokens[site.info.index] = site.keys(states).clone(), site.values(states).clone()

    return on_call


def _behind(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([before[0], after[0]]), torch.cat([before[1], after[1]])


class TextKVCache:
    """Keys and values of fixed texts at every site (``safeguard.sdk.pipeline.TokenKeys``): joint sites' as recorded for the
    time that `prepare` was last called with in this thread, separate sites' as their own layers make them.
    """

    def __init__(
        self,
        texts: Sequence[EncodedText],
        rows: Callable[[str, Sequence[str]], list[TextRow]],
        sites: Callable[[], Sequence[Site]],
    ) -> None:
        self._texts = list(texts)
        self._rows, self._sites = rows, sites
        self._separate = SiteTokens(texts, sites)
        self._kept: OrderedDict[Any, dict[int, tuple[Tensor, Tensor]]] = OrderedDict()
        self._now = threading.local()
        self._lock = threading.Lock()
        self._stamp: Any = None

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, each [H, T, d]. Raises CapabilityError where no time is known to have recorded for."""
        if not self._sites()[site.index].recorded:
            return self._separate.at(site)
        tokens: dict[int, tuple[Tensor, Tensor]] | None = getattr(self._now, "kept", None)
        if tokens is None or site.index not in tokens:
            raise CapabilityError(
                f"attention {site.name} was reached past the call of its denoiser; call the denoiser as a whole",
                missing="a call of the denoiser",
            )
        return tokens[site.index]

    def prepare(self, denoiser: Denoiser, numbers: Numbers, stamp: Any) -> None:
        """Have what belongs to this time at hand, recorded now if it is new or weights have changed (``stamp``)."""
        key = (denoiser.name, numbers)
        with self._lock:
            if stamp is None or stamp != self._stamp:
                self._kept.clear()
                self._stamp = stamp
            if key not in self._kept:
                self._kept[key] = self._record(denoiser, numbers)
                while len(self._kept) > MOMENTS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            self._now.kept = self._kept[key]

    def _record(self, denoiser: Denoiser, numbers: Numbers) -> dict[int, tuple[Tensor, Tensor]]:
        sites = [site for site in self._sites() if site.recorded and site.owner == denoiser.name]
        joint = [site for site in sites if isinstance(site, JointAttentionSite)]
        if not sites:
            return {}
        values = call_with(denoiser, self._rows(denoiser.name, [text.text for text in self._texts]), numbers)
        shapes = denoiser.learn(self._sites(), values)
        tokens: dict[int, tuple[Tensor, Tensor]] = {}
        handles = Handles()
        for name, module in {site.name: site.module for site in joint}.items():
            turns = {site.turn: site for site in joint if site.name == name}
            sdpa.listen(handles, module, _Listener(tokens, turns, shapes), -1)
        for site in sites:
            if isinstance(site, CrossAttentionSite):
                handles.add(site.attention, "forward_pre", _taking(tokens, site), with_kwargs=True)
        try:
            with torch.inference_mode(False), torch.no_grad():
                denoiser.forward(values)
        finally:
            handles.remove()
            sdpa.leave_attention()
        return {site.info.index: self._tokens(tokens, site) for site in sites}

    def _tokens(self, tokens: Mapping[int, tuple[Tensor, Tensor]], site: Site) -> tuple[Tensor, Tensor]:
        """Of every text the tokens that it was trimmed to, one text after another: [H, T, d]."""
        if site.info.index not in tokens:
            raise CapabilityError(f"attention {site.info.name} was not reached with erasure prompts", missing="text sites")
        parts = []
        for part in tokens[site.info.index]:
            times = len(part) // len(self._texts)
            order = range(0, len(part), times) if site.order != [1] and times > 1 else range(len(self._texts))
            rows = [part[place] for place in order][: len(self._texts)]
            picked = [_picked(row, text) for row, text in zip(rows, self._texts, strict=True)]
            parts.append(torch.cat(picked, 1).contiguous())
        return parts[0], parts[1]


def _picked(row: Tensor, text: EncodedText) -> Tensor:
    """The trimmed tokens among the text columns [H, L, d] of one text: by their places, where columns are tokens."""
    places = [place for place in text.places if place < row.shape[1]]
    return row[:, places] if len(places) == len(text.places) else row
