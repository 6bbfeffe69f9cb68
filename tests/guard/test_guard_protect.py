"""What cannot be protected is refused with a reason, and then nothing is left attached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DiffusionPipeline,
    UNet2DModel,
)

import safeguard
from safeguard.audit import MemorySink
from safeguard.errors import AuditError, CapabilityError, PluginError, PolicyError, SafeguardError
from tests.support.contract_policies import Words, concept, policy, same
from tests.support.families import FAMILIES, PROMPTS, generate, scheduler, unet

Write = Callable[..., Path]
Pipe = Any


def refused(pipe: Pipe, given: Any, kind: type[SafeguardError], **options: Any) -> SafeguardError:
    """The error of a ``protect`` that fails. The pipeline must be as if it had never been called."""
    before = type(pipe)
    with pytest.raises(kind) as raised:
        safeguard.protect(pipe, given, **{"screener": None, **options})
    assert type(pipe) is before
    for part in getattr(pipe, "components", {}).values():
        if isinstance(part, torch.nn.Module):
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in part.modules())
    return raised.value


def test_a_policy_with_a_fault_leaves_nothing_attached(pipe: Pipe, write: Write, plain: torch.Tensor) -> None:
    fault = refused(pipe, write("concepts: {blood: {phrases: [blood], strenght: max}}"), PolicyError)
    assert "policy.yaml:5" in str(fault)
    assert same(generate(pipe, PROMPTS), plain)


def test_a_missing_policy_file_leaves_nothing_attached(pipe: Pipe, tmp_path: Path) -> None:
    assert "missing.yaml" in str(refused(pipe, tmp_path / "missing.yaml", PolicyError))


def test_what_is_no_policy_is_refused(pipe: Pipe) -> None:
    assert "builtin://NAME" in str(refused(pipe, 42, PolicyError))


def test_an_unknown_eraser_leaves_nothing_attached(pipe: Pipe, plain: torch.Tensor) -> None:
    fault = refused(pipe, policy(concept("blood", eraser="eiupp")), PluginError)
    assert "did you mean 'eiup'?" in str(fault)
    assert same(generate(pipe, PROMPTS), plain)


def test_an_unknown_parameter_leaves_nothing_attached(pipe: Pipe) -> None:
    assert "no parameter 'shape'" in str(refused(pipe, policy(concept("blood", params={"shape": "x"})), CapabilityError))


def test_an_audit_folder_that_is_a_file_leaves_nothing_attached(pipe: Pipe, tmp_path: Path, plain: torch.Tensor) -> None:
    (tmp_path / "log").write_text("not a folder")
    fault = refused(pipe, policy(concept("blood")), AuditError, audit=tmp_path / "log")
    assert str(tmp_path / "log") in str(fault)
    assert same(generate(pipe, PROMPTS), plain)


class FullSink(MemorySink):
    """Has no room, from the first policy on."""

    def store_policy(self, revision: str, canonical: bytes) -> None:
        raise AuditError("no space left on device")


def test_a_policy_that_cannot_be_archived_leaves_nothing_attached(pipe: Pipe, plain: torch.Tensor) -> None:
    refused(pipe, policy(concept("blood")), AuditError, audit=FullSink())
    assert same(generate(pipe, PROMPTS), plain)


def test_an_unknown_screener_word_is_refused(pipe: Pipe) -> None:
    assert "screener must be None" in str(refused(pipe, policy(concept("blood")), CapabilityError, screener="deflaut"))


def test_a_phrase_longer_than_the_encoder_reads_is_refused(pipe: Pipe) -> None:
    fault = refused(pipe, policy(concept("blood", phrases=("blood " * 40,))), CapabilityError)
    assert "take all of the 77 tokens that a text has in StableDiffusionPipeline, or more: shorten" in str(fault)


def test_a_pipeline_without_text_is_refused() -> None:
    denoiser = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    fault = refused(DDPMPipeline(denoiser, scheduler()), policy(concept("blood")), CapabilityError)
    assert "no text token by token" in str(fault)


class Wordless(DiffusionPipeline):  # type: ignore[misc]
    """Made up: a denoiser that reads text, and no way of its own to encode any."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, prompt: str) -> None: ...


