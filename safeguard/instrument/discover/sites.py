"""The text sites of a live denoiser: the attentions at which image tokens read text, of two sorts.

A *separate* site is a cross-attention module whose layers make keys and values from the text alone: hooks on its own layers
serve it, under any attention processor. A *joint* site is a call of torch's attention that has text among its keys, whatever
module makes it and whatever was done to queries and keys before: a tap serves it (``taps``), and what an erasure prompt's
keys and values are there is recorded (``recorded``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from safeguard.instrument.call_values import inner
from safeguard.instrument.discover.nan_trace import FoundSite, Layout
from safeguard.plan.request_state import quiet
from safeguard.sdk.pipeline import EncodedText, TextSite

_NOT_DENOISERS: Final = ("vae", "vqvae", "movq", "vqgan", "text_encoder", "safety_checker", "image_encoder", "tokenizer")


def is_separate(module: Any) -> bool:
    """Whether a module may be a separate cross-attention: diffusers' ``Attention`` made with a width for the text."""
    return (
        bool(getattr(module, "is_cross_attention", False))
        and all(isinstance(getattr(module, part, None), nn.Module) for part in ("to_q", "to_k", "to_v", "to_out"))
        and getattr(module, "added_kv_proj_dim", None) is None
        and not getattr(module, "only_cross_attention", False)
        and hasattr(module, "heads")
        and isinstance(module.to_out, (nn.ModuleList, nn.Sequential))
        and hasattr(module.to_q, "out_features")
        and getattr(module.to_k, "out_features", None) == module.to_q.out_features
    )


def candidates(pipe: Any) -> dict[str, Any]:
    """The components that may be denoisers, by name."""
    modules = {}
    for name, component in pipe.components.items():
        module = inner(component)
        if isinstance(module, nn.Module) and not name.startswith(_NOT_DENOISERS) and hasattr(module, "forward"):
            modules[name] = module
    return modules


class CrossAttentionSite:
    """A separate cross-attention: projects text as its own layers do."""

    joint: Final = False

    def __init__(self, owner: str, name: str, attention: Any, index: int) -> None:
        self.owner, self.name, self.attention = owner, name, attention
        width = attention.to_q.out_features // attention.heads
        scale = float(getattr(attention, "scale", None) or width**-0.5)
        self.info = TextSite(index, f"{owner}.{name}", attention.heads, width, scale)
        self.order: list[int] = []
        self.recorded = False  # whether the text comes to it as the denoiser is given it, or was worked on before
        self._marked: tuple[Any, Any] = (None, None)

    def mark(self) -> None:
        """Remember which layers carry the hooks."""
        self._marked = (self.attention.to_q, self.attention.to_out[0])

    @property
    def hooked(self) -> bool:
        """Whether the layers that carry the hooks are still the ones that the attention uses."""
        return self._marked[0] is self.attention.to_q and self._marked[1] is self.attention.to_out[0]

    def split(self, flat: Tensor) -> Tensor:
        """[..., n, H * d] to [..., H, n, d]."""
        heads: Tensor = flat.unflatten(-1, (self.info.heads, self.info.head_dim)).transpose(-2, -3)
        return heads

    def query(self, flat: Tensor) -> Tensor:
        """The query as the attention uses it, [R, H, N, d], from what ``to_q`` gave, [R, N, H * d]."""
        return self._normed(flat, "norm_q")

    def keys(self, states: Tensor) -> Tensor:
        """Keys of text states [..., L, D]: [..., H, L, d]."""
        with quiet():  # the layers as they are: an edit of theirs acts in rows of a call, and these may be any texts
            return self._normed(self.attention.to_k(self._text(states)), "norm_k")

    def values(self, states: Tensor) -> Tensor:
        """Values of text states [..., L, D]: [..., H, L, d]."""
        with quiet():
            return self.split(self.attention.to_v(self._text(states)))

    def _normed(self, flat: Tensor, name: str) -> Tensor:
        norm = getattr(self.attention, name, None)
        if norm is None:
            return self.split(flat)
        across = next((p.numel() for p in norm.parameters()), self.info.head_dim) == flat.shape[-1] != self.info.head_dim
        heads: Tensor = self.split(norm(flat)) if across else norm(self.split(flat))
        return heads

    def _text(self, states: Tensor) -> Tensor:
        if not getattr(self.attention, "norm_cross", None):
            return states
        batched: Tensor = self.attention.norm_encoder_hidden_states(states if states.dim() == 3 else states[None])
        return batched if states.dim() == 3 else batched[0]

    @property
    def stamp(self) -> tuple[Any, ...] | None:
        """Changes whenever the layers that project text may have changed. None where that cannot be told."""
        keys, values = layer_stamp(self.attention.to_k), layer_stamp(self.attention.to_v)
        return None if keys is None or values is None else (keys, values)

    def error(self, output: Tensor, query: Tensor, states: Tensor, mask: Tensor | None) -> float:
        """How far an output [B, N, H * d] of the attention is from what its layers say, relative."""
        text = states if len(states) == len(output) else states[:1].expand(len(output), -1, -1)
        bias = None if mask is None else mask.unsqueeze(1) if mask.dim() == 3 else mask
        asked = self.query(query)
        keys, values = self.keys(text), self.values(text)
        scores = asked.float() @ keys.float().transpose(-1, -2) * self.info.scale
        expected = ((scores if bias is None else scores + bias).softmax(-1) @ values.float()).transpose(1, 2).flatten(2)
        return float((output.float() - expected).norm() / expected.norm().clamp_min(1e-12))


