"""Finding the denoiser of a pipeline, and the attentions in it at which image tokens read text."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from safeguard.erasing import TextSite
from safeguard.errors import CapabilityError

_NOT_DENOISERS: Final = ("vae", "vqvae", "movq", "text_encoder", "safety_checker", "image_encoder", "tokenizer")


def inner(module: Any) -> Any:
    """The module itself, where ``torch.compile`` has wrapped it."""
    return getattr(module, "_orig_mod", module)


def is_text_site(module: Any) -> bool:
    """Whether a module is a separate cross-attention: diffusers' ``Attention`` made with a width for the text."""
    return bool(getattr(module, "is_cross_attention", False)) and all(
        isinstance(getattr(module, part, None), nn.Module) for part in ("to_q", "to_k", "to_v", "to_out")
    )


def find_denoisers(pipe: Any) -> dict[str, Any]:
    """Components that read text by cross-attention, by name. Raises CapabilityError if there is none."""
    found: dict[str, Any] = {}
    for name, component in pipe.components.items():
        module = inner(component)
        if not isinstance(module, nn.Module) or name.startswith(_NOT_DENOISERS):
            continue
        if any(is_text_site(part) for part in module.modules()):
            found[name] = module
    if not found:
        raise CapabilityError(
            f"{type(pipe).__name__} has no denoiser in which image tokens read text by separate cross-attention; "
            "it would run unprotected, so it is refused",
            pipeline=type(pipe).__name__,
            missing="text site",
        )
    return found


class Site:
    """One text site of a live denoiser: projects text as the site's own layers do."""

    def __init__(self, name: str, attention: Any, index: int) -> None:
        if getattr(attention, "added_kv_proj_dim", None) is not None or getattr(attention, "only_cross_attention", False):
            raise CapabilityError(
                f"attention {name} reads text and image tokens with projections of its own, which no eraser here can use",
                missing="separate cross-attention",
            )
        self.attention = attention
        self.info = TextSite(index, name, attention.heads, attention.to_q.out_features // attention.heads)
        if attention.to_k.out_features != attention.to_q.out_features:
            raise CapabilityError(f"attention {name} groups its queries, which no eraser here can use", missing="equal heads")

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
        heads = self.split(flat)
        norm = getattr(self.attention, "norm_q", None)
        return heads if norm is None else norm(heads)

    def keys(self, states: Tensor) -> Tensor:
        """Keys of text states [..., L, D]: [..., H, L, d]."""
        heads = self.split(self.attention.to_k(self._normed(states)))
        norm = getattr(self.attention, "norm_k", None)
        return heads if norm is None else norm(heads)

    def values(self, states: Tensor) -> Tensor:
        """Values of text states [..., L, D]: [..., H, L, d]."""
        return self.split(self.attention.to_v(self._normed(states)))

    def _normed(self, states: Tensor) -> Tensor:
        if not getattr(self.attention, "norm_cross", None):
            return states
        batched: Tensor = self.attention.norm_encoder_hidden_states(states if states.dim() == 3 else states[None])
        return batched if states.dim() == 3 else batched[0]

    @property
    def stamp(self) -> tuple[Any, ...] | None:
        """Changes whenever the layers that project text may have changed. None where that cannot be told."""
        keys, values = _layer_stamp(self.attention.to_k), _layer_stamp(self.attention.to_v)
        return None if keys is None or values is None else (keys, values)


def _layer_stamp(layer: Any) -> tuple[Any, ...] | None:
    """Asked at every site of every step, so an ordinary layer is looked at without a walk over its modules."""
    if type(layer) is nn.Linear:
        return _weight_stamp(layer.weight)
    stamps: list[Any] = [_weight_stamp(weight) for weight in layer.parameters()]
    for part in layer.modules():  # adapters (LoRA) keep what they do beside their weights in plain attributes
        scaling = getattr(part, "scaling", None)
        stamps.append((id(part), repr(scaling) if isinstance(scaling, dict) else None))
        stamps.append(tuple(repr(getattr(part, name, None)) for name in ("active_adapters", "disable_adapters")))
    return None if None in stamps else tuple(stamps)


def _weight_stamp(weight: Tensor) -> tuple[Any, ...] | None:
    if weight.is_inference():  # torch does not count what is written to these
        return None
    return (id(weight), weight.data_ptr(), weight._version, weight.dtype, weight.device)


class SiteTokens:
    """Keys and values of fixed text states at every site (``safeguard.erasing.TokenKeys``)."""

    def __init__(self, states: Tensor, sites: Callable[[], list[Site]]) -> None:
        self._states = states  # [T, D]
        self._sites = sites
        self._kept: dict[int, tuple[tuple[Any, ...] | None, Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        live = self._sites()[site.index]
        stamp = live.stamp
        kept = self._kept.get(site.index)
        if kept is None or stamp is None or kept[0] != stamp:
            with self._lock:
                kept = self._kept[site.index] = (stamp, *self._project(live))
        return kept[1], kept[2]

    def _project(self, site: Site) -> tuple[Tensor, Tensor]:
        """In the weights' own dtype and as ordinary tensors, whatever mode the asking call runs in: others will ask too."""
        weight = next(site.attention.to_k.parameters())
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            states = self._states.to(device=weight.device, dtype=weight.dtype)
            return site.keys(states).contiguous(), site.values(states).contiguous()


class SiteTable:
    """The sites of one pipeline, found anew when a pipeline operation has replaced modules."""

    def __init__(self, denoisers: dict[str, Any]) -> None:
        self._denoisers = {name: weakref.ref(module) for name, module in denoisers.items()}
        self.sites = self._find()

    def _find(self) -> list[Site]:
        found: list[Site] = []
        for owner, reference in self._denoisers.items():
            denoiser = reference()
            if denoiser is None:
                raise CapabilityError(f"the denoiser {owner!r} is gone; protect the pipeline again", missing=owner)
            for name, module in denoiser.named_modules():
                if is_text_site(module):
                    found.append(Site(f"{owner}.{name}", module, len(found)))
        return found

    def refresh(self) -> None:
        self.sites = self._find()

    def tokens(self, states: Tensor) -> SiteTokens:
        return SiteTokens(states, lambda: self.sites)
