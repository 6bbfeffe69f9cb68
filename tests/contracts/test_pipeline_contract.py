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

from safeguard.audit import MemorySink
from safeguard.errors import CapabilityError
from tests.support.contract_policies import CLOSE, always, concept, no_recompilation, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, denoiser, generate, part

Pipe = Any
Plain = Callable[..., torch.Tensor]
Protect = Callable[..., Any]
pytestmark = pytest.mark.only_families("sd1", "sd3")
ActsOrRefuses = Callable[[Callable[[], torch.Tensor], torch.Tensor], None]
IMG2IMG = {"sd1": StableDiffusionImg2ImgPipeline, "sd3": StableDiffusion3Img2ImgPipeline}
ABSENT = {"sd1": ["safety_checker"], "sd3": ["text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"]}
OF_LAYERS = ("ccrt", "esd", "hfi", "rece", "sdd", "uce")  # they change layers that are fused into one, which are not run then
UNET = pytest.mark.only_families("sd1")


@UNET
@pytest.mark.parametrize(
    "kind", [AttnProcessor, AttnProcessor2_0, lambda: SlicedAttnProcessor(1)], ids=["old", "sdpa", "sliced"]
)
def test_other_attention_processors_change_nothing(eraser: str, kind: Callable[[], Any], own: Pipe, protect: Protect) -> None:
    guard = protect(own, always(eraser))
    expected = generate(own, PROMPTS)
    denoiser(own).set_attn_processor(kind())
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)
    guard.release()


@UNET
def test_attention_slicing_changes_nothing(eraser: str, own: Pipe, protect: Protect) -> None:
    protect(own, always(eraser))
    expected = generate(own, PROMPTS)
    own.enable_attention_slicing("max")
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


@UNET
def test_fused_projections_change_nothing(eraser: str, own: Pipe, protect: Protect) -> None:
    protect(own, always(eraser))
    expected = generate(own, PROMPTS)
    denoiser(own).fuse_qkv_projections()
    if eraser in OF_LAYERS:
        with pytest.raises(CapabilityError, match="fused"):
            generate(own, PROMPTS)
    else:
        torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)
    denoiser(own).unfuse_qkv_projections()
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