def test_a_pipeline_that_encodes_no_text_is_refused() -> None:
    fault = refused(Wordless(unet(), scheduler()), policy(concept("blood")), CapabilityError)
    assert "never called its unet" in str(fault)


class NeedsMore(Wordless):
    """Made up: cannot be called with a prompt alone, so that nothing about it can be tested."""

    def encode_prompt(self, prompt: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompt), 7, 32)

    def __call__(self, prompt: str, layout: object) -> None:  # type: ignore[override]
        raise ValueError("a layout is needed")


def test_a_pipeline_that_cannot_be_tested_is_refused() -> None:
    fault = refused(NeedsMore(unet(), scheduler()), policy(concept("blood")), CapabilityError)
    assert "could not be run on a prompt alone" in str(fault)


class Deaf(NeedsMore):
    """Made up: never calls its denoiser."""

    def __call__(self, prompt: str) -> None: ...  # type: ignore[override]


def test_a_pipeline_that_never_calls_its_denoiser_is_refused() -> None:
    assert "never called its unet" in str(refused(Deaf(unet(), scheduler()), policy(concept("blood")), CapabilityError))


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(CapabilityError, match="is not a diffusers pipeline"):
        safeguard.protect(object(), policy(concept("blood")))


def test_a_denoiser_whose_weights_are_not_finite_is_refused() -> None:
    spoilt = FAMILIES["sd1"]()
    torch.nn.init.constant_(spoilt.unet.conv_out.weight, float("nan"))
    assert "not finite" in str(refused(spoilt, policy(concept("blood")), CapabilityError))


def test_an_edit_without_an_effect_is_refused() -> None:
    """A denoiser in which no text reaches the picture cannot be erased in, and so is not said to be."""
    blind = FAMILIES["sd1"]()
    for module in blind.unet.modules():
        if getattr(module, "is_cross_attention", False):
            torch.nn.init.zeros_(module.to_out[0].weight)
    assert "the edits change nothing" in str(refused(blind, policy(concept("blood")), CapabilityError))


def test_a_guarded_pipeline_is_not_guarded_twice(pipe: Pipe, protect: Any) -> None:
    protect(pipe, policy(concept("blood")))
    with pytest.raises(CapabilityError, match=r"use guard.swap\(policy\)"):
        safeguard.protect(pipe, policy(concept("blood")))


def test_after_a_refusal_it_can_be_protected(pipe: Pipe, protect: Any, plain: torch.Tensor) -> None:
    refused(pipe, policy(concept("blood", eraser="none")), PluginError)
    protect(pipe, policy(concept("blood")))
    assert not same(generate(pipe, PROMPTS), plain)


def test_a_guard_is_released_at_the_end_of_its_block(pipe: Pipe, plain: torch.Tensor) -> None:
    kind = type(pipe)
    with safeguard.protect(pipe, policy(concept("blood")), screener=Words()) as guard:
        assert not same(generate(pipe, PROMPTS), plain)
    assert type(pipe) is kind
    assert guard.status().released
    assert same(generate(pipe, PROMPTS), plain)


def test_released_twice_is_released(pipe: Pipe) -> None:
    guard = safeguard.protect(pipe, policy(concept("blood")), screener=None)
    guard.release()
    guard.release()
    with pytest.raises(CapabilityError, match="released"):
        guard.swap(policy(concept("blood")))


def test_a_release_waits_for_no_request_and_robs_none(pipe: Pipe, protect: Any) -> None:
    """A request under way keeps its hooks to its last step; then the pipeline is as it was."""
    guard = protect(pipe, policy(concept("blood")))
    expected = generate(pipe, PROMPTS)

    def release(*_: Any) -> dict[str, Any]:
        guard.release()
        return {}

    assert same(generate(pipe, PROMPTS, callback_on_step_end=release), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())
