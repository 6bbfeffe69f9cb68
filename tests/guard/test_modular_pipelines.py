"""Modular pipelines: what they declare is read in place of a signature, and no way of calling one leads past its guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from packaging.version import Version

import safeguard
from safeguard.audit import Decision
from safeguard.errors import CapabilityError, PolicyViolation
from tests.support.contract_policies import Words, concept, policy
from tests.support.tiny_pipelines import UNBUILT, WHOLES
from tests.support.tiny_pipelines.whole import as_tensor

pytestmark = pytest.mark.skipif(Version(diffusers.__version__) < Version("0.42"), reason="tried with diffusers 0.42 and newer")

Pipe = Any
Protect = Callable[..., safeguard.Guard]
PROMPTS = ("a red boat", "blood on snow", "a green tree")
NAMES = ("StableDiffusionXLModularPipeline", "FluxModularPipeline", "QwenImageModularPipeline", "WanModularPipeline")
BAN = policy(concept("blood", activation="always"))


@pytest.fixture(scope="module")
def pipe() -> Pipe:
    return WHOLES[NAMES[0]].build()


class Kept:
    """A sink that keeps the decisions as they come."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def append(self, decisions: Sequence[Decision], *, capture: str = "hmac") -> tuple[Any, ...]:
        self.decisions += decisions
        return ()

    def store_policy(self, revision: str, canonical: bytes) -> None:
        pass

    def close(self) -> None:
        pass


def call(name: str = NAMES[0], **changes: Any) -> dict[str, Any]:
    return {**WHOLES[name].call(PROMPTS), **changes}


def images(made: Any) -> torch.Tensor:
    return as_tensor(made)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_row_of_the_concept_changes_and_release_restores_every_bit(name: str, protect: Protect) -> None:
    whole = WHOLES[name]
    pipe = whole.build()

    def paint() -> torch.Tensor:
        return images(whole.first(pipe(**call(name))))

    plain, before = paint(), type(pipe)
    sink = Kept()
    guard = protect(pipe, policy(concept("blood")), screener=Words(), audit=sink)
    assert [not torch.equal(a, b) for a, b in zip(paint(), plain, strict=True)] == [False, True, False]
    assert [one.result for one in sink.decisions] == ["pass", "erase", "pass"]
    assert all(one.output is not None and one.subject.source == "prompt" for one in sink.decisions)
    assert isinstance(pipe, before)
    guard.release()
    assert type(pipe) is before
    assert torch.equal(paint(), plain)


def test_a_state_is_given_back_as_diffusers_makes_it(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, BAN, screener=None)
    assert type(pipe(**call())) is PipelineState


def test_every_output_that_a_call_names_is_the_guarded_one(pipe: Pipe, protect: Protect) -> None:
    plain = images(pipe(**call(), output="images"))
    sink = Kept()
    protect(pipe, BAN, screener=None, audit=sink)
    one = images(pipe(**call(), output="images"))
    several = pipe(**call(), output=["images", "latents"])
    positional = images(pipe(None, "images", **call()))
    assert not torch.equal(one, plain)
    assert list(several) == ["images", "latents"]
    assert torch.equal(images(several["images"]), one)
    assert torch.equal(positional, one)
    assert len(sink.decisions) == 3 * len(PROMPTS)
    assert all(decision.output is not None for decision in sink.decisions)


def test_a_prompt_in_a_state_is_screened_as_one_in_the_call(pipe: Pipe, protect: Protect) -> None:
    state = PipelineState()
    state.set("prompt", list(PROMPTS))
    given = {name: value for name, value in call().items() if name != "prompt"}
    sink = Kept()
    protect(pipe, policy(concept("blood")), screener=Words(), audit=sink)
    pipe(state, **given)
    pipe(state, **{**given, "prompt": ["a boat", "a boat", "a boat"]})  # what a call says counts
    assert [one.result for one in sink.decisions] == ["pass", "erase", "pass", "pass", "pass", "pass"]
    assert list(state.values) == ["prompt"]


def test_a_state_with_a_forbidden_prompt_is_refused(pipe: Pipe, protect: Protect) -> None:
    state = PipelineState()
    state.set("prompt", ["a boat", "very blood", "a tree"])
    protect(pipe, policy(concept("blood", action="block")), screener=Words())
    with pytest.raises(PolicyViolation):
        pipe(state=state, **{name: value for name, value in call().items() if name != "prompt"})


def test_blocks_that_are_run_past_the_pipeline_get_the_whole_policy(pipe: Pipe, protect: Protect) -> None:
    def by_blocks() -> torch.Tensor:
        state = PipelineState()
        for one in pipe.blocks.inputs:
            if one.name is not None:
                state.set(one.name, call().get(one.name, one.default), one.kwargs_type)
        return images(pipe.blocks(pipe, state)[1].get("images"))

    plain = by_blocks()
    guard = protect(pipe, policy(concept("blood")), screener=Words())
    assert all(not torch.equal(a, b) for a, b in zip(by_blocks(), plain, strict=True))
    assert guard.status().direct_calls == 1


def test_blocks_without_their_text_encoder_are_refused(pipe: Pipe) -> None:
    blocks = pipe.blocks
    blocks.sub_blocks.pop("text_encoder")
    later = blocks.init_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name in later.pretrained_component_names}
    later.update_components(**{name: part for name, part in parts.items() if part is not None})
    with pytest.raises(CapabilityError, match="take no prompt") as raised:
        safeguard.protect(later, BAN, screener=None)
    assert raised.value.missing == "prompt"


def test_a_guider_turned_round_is_seen_as_a_guidance_that_is(pipe: Pipe, protect: Protect) -> None:
    sink = Kept()
    protect(pipe, policy(concept("blood")), screener=Words(), audit=sink)
    pipe.guider.guidance_scale = -3.0
    try:
        pipe(**call(prompt=["a boat"] * 3, negative_prompt=["blood"] * 3))
    finally:
        pipe.guider.guidance_scale = 7.5
    assert [one.result for one in sink.decisions] == ["erase"] * 3


def test_an_exchanged_denoiser_is_refused_until_it_is_protected(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, BAN, screener=None)
    own = pipe.unet
    pipe.update_components(unet=WHOLES[NAMES[0]].build().unet)
    try:
        with pytest.raises(CapabilityError, match="replaced"):
            pipe(**call())
    finally:
        pipe.update_components(unet=own)


def test_trials_leave_the_guider_and_the_log_alone(pipe: Pipe, protect: Protect, caplog: pytest.LogCaptureFixture) -> None:
    before = dict(vars(pipe.guider))
    protect(pipe, BAN, screener=None)
    assert vars(pipe.guider) == before
    assert "Error in block" not in caplog.text


def test_every_modular_class_of_diffusers_is_tried_or_said_to_be_left_out() -> None:
    import diffusers

    known = {name for name in dir(diffusers) if name.endswith("ModularPipeline")} - {"ModularPipeline"}
    assert known == {name for name in (*WHOLES, *UNBUILT) if name.endswith("ModularPipeline")}
