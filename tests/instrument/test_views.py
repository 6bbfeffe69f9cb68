"""What an edit is shown of an attention that the tap serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safeguard.instrument.apply.site_calls import JointAttentionView
from safeguard.instrument.discover.nan_trace import Layout
from safeguard.instrument.hooks.denoiser_hooks import AttentionCall
from safeguard.plan.request_state import ActiveEdit
from safeguard.sdk import calls
from safeguard.sdk.calls import PromptTokens, SiteCall
from safeguard.sdk.pipeline import TextSite

HEADS, WIDTH, QUERIES, KEYS = 2, 4, 6, 5


@pytest.mark.parametrize(
    ("text", "joint"),
    [(slice(0, KEYS), False), (torch.arange(KEYS), False), (slice(0, 3), True), (torch.tensor([0, 2, 4]), True)],
    ids=["all", "all, by place", "some", "some, by place"],
)
def test_an_attention_over_text_alone_is_told_from_one_over_text_and_image(text: Any, joint: bool) -> None:
    parts = [torch.randn(1, HEADS, count, WIDTH) for count in (QUERIES, QUERIES, KEYS, KEYS)]
    site: Any = SimpleNamespace(info=TextSite(0, "made up", HEADS, WIDTH, WIDTH**-0.5))
    view = JointAttentionView(site, Layout(text, slice(0, QUERIES)), AttentionCall(*parts, None, False))
    call = view.call(ActiveEdit(None, [0], [0], slice(0, 1), [0], torch.ones(1, 1)), 0.0)
    assert call.joint is joint
    assert (call.from_text[1] is not None) is joint


@pytest.mark.parametrize("known", [True, False], ids=["given by the kernel", "made from the keys"])
def test_a_concept_competes_with_every_key_that_the_image_meets(known: bool) -> None:
    query, key, value = (torch.randn(1, HEADS, count, WIDTH) for count in (QUERIES, KEYS, KEYS))
    sums = (query @ key.transpose(-1, -2) / WIDTH**0.5).logsumexp(-1)
    site: Any = SimpleNamespace(info=TextSite(0, "made up", HEADS, WIDTH, WIDTH**-0.5))
    given = AttentionCall(torch.randn(query.shape), query, key, value, None, False, sums if known else None)
    view = JointAttentionView(site, Layout(slice(0, 2), slice(2, QUERIES)), given)
    call = view.call(ActiveEdit(None, [0], [0], slice(0, 1), [0], torch.ones(1, 1)), 0.0)
    torch.testing.assert_close(call.log_mass, sums[:, :, 2:])


def test_sums_over_more_scores_than_are_held_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.randn(1, HEADS, count, WIDTH) for count in (QUERIES, KEYS, KEYS))
    mask = torch.randn(1, 1, QUERIES, KEYS)
    site = TextSite(0, "made up", HEADS, WIDTH, WIDTH**-0.5)
    found = []
    for limit in (2**26, HEADS * KEYS * 2):  # all at once; two queries at once
        monkeypatch.setattr(calls, "SCORES", limit)
        tokens = PromptTokens(lambda: key, lambda: value, mask)
        output = torch.randn(1, QUERIES, HEADS * WIDTH)
        found.append(SiteCall(site, output, query, tokens, strengths=torch.ones(1, 1), progress=0.0).prompt_log_mass)
    torch.testing.assert_close(*found)