class JointAttentionSite:
    """An attention call with text among its keys. ``layouts`` by the shapes of the denoiser's arguments and the turn.

    ``each``: the module attends to every row of the batch by itself, in turn; all these calls are one site.
    """

    joint: Final = True

    def __init__(self, owner: str, found_site: FoundSite, module: Any, index: int, *, each: bool) -> None:
        self.owner, self.name, self.turn, self.module = owner, found_site.module, 0 if each else found_site.turn, module
        self.each = each
        turn = f"#{found_site.turn}" if found_site.turn else ""
        self.info = TextSite(
            index, f"{owner}.{found_site.module}{turn}", found_site.heads, found_site.head_dim, found_site.scale
        )
        self.order: list[int] = []
        self.recorded = True
        self.layouts: dict[tuple[Any, int], Layout] = {}

    def layout(self, shapes: Any, turn: int) -> Layout | None:
        """Where the text stands in the call of this turn. Rows attended to one by one are laid out alike if not seen before."""
        return (self.layouts.get((shapes, turn)) if self.each else None) or self.layouts.get((shapes, 0))


Site = CrossAttentionSite | JointAttentionSite


def module_of(site: Site) -> Any:
    """The site's attention."""
    return site.attention if isinstance(site, CrossAttentionSite) else site.module


def norm_of(site: Site) -> float | None:
    """The norm of all weights of a site's attention. None where they are not at hand."""
    weights = list(module_of(site).parameters())
    if not weights or any(weight.is_meta for weight in weights):
        return None
    norms = [torch.linalg.vector_norm(weight.detach(), dtype=torch.float32).cpu() for weight in weights]
    return float(torch.stack(norms).norm())


def layer_stamp(layer: Any) -> tuple[Any, ...] | None:
    """Asked at every site of every step, so an ordinary layer is looked at without a walk over its modules."""
    if type(layer) is nn.Linear:
        return weight_stamp(layer.weight)
    stamps: list[Any] = [weight_stamp(weight) for weight in layer.parameters()]
    for part in layer.modules():  # adapters (LoRA) keep what they do beside their weights in plain attributes
        scaling, processor = getattr(part, "scaling", None), getattr(part, "processor", None)  # fused layers have another one
        stamps.append((id(part), id(processor), repr(scaling) if isinstance(scaling, dict) else None))
        stamps.append(tuple(repr(getattr(part, name, None)) for name in ("active_adapters", "disable_adapters")))
    return None if None in stamps else tuple(stamps)


def weight_stamp(weight: Tensor) -> tuple[Any, ...] | None:
    if weight.is_inference() or weight.is_meta:  # torch does not count what is written to these; or they are fetched anew
        return None
    return (id(weight), weight.data_ptr(), weight._version, weight.dtype, weight.device)


class SiteTokens:
    """Keys and values of fixed texts at separate sites: made by the sites' own layers, kept while their weights stay."""

    def __init__(self, texts: Sequence[EncodedText], sites: Callable[[], Sequence[Site]]) -> None:
        self._states = torch.cat([text.states for text in texts])  # [T, D]
        self._sites = sites
        self._kept: dict[int, tuple[tuple[Any, ...] | None, Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, each [H, T, d]."""
        live = self._sites()[site.index]
        assert isinstance(live, CrossAttentionSite)
        stamp = live.stamp
        known = self._kept.get(site.index)
        if known is None or stamp is None or known[0] != stamp:
            with self._lock:
                known = self._kept[site.index] = (stamp, *self._project(live))
        return known[1], known[2]

    def _project(self, site: CrossAttentionSite) -> tuple[Tensor, Tensor]:
        """In the weights' own dtype and as ordinary tensors, whatever mode the asking call runs in: others will ask too.

        Weights that are fetched layer by layer are elsewhere until their layer runs, and it takes its input there itself.
        """
        weight = next(site.attention.to_k.parameters())
        device = self._states.device if weight.is_meta else weight.device
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            states = self._states.to(device=device, dtype=weight.dtype)
            return site.keys(states).contiguous(), site.values(states).contiguous()


def every_head(part: Tensor, heads: int) -> Tensor:
    """[B, H', S, d] with every head's own, where several queries share one: [B, H, S, d]."""
    return part if part.shape[1] == heads else part.repeat_interleave(heads // part.shape[1], 1)


def expanded(order: Sequence[int], rows: Sequence[Any], count: int) -> list[Any] | None:
    """The rows of a site's own batch of ``count``: each row of the call several times, one by one or as a whole."""
    times, rest = divmod(count, len(rows))
    if rest or times < 1:
        return None
    if times == 1:
        return list(rows)
    if len(order) > 1 and order[1] == order[0] + 1:
        return [row for row in rows for _ in range(times)]
    return list(rows) * times


def mechanism_of(sites: Sequence[Site]) -> str:
    """How some sites are served, with their number: "4 separate", "5 joint"."""
    joint = sum(isinstance(site, JointAttentionSite) for site in sites)
    counts = {"separate": len(sites) - joint, "joint": joint}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
