"""Keys and values of erasure prompts at joint sites: recorded in a pass of their own.

Where text and image meet in one attention, the text's keys and values depend on the time and, a little, on the image. So the
denoiser is run once on the erasure prompts, each beside one small image of noise, and what its text tokens are at every site
is kept for that time: one pass for each step of a schedule, and none for any later request with the same schedule.
"""

from __future__ import annotations

import threading
import weakref
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

MOMENTS: Final = 128  # times that are kept, the least used forgotten first


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


Tokens = dict[int, tuple[Tensor, Tensor]]  # keys and values of one text, or of several one after another, by site


class RecordedTexts:
    """What texts are at joint sites, by denoiser and time: each text is recorded once for all that ask for it, as long as
    somebody does and the weights stay.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users: weakref.WeakSet[TextKVCache] = weakref.WeakSet()
        self._moments: OrderedDict[tuple[str, Numbers], dict[EncodedText, Tokens]] = OrderedDict()
        self._stamps: dict[str, Any] = {}
        self._here = threading.local()

    @property
    def now(self) -> tuple[Any, Mapping[EncodedText, Tokens]]:
        """The time that `enter` was last called with in this thread, and what is known of it."""
        known: tuple[Any, Mapping[EncodedText, Tokens]] = getattr(self._here, "moment", (None, {}))
        return known

    def enter(self, name: str, numbers: Numbers, stamp: Any) -> dict[EncodedText, Tokens]:
        """Come to a time, under the lock: what is known of it. All is forgotten when weights have changed (``stamp``)."""
        if stamp is None or stamp != self._stamps.get(name):
            for old in [key for key in self._moments if key[0] == name]:
                del self._moments[old]
            self._stamps[name] = stamp
        moment = self._moments.setdefault((name, numbers), {})
        self._moments.move_to_end((name, numbers))
        while len(self._moments) > MOMENTS:
            self._moments.popitem(last=False)
        self._here.moment = ((name, numbers), moment)
        return moment

    def forget_unused(self) -> None:
        """Drop the texts that nobody asks for any more."""
        used = {text for user in self.users for text in user.texts}
        for moment in self._moments.values():
            for text in [text for text in moment if text not in used]:
                del moment[text]


class TextKVCache:
    """Keys and values of fixed texts at every site (``safeguard.sdk.pipeline.TokenKeys``): joint sites' as recorded for the
    time that `prepare` was last called for in this thread, separate sites' as their own layers make them.
    """

    def __init__(
        self,
        texts: Sequence[EncodedText],
        rows: Callable[[str, Sequence[str]], list[TextRow]],
        sites: Callable[[], Sequence[Site]],
        recorded: RecordedTexts,
    ) -> None:
        self.texts = tuple(texts)
        self._rows, self._sites, self._recorded = rows, sites, recorded
        self._separate = SiteTokens(texts, sites)
        self._kept: OrderedDict[Any, tuple[list[Tokens], Tokens]] = OrderedDict()
        recorded.users.add(self)

    def select(self, texts: Sequence[int]) -> TextKVCache:
        """Of some of the texts, in this order."""
        return TextKVCache([self.texts[place] for place in texts], self._rows, self._sites, self._recorded)

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, each [H, T, d]. Raises CapabilityError where no time is known to have recorded for."""
        if not self._sites()[site.index].recorded:
            return self._separate.at(site)
        key, moment = self._recorded.now
        parts = [moment[text] for text in self.texts if text in moment]
        if len(parts) < len(self.texts) or site.index not in parts[0]:
            raise CapabilityError(
                f"attention {site.name} was reached past the call of its denoiser; call the denoiser as a whole",
                missing="a call of the denoiser",
            )
        known = self._kept.get(key)
        if known is None or any(one is not other for one, other in zip(known[0], parts, strict=True)):
            known = self._keep(key, parts, {})
        if site.index not in known[1]:
            keys, values = zip(*(part[site.index] for part in parts), strict=True)
            known[1][site.index] = torch.cat(keys, 1), torch.cat(values, 1)
        return known[1][site.index]

    def _keep(self, key: Any, parts: list[Tokens], joined: Tokens) -> tuple[list[Tokens], Tokens]:
        known = self._kept[key] = parts, joined
        while len(self._kept) > MOMENTS:
            self._kept.popitem(last=False)
        return known

    def prepare(self, denoiser: Denoiser, numbers: Numbers, stamp: Any) -> None:
        """Have what belongs to this time at hand; texts are recorded now if new, or if weights have changed (``stamp``)."""
        with self._recorded.lock:
            moment = self._recorded.enter(denoiser.name, numbers, stamp)
            missing = [text for text in dict.fromkeys(self.texts) if text not in moment]
            if not missing:
                return
            self._recorded.forget_unused()
            sites = self._record(denoiser, numbers, missing)
            for place, text in enumerate(missing):
                moment[text] = {index: (keys[place], values[place]) for index, (keys, values) in sites.items()}

    def _record(
        self, denoiser: Denoiser, numbers: Numbers, texts: Sequence[EncodedText]
    ) -> dict[int, tuple[Sequence[Tensor], Sequence[Tensor]]]:
        """Keys and values of each text at each site of the denoiser."""
        sites = [site for site in self._sites() if site.recorded and site.owner == denoiser.name]
        joint = [site for site in sites if isinstance(site, JointAttentionSite)]
        if not sites:
            return {}
        values = call_with(denoiser, self._rows(denoiser.name, [text.text for text in texts]), numbers)
        shapes = denoiser.learn(self._sites(), values)
        tokens: Tokens = {}
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
        return {site.info.index: _trimmed(tokens, site, texts) for site in sites}


def _trimmed(tokens: Tokens, site: Site, texts: Sequence[EncodedText]) -> tuple[list[Tensor], list[Tensor]]:
    """The tokens that each text was trimmed to, [H, t, d], keys and values."""
    if site.info.index not in tokens:
        raise CapabilityError(f"attention {site.info.name} was not reached with erasure prompts", missing="text sites")
    parts = []
    for part in tokens[site.info.index]:
        times = len(part) // len(texts)
        order = range(0, len(part), times) if site.order != [1] and times > 1 else range(len(texts))
        rows = [part[place] for place in order][: len(texts)]
        parts.append([_picked(row, text).contiguous() for row, text in zip(rows, texts, strict=True)])
    return parts[0], parts[1]


def _picked(row: Tensor, text: EncodedText) -> Tensor:
    """The trimmed tokens among the text columns [H, L, d] of one text: by their places, where columns are tokens."""
    places = [place for place in text.places if place < row.shape[1]]
    return row[:, places] if len(places) == len(text.places) else row
