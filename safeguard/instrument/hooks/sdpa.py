"""The tap: torch's attention function, looked into at the attentions that read text beside image tokens.

Denoisers whose image tokens meet the text in one attention (joint attention, one stream), or that turn queries and keys
before it (rotary embeddings), all end in ``torch.nn.functional.scaled_dot_product_attention``, looked up there at every call.
While a guard needs it, that name holds `attend`, which gives what torch gives, and then lets the attention's own guard look.
Which attention calls is told by hooks on its module: outside of these, `attend` does nothing else.

While ``torch.compile`` traces, `attend` calls a custom operator: a graph holds the operator and nothing of any plan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from safeguard.instrument.hooks.denoiser_hooks import AttentionCall, Handles, register_op, serving, tag
from safeguard.sdk.attention import attention, original
from safeguard.sdk.pipeline import TextSite

_here = threading.local()  # ``place``: whose attention is under way in this thread; ``turn``: its calls so far
_users: set[int] = set()
_installing = threading.Lock()


class Listener(Protocol):
    """Who looks at attention calls of one module: the call's tensors, and torch's own attention to call."""

    def attend(
        self, turn: int, compute: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor: ...


class TappedAttention(Protocol):
    """A joint text site: the call, by its turn, of the attention that a module makes; or ``each`` of them."""

    info: TextSite
    module: Any
    turn: int
    each: bool


class Place:
    """The attention calls of one module that are text sites: the number of the host, and a site's index for each turn; or one
    site for ``every`` turn.
    """

    def __init__(self, host: int, sites: Sequence[int], *, every: bool = False) -> None:
        self.host = host
        self.sites = tuple(sites)  # -1 where a turn reads no text
        self.every = every


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``, and what is done about it at a text site."""
    place = getattr(_here, "place", None)
    if place is None:
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    turn = _here.turn
    _here.turn = turn + 1
    if not isinstance(place, Place):
        options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        seen: Tensor = place.attend(turn, original, query, key, value, options)
        return seen
    spot = 0 if place.every else turn
    site = place.sites[spot] if spot < len(place.sites) else -1
    if site < 0:
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    output, sums = attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if torch.compiler.is_compiling():
        made: Tensor = torch.ops.safeguard.joint_site(output, query, key, value, attn_mask, is_causal, place.host, site, turn)
        return made
    changed = _changed(AttentionCall(output, query, key, value, attn_mask, is_causal, sums), place.host, site, turn)
    return output if changed is None else changed


def _changed(call: AttentionCall, host: int, site: int, turn: int) -> Tensor | None:
    with serving(host) as owner:
        return None if owner is None else owner.at_call(site, turn, call)


@register_op(
    "safeguard::joint_site",
    schema="(Tensor output, Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, int host, int site, int turn)"
    " -> Tensor",
)
def _joint_site(output: Tensor, *rest: Any) -> Tensor:
    *call, host, site, turn = rest
    changed = _changed(AttentionCall(output, *call), host, site, turn)
    return output.clone() if changed is None else changed


@_joint_site.register_fake
def _(output: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(output)


def tap(handles: Handles, sites: Sequence[TappedAttention], number: int) -> None:
    """From here on the attachment of this number gets what these sites attend to."""
    for module in {id(site.module): site.module for site in sites}.values():
        turns = {site.turn: site for site in sites if site.module is module}
        indices = [turns[turn].info.index if turn in turns else -1 for turn in range(max(turns) + 1)]
        listen(handles, module, Place(number, indices, every=any(site.each for site in turns.values())), number)
    if sites:
        open_tap(number)


def open_tap(user: int) -> None:
    """Put `attend` in torch's place, for one more user."""
    with _installing:
        _users.add(user)
        functional.scaled_dot_product_attention = attend


def close_tap(user: int) -> None:
    """One user less; the last one gives torch its own function back."""
    with _installing:
        _users.discard(user)
        if not _users and functional.scaled_dot_product_attention is attend:
            functional.scaled_dot_product_attention = original


def is_open() -> bool:
    return functional.scaled_dot_product_attention is attend


def begin(place: Place | Listener) -> None:
    """From here on, attention calls in this thread are ``place``'s."""
    _here.place, _here.turn = place, 0


def resume(place: Place | Listener | None) -> None:
    """The attention of a module inside is over: calls are ``place``'s again."""
    _here.place = place


def leave_attention() -> None:
    """Forget whose attention was under way: it is over, or an error has ended it."""
    resume(None)


def listen(handles: Handles, module: Any, place: Place | Listener, number: int) -> None:
    """From here on ``place`` gets the attention calls that ``module`` makes itself."""

    def on_call(module: Any, args: tuple[Any, ...]) -> None:
        begin(place)

    def on_done(module: Any, args: tuple[Any, ...], output: Any) -> None:
        leave_attention()

    handles.add(module, "forward_pre", tag(on_call, number))
    handles.add(module, "forward", tag(on_done, number))
