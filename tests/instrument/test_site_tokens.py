"""Keys and values of the concepts' tokens: kept while the layers that project them stay as they are, and no longer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import safeguard
from safeguard.instrument.discover.sites import CrossAttentionSite, SiteTokens, is_separate
from safeguard.sdk.pipeline import EncodedText
from tests.support.contract_policies import Words, concept, policy, same
from tests.support.families import FAMILIES, PROMPTS, generate, unet

STATES = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))


class Adapter(nn.Module):
    """A low-rank adapter as libraries put it around a layer: ``scaling`` is an attribute, not a weight."""

    def __init__(self, layer: nn.Linear, scaling: float) -> None:
        super().__init__()
        self.base_layer = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features
        generator = torch.Generator().manual_seed(layer.out_features)
        self.down = nn.Parameter(torch.randn(2, layer.in_features, generator=generator))
        self.up = nn.Parameter(torch.randn(layer.out_features, 2, generator=generator))
        self.scaling = {"default": scaling}

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.base_layer(states) + self.scaling["default"] * (states @ self.down.T) @ self.up.T
        return added


def adapt(denoiser: Any, scaling: float) -> list[Adapter]:
    """Put an adapter around every projection of every text site."""
    adapters = []
    for module in denoiser.modules():
        if getattr(module, "is_cross_attention", False):
            for part in ("to_q", "to_k", "to_v"):
                setattr(module, part, Adapter(getattr(module, part), scaling))
                adapters.append(getattr(module, part))
            module.to_out[0] = Adapter(module.to_out[0], scaling)
            adapters.append(module.to_out[0])
    return adapters


class SiteTable:
    """The separate text sites of a denoiser, and fixed tokens at all of them."""

    def __init__(self, denoiser: Any) -> None:
        modules = [(name, part) for name, part in denoiser.named_modules() if is_separate(part)]
        self.sites = [CrossAttentionSite("unet", name, part, place) for place, (name, part) in enumerate(modules)]

    def tokens(self, states: torch.Tensor) -> SiteTokens:
        return SiteTokens([EncodedText("", states, [], range(len(states)))], lambda: self.sites)


@pytest.fixture
def table() -> SiteTable:
    torch.manual_seed(0)
    return SiteTable(unet())


def first(table: SiteTable) -> CrossAttentionSite:
    return table.sites[0]


def test_they_are_what_the_sites_own_layers_give(table: SiteTable) -> None:
    keys, values = table.tokens(STATES).at(first(table).info)
    attention = first(table).attention
    torch.testing.assert_close(keys, attention.to_k(STATES).unflatten(-1, (4, -1)).transpose(0, 1))
    torch.testing.assert_close(values, attention.to_v(STATES).unflatten(-1, (4, -1)).transpose(0, 1))


def test_they_are_projected_once(table: SiteTable) -> None:
    tokens = table.tokens(STATES)
    assert tokens.at(first(table).info)[0] is tokens.at(first(table).info)[0]


def changed_weight(site: CrossAttentionSite) -> None:
    with torch.no_grad():
        site.attention.to_k.weight.mul_(2.0)


def exchanged_layer(site: CrossAttentionSite) -> None:
    site.attention.to_k = copy.deepcopy(site.attention.to_k)
    changed_weight(site)


def exchanged_data(site: CrossAttentionSite) -> None:
    site.attention.to_k.weight.data = site.attention.to_k.weight.data * 2.0


@pytest.mark.parametrize("change", [changed_weight, exchanged_layer, exchanged_data])
def test_other_weights_are_followed(change: Any, table: SiteTable) -> None:
    tokens = table.tokens(STATES)
    before, _ = tokens.at(first(table).info)
    change(first(table))
    torch.testing.assert_close(tokens.at(first(table).info)[0], 2.0 * before)


def test_another_dtype_is_followed(table: SiteTable) -> None:
    tokens = table.tokens(STATES)
    tokens.at(first(table).info)
    first(table).attention.to(torch.float64)
    assert tokens.at(first(table).info)[0].dtype == torch.float64


def test_an_adapters_scale_is_followed(table: SiteTable) -> None:
    site = first(table)
    site.attention.to_k = Adapter(site.attention.to_k, 0.0)
    tokens = table.tokens(STATES)
    before, _ = tokens.at(site.info)
    site.attention.to_k.scaling["default"] = 1.0
    assert not torch.equal(tokens.at(site.info)[0], before)
    site.attention.to_k.scaling["default"] = 0.0
    assert torch.equal(tokens.at(site.info)[0], before)


def test_weights_that_torch_does_not_count_are_read_every_time(table: SiteTable) -> None:
    site = first(table)
    with torch.inference_mode():
        site.attention.to_k.weight = nn.Parameter(site.attention.to_k.weight.clone(), requires_grad=False)
        tokens = table.tokens(STATES)
        before, _ = tokens.at(site.info)
        site.attention.to_k.weight.mul_(2.0)
        torch.testing.assert_close(tokens.at(site.info)[0], 2.0 * before)


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)], ids=["inference", "autocast"]
)
def test_the_mode_of_the_call_that_asks_first_does_not_stick(mode: Any, table: SiteTable) -> None:
    tokens = table.tokens(STATES)
    with mode():
        keys, _ = tokens.at(first(table).info)
    assert keys.dtype == torch.float32
    assert not keys.is_inference()


def test_adapters_loaded_under_protection_are_protected() -> None:
    """Hooks move to the new layers, and the concept's keys go through the adapter as the prompt's do."""
    blood = policy(concept("blood"))
    ready = FAMILIES["sd1"]()
    adapt(ready.unet, 0.05)
    with safeguard.protect(ready, blood, screener=Words()):
        expected = generate(ready, PROMPTS)
    later = FAMILIES["sd1"]()
    with safeguard.protect(later, blood, screener=Words()):
        without = generate(later, PROMPTS)
        adapters = adapt(later.unet, 0.05)
        assert same(generate(later, PROMPTS), expected)
        for adapter in adapters:
            adapter.scaling["default"] = 0.0
        torch.testing.assert_close(generate(later, PROMPTS), without, rtol=1e-4, atol=1e-2)
