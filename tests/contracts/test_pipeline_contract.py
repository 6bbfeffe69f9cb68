"""What may happen to a protected pipeline in its life, and that it stays protected: every eraser, on a UNet and an MMDiT."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusionImg2ImgPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor

from safeguard.errors import CapabilityError
from tests.support.acme_erasers import ONE_PER_SEAM
from tests.support.contract_policies import CLOSE, always, concept, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, denoiser, denoiser_call, generate, part
from tests.support.guarded import Guarded

Pipe = Any
Plain = Callable[..., torch.Tensor]
Protect = Callable[..., Any]
pytestmark = [pytest.mark.only_families("sd1", "sd3"), pytest.mark.in_sample("eiup", *ONE_PER_SEAM)]
ActsOrRefuses = Callable[..., None]
ONLY_SEAMS = pytest.mark.only_erasers(*ONE_PER_SEAM)
IMG2IMG = {"sd1": StableDiffusionImg2ImgPipeline, "sd3": StableDiffusion3Img2ImgPipeline}
ABSENT = {"sd1": ["safety_checker"], "sd3": ["text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"]}
OF_LAYERS = ("ccrt", "esd", "hfi", "rece", "sdd", "uce")  # they change layers that are fused into one, which are not run then
UNET = pytest.mark.only_families("sd1")


@pytest.fixture
def unet(guarded: Guarded) -> Iterator[Any]:
    """The denoiser of `guarded`; the test may give it other attention processors."""
    usual = dict(guarded.pipe.unet.attn_processors)
    yield guarded.pipe.unet
    guarded.pipe.unet.set_attn_processor(usual)


@UNET
@pytest.mark.parametrize(
    "kind", [AttnProcessor, AttnProcessor2_0, lambda: SlicedAttnProcessor(1)], ids=["old", "sdpa", "sliced"]
)
def test_other_attention_processors_change_nothing(
    eraser: str, family: str, kind: Callable[[], Any], guarded: Guarded, unet: Any
) -> None:
    expected = guarded.under(always(eraser))
    unet.set_attn_processor(kind())
    torch.testing.assert_close(generate(guarded.pipe, PROMPTS), expected, **CLOSE)


@UNET
def test_attention_slicing_changes_nothing(eraser: str, family: str, guarded: Guarded, unet: Any) -> None:
    expected = guarded.under(always(eraser))
    guarded.pipe.enable_attention_slicing("max")
    torch.testing.assert_close(generate(guarded.pipe, PROMPTS), expected, **CLOSE)


def test_fused_projections_change_nothing_but_what_diffusers_does(
    eraser: str, family: str, own: Pipe, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    """A UNet gives the same pictures. Where diffusers' fused attention leaves out norms its pictures are others, and still
    protected.
    """
    plain = FAMILIES[family]()
    denoiser(plain).fuse_qkv_projections()
    unprotected = generate(plain, PROMPTS)
    protect(own, always(eraser))
    expected = generate(own, PROMPTS)
    denoiser(own).fuse_qkv_projections()
    if eraser in OF_LAYERS:
        acts_or_refuses(lambda: generate(own, PROMPTS), unprotected, saying="fused")
    else:
        found = generate(own, PROMPTS)
        assert rows_changed(found, unprotected) == [True, True, True]
        if family == "sd1":
            torch.testing.assert_close(found, expected, **CLOSE)
    denoiser(own).unfuse_qkv_projections()
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


def test_saved_it_is_an_ordinary_pipeline(eraser: str, family: str, guarded: Guarded, pipe: Pipe, tmp_path: Path) -> None:
    def read_back(saved: Pipe, folder: Path) -> Pipe:
        saved.save_pretrained(folder)
        read = type(pipe).from_pretrained(folder, local_files_only=True, **dict.fromkeys(ABSENT[family]))
        read.set_progress_bar_config(disable=True)
        return read

    guarded.swap(always(eraser))
    read = read_back(guarded.pipe, tmp_path / "guarded")
    assert type(read) is type(pipe)
    assert same(generate(read, PROMPTS), generate(read_back(pipe, tmp_path / "plain"), PROMPTS))


def test_type_and_signature_stay(family: str, guarded: Guarded, pipe: Pipe) -> None:
    kind = type(pipe)
    assert isinstance(guarded.pipe, kind)
    assert type(guarded.pipe).__name__ == kind.__name__
    assert inspect.signature(guarded.pipe.__call__) == inspect.signature(pipe.__call__)


@pytest.fixture
def sibling(guarded: Guarded, family: str) -> Pipe:
    """An image-to-image pipeline made of the guarded one afterwards: it shares the denoiser, and is no guarded pipeline."""
    other = IMG2IMG[family].from_pipe(guarded.pipe)
    other.set_progress_bar_config(disable=True)
    return other


def test_from_pipe_afterwards_gets_the_whole_policy(
    eraser: str, family: str, guarded: Guarded, pipe: Pipe, sibling: Pipe, acts_or_refuses: ActsOrRefuses
) -> None:
    """It shares the denoiser, so it is protected, and recorded."""
    unguarded = IMG2IMG[family].from_pipe(pipe)
    unguarded.set_progress_bar_config(disable=True)
    guarded.swap(policy(concept("weapon", eraser=eraser)))
    calls = guarded.guard.status().direct_calls
    acts_or_refuses(lambda: generate(sibling, PROMPTS), generate(unguarded, PROMPTS))
    assert [record["subject"]["source"] for record in guarded.sink.records] == ["direct"]
    assert guarded.guard.status().direct_calls == calls + 1


def test_a_deep_copy_is_protected(eraser: str, family: str, guarded: Guarded, plain: Plain) -> None:
    expected = guarded.under(policy(concept("blood", eraser=eraser)))
    assert rows_changed(expected, plain(family)) == [False, True, False]
    assert same(generate(copy.deepcopy(guarded.pipe), PROMPTS), expected)


@ONLY_SEAMS
def test_a_copy_with_its_hooks_taken_off_is_refused(eraser: str, family: str, guarded: Guarded) -> None:
    guarded.swap(always(eraser))
    other = copy.deepcopy(guarded.pipe)
    for module in denoiser(other).modules():
        module._forward_pre_hooks.clear()
    with pytest.raises(CapabilityError, match="replaced"):
        generate(other, PROMPTS)


@ONLY_SEAMS
def test_a_copy_of_a_released_pipeline_is_refused(eraser: str, own: Pipe, protect: Protect) -> None:
    guard = protect(own, always(eraser))
    other = copy.copy(own)
    guard.release()
    with pytest.raises(CapabilityError, match="released"):
        generate(other, PROMPTS)


@ONLY_SEAMS
def test_another_denoiser_in_its_place_is_refused(eraser: str, family: str, own: Pipe, protect: Protect) -> None:
    protect(own, always(eraser))
    setattr(own, part(own), copy.deepcopy(denoiser(FAMILIES[family]())))
    with pytest.raises(CapabilityError, match="was replaced"):
        generate(own, PROMPTS)


@UNET
def test_another_attention_layer_is_hooked_again(eraser: str, own: Pipe, protect: Protect) -> None:
    protect(own, policy(concept("blood", eraser=eraser)))
    expected = generate(own, PROMPTS)
    for module in denoiser(own).modules():
        if hasattr(module, "to_q"):
            module.to_q = copy.deepcopy(module.to_q)
            module.to_q._forward_hooks.clear()
    assert same(generate(own, PROMPTS), expected)


def test_hooks_cleared_by_hand_are_put_back(eraser: str, family: str, guarded: Guarded) -> None:
    expected = guarded.under(always(eraser))
    for module in denoiser(guarded.pipe).modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    assert same(generate(guarded.pipe, PROMPTS), expected)


def test_the_denoiser_called_by_itself_gets_the_whole_policy(
    eraser: str, family: str, guarded: Guarded, pipe: Pipe, acts_or_refuses: ActsOrRefuses
) -> None:
    call = denoiser_call(pipe)
    guarded.swap(policy(concept("weapon", eraser=eraser)))
    with torch.no_grad():
        unprotected = denoiser(pipe)(**call).sample
        acts_or_refuses(lambda: denoiser(guarded.pipe)(**call).sample, unprotected)
    (record,) = guarded.sink.records
    assert record["subject"]["source"] == "direct"
    assert [applied["concept"] for applied in record["applied"]] == ["weapon"]


def test_forward_called_by_itself_gets_the_whole_policy(
    eraser: str, family: str, guarded: Guarded, pipe: Pipe, acts_or_refuses: ActsOrRefuses
) -> None:
    """Even outside the concept's steps, of which nothing is known there; or is refused where only text sites are in reach."""
    call = denoiser_call(pipe)
    guarded.swap(policy(concept("weapon", eraser=eraser, steps=(0.9, 1.0))))
    with torch.no_grad():
        unprotected = denoiser(pipe).forward(**call).sample
        acts_or_refuses(lambda: denoiser(guarded.pipe).forward(**call).sample, unprotected)


