"""Erasure prompts at joint sites: recorded once for all that ask for them, and no longer than somebody does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import safeguard
from safeguard.instrument.apply.text_kv import TextKVCache, numbers_of
from safeguard.plan.request_state import quiet
from tests.support.contract_policies import concept, policy
from tests.support.families import FAMILIES

KNIFE, BLOOD, RAIN = "a knife", "red blood", "rain on a street"


class Recorder:
    """A pipeline with joint attention, whose denoiser's passes are counted."""

    def __init__(self, attachment: Any) -> None:
        self.attachment, self.part = attachment, attachment.parts[attachment.main]
        self.numbers = numbers_of(self.part.values, self.part.rows, self.part.text.every)
        self.site = next(site.info for site in attachment.every_site if site.recorded)
        self.passes = 0
        next(self.part.module.children()).register_forward_hook(self._count)  # those of the denoiser itself are not run

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def keys(self, *texts: str) -> TextKVCache:
        kept: TextKVCache = self.attachment.keys(self.attachment.encode(texts))
        return kept

    def prepare(self, tokens: TextKVCache, stamp: Any = "as they are") -> None:
        with quiet(), torch.no_grad():
            tokens.prepare(self.part, self.numbers, stamp)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with safeguard.protect(FAMILIES["sd3"](), policy(concept("weapon", phrases=(KNIFE,))), screener=None) as guard:
        yield Recorder(guard.attachment)


def test_a_text_that_two_ask_for_is_recorded_once(recorder: Recorder) -> None:
    first, second = recorder.keys(KNIFE, BLOOD), recorder.keys(BLOOD, KNIFE)
    recorder.prepare(first)
    recorder.prepare(second)
    assert recorder.passes == 1
    assert first.at(recorder.site)[0].shape == second.at(recorder.site)[0].shape


def test_only_what_is_new_is_recorded(recorder: Recorder) -> None:
    first, more = recorder.keys(KNIFE), recorder.keys(KNIFE, RAIN)
    recorder.prepare(first)
    recorder.prepare(more)
    assert recorder.passes == 2
    alone, beside = first.at(recorder.site), more.at(recorder.site)
    for own, joined in zip(alone, beside, strict=True):
        assert torch.equal(own, joined[:, : own.shape[1]])


def test_some_of_the_texts_are_what_they_are_among_all(recorder: Recorder) -> None:
    whole = recorder.keys(KNIFE, BLOOD, RAIN)
    some = whole.select([2, 0])
    recorder.prepare(whole)
    recorder.prepare(some)
    assert recorder.passes == 1
    lengths = [len(text.states) for text in whole.texts]
    for every, chosen in zip(whole.at(recorder.site), some.at(recorder.site), strict=True):
        knife, _, rain = every.split(lengths, 1)
        assert torch.equal(chosen, torch.cat([rain, knife], 1))


def test_other_weights_are_recorded_anew(recorder: Recorder) -> None:
    tokens = recorder.keys(KNIFE)
    recorder.prepare(tokens)
    before = tokens.at(recorder.site)[0].clone()
    with torch.no_grad():
        for weight in recorder.part.module.parameters():
            weight.mul_(1.1)
    recorder.prepare(tokens, "scaled")
    assert recorder.passes == 2
    assert not torch.equal(tokens.at(recorder.site)[0], before)


def test_a_text_that_nobody_asks_for_any_more_is_forgotten(recorder: Recorder) -> None:
    gone = recorder.keys(KNIFE)
    recorder.prepare(gone)
    del gone
    recorder.prepare(recorder.keys(RAIN))  # makes room
    recorder.prepare(recorder.keys(KNIFE))
    assert recorder.passes == 3
