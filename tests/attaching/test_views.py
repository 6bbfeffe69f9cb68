"""What an edit is shown of an attention that the tap serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safeguard.attaching.hooks import AttentionCall
from safeguard.attaching.trace import Layout
from safeguard.attaching.views import JointView
from safeguard.erasing import TextSite
from safeguard.erasing.activation import ActiveEdit

HEADS, WIDTH, QUERIES, KEYS = 2, 4, 6, 5


@pytest.mark.parametrize(
    ("text", "joint"),
    [(slice(0, KEYS), False), (torch.arange(KEYS), False), (slice(0, 3), True), (torch.tensor([0, 2, 4]), True)],
    ids=["all", "all, by place", "some", "some, by place"],
)
def test_an_attention_over_text_alone_is_told_from_one_over_text_and_image(text: Any, joint: bool) -> None:
    parts = [torch.randn(1, HEADS, count, WIDTH) for count in (QUERIES, QUERIES, KEYS, KEYS)]
    site: Any = SimpleNamespace(info=TextSite(0, "made up", HEADS, WIDTH, WIDTH**-0.5))
    view = JointView(site, Layout(text, slice(0, QUERIES)), AttentionCall(*parts, None, False))
    call = view.call(ActiveEdit(None, [0], [0], slice(0, 1), [0], torch.ones(1, 1)), 0.0)
    assert call.joint is joint
    assert (call.from_text[1] is not None) is joint