def exchange(**made: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """A callback that exchanges tensors of the run after its first step."""

    def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: change(tensors[name]) for name, change in made.items()} if step == 0 else {}

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(made)}


def foreign(states: torch.Tensor) -> torch.Tensor:
    return torch.randn(states.shape, generator=torch.Generator().manual_seed(9))


def test_text_exchanged_by_a_callback_gets_the_whole_policy(
    eraser: str, family: str, guarded: Guarded, pipe: Pipe, acts_or_refuses: ActsOrRefuses
) -> None:
    """Though nothing was active in the request that it steals into."""
    unprotected = generate(pipe, PROMPTS, **exchange(prompt_embeds=foreign))
    guarded.swap(policy(concept("weapon", eraser=eraser)))
    fallbacks: list[str | None] = []

    def run() -> torch.Tensor:
        with guarded.guard.request() as request:
            found = generate(guarded.pipe, PROMPTS, **exchange(prompt_embeds=foreign))
        fallbacks.extend(decision.screen.fallback for decision in request.decisions)
        return found

    acts_or_refuses(run, unprotected)
    assert set(fallbacks) <= {"unmatched text"}


def test_branches_exchanged_by_a_callback_get_the_whole_policy(
    eraser: str, family: str, guarded: Guarded, pipe: Pipe, acts_or_refuses: ActsOrRefuses
) -> None:
    """The negative prompt's states in the prompt's place are known text, and still not what was screened there."""

    def turn(states: torch.Tensor) -> torch.Tensor:
        negative, positive = states.chunk(2)
        return torch.cat([positive, negative])

    changes: dict[str, Any] = {"negative_prompt": ["a fish"] * 3, **exchange(prompt_embeds=turn)}
    unprotected = generate(pipe, PROMPTS, **changes)
    guarded.swap(policy(concept("weapon", eraser=eraser)))
    acts_or_refuses(lambda: generate(guarded.pipe, PROMPTS, **changes), unprotected)