def test_fused_projections_are_protected(
    eraser: str, family: str, own: Pipe, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    """Where diffusers' fused attention leaves out norms, its pictures are others, and still protected."""
    plain = FAMILIES[family]()
    denoiser(plain).fuse_qkv_projections()
    protect(own, always(eraser))
    denoiser(own).fuse_qkv_projections()
    if eraser in OF_LAYERS:
        acts_or_refuses(lambda: generate(own, PROMPTS), generate(plain, PROMPTS))
    else:
        assert rows_changed(generate(own, PROMPTS), generate(plain, PROMPTS)) == [True, True, True]


def test_saved_it_is_an_ordinary_pipeline(eraser: str, family: str, own: Pipe, protect: Protect, tmp_path: Path) -> None:
    expected = generate(own, PROMPTS)
    protect(own, always(eraser))
    own.save_pretrained(tmp_path)
    kind = type(FAMILIES[family]())
    bare = dict.fromkeys(ABSENT[family])
    read = kind.from_pretrained(tmp_path, local_files_only=True, **bare)
    read.set_progress_bar_config(disable=True)
    assert type(read) is kind
    assert same(generate(read, PROMPTS), expected)


def test_type_and_signature_stay(eraser: str, own: Pipe, protect: Protect) -> None:
    before, kind = inspect.signature(own.__call__), type(own)
    protect(own, always(eraser))
    assert isinstance(own, kind)
    assert type(own).__name__ == kind.__name__
    assert inspect.signature(own.__call__) == before


def test_from_pipe_afterwards_gets_the_whole_policy(
    eraser: str, family: str, own: Pipe, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    """It shares the denoiser, so it is protected, and recorded, though it is no guarded pipeline."""
    other = IMG2IMG[family].from_pipe(own)
    other.set_progress_bar_config(disable=True)
    unprotected = generate(other, PROMPTS)
    sink = MemorySink()
    guard = protect(own, policy(concept("weapon", eraser=eraser)), audit=sink)
    acts_or_refuses(lambda: generate(other, PROMPTS), unprotected)
    assert [record["subject"]["source"] for record in sink.records] == ["direct"]
    assert guard.status().direct_calls == 1


def test_a_deep_copy_is_protected(eraser: str, own: Pipe, protect: Protect) -> None:
    unprotected = generate(own, PROMPTS)
    protect(own, policy(concept("blood", eraser=eraser)))
    expected = generate(own, PROMPTS)
    assert rows_changed(expected, unprotected) == [False, True, False]
    assert same(generate(copy.deepcopy(own), PROMPTS), expected)


def test_a_copy_with_its_hooks_taken_off_is_refused(eraser: str, own: Pipe, protect: Protect) -> None:
    protect(own, always(eraser))
    other = copy.deepcopy(own)
    for module in denoiser(other).modules():
        module._forward_pre_hooks.clear()
    with pytest.raises(CapabilityError, match="replaced"):
        generate(other, PROMPTS)


def test_a_copy_of_a_released_pipeline_is_refused(eraser: str, own: Pipe, protect: Protect) -> None:
    guard = protect(own, always(eraser))
    other = copy.copy(own)
    guard.release()
    with pytest.raises(CapabilityError, match="released"):
        generate(other, PROMPTS)


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


def test_hooks_cleared_by_hand_are_put_back(eraser: str, own: Pipe, protect: Protect) -> None:
    protect(own, always(eraser))
    expected = generate(own, PROMPTS)
    for module in denoiser(own).modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    assert same(generate(own, PROMPTS), expected)


def denoiser_call(pipe: Pipe) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 4, 16, 16, generator=generator)
    if hasattr(pipe, "unet"):
        width = pipe.unet.config.cross_attention_dim
        return {"sample": image, "timestep": 500, "encoder_hidden_states": torch.randn(2, 7, width, generator=generator)}
    words = {"encoder_hidden_states": torch.randn(2, 7, 64, generator=generator)}
    pooled = torch.randn(2, 64, generator=generator)
    return {"hidden_states": image, "timestep": torch.full((2,), 500.0), "pooled_projections": pooled, **words}


def test_the_denoiser_called_by_itself_gets_the_whole_policy(
    eraser: str, own: Pipe, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    call = denoiser_call(own)
    with torch.no_grad():
        unprotected = denoiser(own)(**call).sample
        sink = MemorySink()
        protect(own, policy(concept("weapon", eraser=eraser)), audit=sink)
        acts_or_refuses(lambda: denoiser(own)(**call).sample, unprotected)
    (record,) = sink.records
    assert record["subject"]["source"] == "direct"
    assert [applied["concept"] for applied in record["applied"]] == ["weapon"]


def test_forward_called_by_itself_gets_the_whole_policy(
    eraser: str, own: Pipe, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    """Even outside the concept's steps, of which nothing is known there; or is refused where only text sites are in reach."""
    call = denoiser_call(own)
    with torch.no_grad():
        unprotected = denoiser(own).forward(**call).sample
        protect(own, policy(concept("weapon", eraser=eraser, steps=(0.9, 1.0))))
        acts_or_refuses(lambda: denoiser(own).forward(**call).sample, unprotected)


def exchange(**made: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """A callback that exchanges tensors of the run after its first step."""

    def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: change(tensors[name]) for name, change in made.items()} if step == 0 else {}

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(made)}


def foreign(states: torch.Tensor) -> torch.Tensor:
    return torch.randn(states.shape, generator=torch.Generator().manual_seed(9))


def test_text_exchanged_by_a_callback_gets_the_whole_policy(
    eraser: str, own: Pipe, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    """Though nothing was active in the request that it steals into."""
    unprotected = generate(own, PROMPTS, **exchange(prompt_embeds=foreign))
    guard = protect(own, policy(concept("weapon", eraser=eraser)))
    fallbacks: list[str | None] = []

    def run() -> torch.Tensor:
        with guard.request() as request:
            found = generate(own, PROMPTS, **exchange(prompt_embeds=foreign))
        fallbacks.extend(decision.screen.fallback for decision in request.decisions)
        return found

    acts_or_refuses(run, unprotected)
    assert set(fallbacks) <= {"unmatched text"}


def test_branches_exchanged_by_a_callback_get_the_whole_policy(
    eraser: str, own: Pipe, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    """The negative prompt's states in the prompt's place are known text, and still not what was screened there."""

    def turn(states: torch.Tensor) -> torch.Tensor:
        negative, positive = states.chunk(2)
        return torch.cat([positive, negative])

    changes: dict[str, Any] = {"negative_prompt": ["a fish"] * 3, **exchange(prompt_embeds=turn)}
    unprotected = generate(own, PROMPTS, **changes)
    protect(own, policy(concept("weapon", eraser=eraser)))
    acts_or_refuses(lambda: generate(own, PROMPTS, **changes), unprotected)


@UNET
def test_guidance_ended_by_a_callback_keeps_the_activation(eraser: str, own: Pipe, protect: Protect) -> None:
    def end(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]} if step == 0 else {}

    changes: dict[str, Any] = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    unprotected = generate(own, PROMPTS, **changes)
    protect(own, policy(concept("blood", eraser=eraser)))
    try:
        found = generate(own, PROMPTS, **changes)
    except CapabilityError:
        return
    assert rows_changed(found, unprotected) == [False, True, False]


@pytest.fixture
def graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_denoiser(pipe: Pipe, how: str, backend: str) -> None:
    if how == "torch.compile":
        setattr(pipe, part(pipe), torch.compile(denoiser(pipe), backend=backend, fullgraph=True))
    elif how == "in place":
        denoiser(pipe).compile(backend=backend, fullgraph=True)
    else:
        for module in denoiser(pipe).modules():
            if type(module).__name__ in ("BasicTransformerBlock", "JointTransformerBlock"):
                module.compile(backend=backend, fullgraph=True)


def test_a_compiled_denoiser_swaps_without_recompiling(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect, compiled: Callable[[str], tuple[Pipe, Any]]
) -> None:
    first, second = always(eraser), policy(concept("weapon", eraser=eraser, activation="always", strength=1.0))
    with protect(pipe, first) as guard:
        expected = [generate(pipe, PROMPTS)]
        guard.swap(second)
        expected.append(generate(pipe, PROMPTS))
    own, guard = compiled(family)
    guard.swap(first)
    torch.testing.assert_close(generate(own, PROMPTS), expected[0], **CLOSE)
    with no_recompilation():
        guard.swap(second)
        torch.testing.assert_close(generate(own, PROMPTS), expected[1], **CLOSE)
        guard.swap(policy(concept("fish", eraser=eraser, activation="adaptive")))
        torch.testing.assert_close(generate(own, PROMPTS), plain(family), **CLOSE)
        guard.swap(first)
        torch.testing.assert_close(generate(own, PROMPTS), expected[0], **CLOSE)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("how", ["torch.compile", "in place", "blocks"])
def test_graphs_traced_through_autograd_hold_the_protection(how: str, own: Pipe, protect: Protect) -> None:
    """At two seams, made before the guard and before its swap."""
    both = policy(
        concept("blood", eraser="eiup", activation="always"),
        concept("gore", eraser="negative_prompt", activation="always"),
    )
    guard = protect(own, both)
    expected = generate(own, PROMPTS)
    guard.release()
    compiled_denoiser(own, how, "aot_eager")
    guard = protect(own, policy(concept("fish")))
    generate(own, PROMPTS)
    with no_recompilation():
        guard.swap(both)
        torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


@pytest.mark.usefixtures("graphs")
def test_a_graph_made_before_protect_does_not_run_unprotected(own: Pipe, protect: Protect) -> None:
    compiled_denoiser(own, "torch.compile", "eager")
    unprotected = generate(own, PROMPTS)
    for _ in range(2):  # the second guard finds a graph with the first one's hooks
        guard = protect(own, always("eiup"))
        assert rows_changed(generate(own, PROMPTS), unprotected) == [True, True, True]
        guard.release()
    torch.testing.assert_close(generate(own, PROMPTS), unprotected, **CLOSE)


@pytest.mark.usefixtures("graphs")
def test_compiling_after_protect_is_protected(own: Pipe, protect: Protect) -> None:
    unprotected = generate(own, PROMPTS)
    protect(own, always("eiup"))
    compiled_denoiser(own, "torch.compile", "eager")
    assert rows_changed(generate(own, PROMPTS), unprotected) == [True, True, True]


@pytest.mark.usefixtures("graphs")
def test_a_compiled_denoiser_is_asked_again_past_its_graph(own: Pipe, protect: Protect) -> None:
    protect(own, always("acme_slide"))
    expected = generate(own, PROMPTS)
    compiled_denoiser(own, "torch.compile", "eager")
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


def test_a_pipeline_that_shares_a_guarded_denoiser_cannot_be_protected_again(
    eraser: str, family: str, own: Pipe, protect: Protect
) -> None:
    other = IMG2IMG[family].from_pipe(own)
    protect(own, always(eraser))
    with pytest.raises(CapabilityError, match="shared"):
        protect(other, always(eraser))


@UNET
def test_a_guarded_pipeline_called_from_another_keeps_its_own_policy(eraser: str, own: Pipe, protect: Protect) -> None:
    """A callback of one request calls a second pipeline: each image is what it is alone."""
    other = FAMILIES["sd2"]()
    protect(own, policy(concept("blood", eraser=eraser)))
    protect(other, policy(concept("weapon", eraser=eraser, activation="always")))
    outer, inner = generate(own, PROMPTS), generate(other, PROMPTS)
    found: list[torch.Tensor] = []

    def call(*_: Any) -> dict[str, Any]:
        found.append(generate(other, PROMPTS))
        return {}

    assert same(generate(own, PROMPTS, callback_on_step_end=call), outer)
    assert all(same(one, inner) for one in found)