@UNET
def test_guidance_ended_by_a_callback_keeps_the_activation(eraser: str, family: str, guarded: Guarded, pipe: Pipe) -> None:
    def end(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]} if step == 0 else {}

    changes: dict[str, Any] = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    unprotected = generate(pipe, PROMPTS, **changes)
    guarded.swap(policy(concept("blood", eraser=eraser)))
    try:
        found = generate(guarded.pipe, PROMPTS, **changes)
    except CapabilityError:
        return
    assert rows_changed(found, unprotected) == [False, True, False]


@ONLY_SEAMS
def test_a_pipeline_that_shares_a_guarded_denoiser_cannot_be_protected_again(
    eraser: str, family: str, guarded: Guarded, sibling: Pipe, protect: Protect
) -> None:
    guarded.swap(always(eraser))
    with pytest.raises(CapabilityError, match="shared"):
        protect(sibling, always(eraser))


@UNET
def test_a_guarded_pipeline_called_from_another_keeps_its_own_policy(
    eraser: str, family: str, guarded: Guarded, lasting: Callable[[str], Guarded]
) -> None:
    """A callback of one request calls a second pipeline: each image is what it is alone."""
    other = lasting("sd2")
    outer = guarded.under(policy(concept("blood", eraser=eraser)))
    inner = other.under(policy(concept("weapon", eraser=eraser, activation="always")))
    found: list[torch.Tensor] = []

    def call(*_: Any) -> dict[str, Any]:
        found.append(generate(other.pipe, PROMPTS))
        return {}

    assert same(generate(guarded.pipe, PROMPTS, callback_on_step_end=call), outer)
    assert all(same(one, inner) for one in found)
