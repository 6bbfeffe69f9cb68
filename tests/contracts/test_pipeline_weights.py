"""What may happen to a protected denoiser's weights, devices and further inputs, and that it stays protected."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection

from safeguard.audit import MemorySink
from tests.support.contract_policies import always, concept, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, denoiser, generate, part
from tests.support.guarded import Guarded

Pipe = Any
Protect = Callable[..., Any]
pytestmark = [pytest.mark.only_families("sd1", "sd3"), pytest.mark.filterwarnings("ignore::FutureWarning")]
CLOSE = {"rtol": 1e-3, "atol": 2e-2}
ERASERS = pytest.mark.only_erasers("eiup", "negative_prompt", "sld")


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """For a family, a folder with a LoRA of the attentions' layers, keys and values included, that changes every picture."""
    return functools.cache(lambda family: made_lora(family, tmp_path_factory.mktemp("lora")))


@pytest.fixture
def lora(family: str, loras: Callable[[str], Path]) -> Path:
    return loras(family)


def made_lora(family: str, folder: Path) -> Path:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    trained = FAMILIES[family]()
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "to_v", "to_out.0", *(["add_k_proj", "add_v_proj"] if family == "sd3" else [])]
    denoiser(trained).add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False))
    layers = {f"{part(trained)}_lora_layers": get_peft_model_state_dict(denoiser(trained))}
    trained.save_lora_weights(folder, **layers)
    return folder


def load(pipe: Pipe, folder: Path) -> None:
    pipe.load_lora_weights(folder, adapter_name="style", local_files_only=True, weight_name="pytorch_lora_weights.safetensors")


@ERASERS
@pytest.mark.parametrize("fused", [False, True], ids=["beside", "fused"])
def test_a_lora_loaded_afterwards_is_erased_as_one_loaded_before(
    eraser: str, fused: bool, family: str, own: Pipe, lora: Path, protect: Protect
) -> None:
    before = FAMILIES[family]()
    load(before, lora)
    if fused:
        before.fuse_lora()
    protect(before, always(eraser))
    expected = generate(before, PROMPTS)
    protect(own, always(eraser))
    generate(own, PROMPTS)
    load(own, lora)
    if fused:
        own.fuse_lora()
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


@ERASERS
def test_a_lora_that_is_unloaded_leaves_the_protection(
    eraser: str, family: str, own: Pipe, lora: Path, protect: Protect
) -> None:
    protect(own, always(eraser))
    expected = generate(own, PROMPTS)
    load(own, lora)
    generate(own, PROMPTS)
    own.fuse_lora()
    generate(own, PROMPTS)
    own.unfuse_lora()
    own.unload_lora_weights()
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


def model_offload(pipe: Pipe) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Pipe) -> None:
    """As ``enable_sequential_cpu_offload`` does it to the denoiser; to text encoders accelerate cannot, on the CPU alone."""
    from accelerate import cpu_offload

    cpu_offload(denoiser(pipe), execution_device=torch.device("cpu"))


def group_offload(pipe: Pipe) -> None:
    device = torch.device("cpu")
    denoiser(pipe).enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")


OFFLOADS = pytest.mark.parametrize("offload", [model_offload, sequential_offload, group_offload])


@ERASERS
@OFFLOADS
def test_offloaded_before_it_is_protected(
    eraser: str, family: str, offload: Callable[[Pipe], None], own: Pipe, protect: Protect, guarded: Guarded
) -> None:
    expected = guarded.under(always(eraser))
    offload(own)
    protect(own, always(eraser))
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


@ERASERS
@OFFLOADS
def test_offloaded_afterwards_it_stays_protected(
    eraser: str, family: str, offload: Callable[[Pipe], None], own: Pipe, protect: Protect, guarded: Guarded
) -> None:
    expected = guarded.under(always(eraser))
    protect(own, always(eraser))
    offload(own)
    torch.testing.assert_close(generate(own, PROMPTS), expected, **CLOSE)


def quantized(pipe: Pipe) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(denoiser(pipe), weights=qint8)
    freeze(denoiser(pipe))


@functools.cache
def unprotected_int8(family: str) -> torch.Tensor:
    plain = FAMILIES[family]()
    quantized(plain)
    latents: torch.Tensor = generate(plain, PROMPTS)
    return latents


@ERASERS
@pytest.mark.parametrize("late", [False, True], ids=["before", "afterwards"])
def test_int8_weights_are_protected(eraser: str, late: bool, family: str, own: Pipe, protect: Protect) -> None:
    unprotected = unprotected_int8(family)
    if not late:
        quantized(own)
    protect(own, always(eraser))
    if late:
        quantized(own)
    assert rows_changed(generate(own, PROMPTS), unprotected) == [True, True, True]


@ERASERS
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_another_attention_backend_changes_nothing(eraser: str, family: str, backend: str, guarded: Guarded) -> None:
    expected = guarded.under(always(eraser))
    with attention_backend():  # which diffusers' `reset_attention_backend` leaves set for the whole process
        denoiser(guarded.pipe).set_attention_backend(backend)
        try:
            torch.testing.assert_close(generate(guarded.pipe, PROMPTS), expected, **CLOSE)
        finally:
            denoiser(guarded.pipe).reset_attention_backend()


def with_image_prompt(pipe: Pipe) -> dict[str, Any]:
    """Load an IP-Adapter of random weights; what a call is given for it."""
    torch.manual_seed(0)
    adapter = image_prompt_of_mmdit if part(pipe) == "transformer" else image_prompt_of_unet
    return adapter(denoiser(pipe))


def image_prompt_of_unet(unet: Any) -> dict[str, Any]:
    width = unet.config.cross_attention_dim
    layers: dict[str, torch.Tensor] = {}
    for place, name in enumerate(name for name in unet.attn_processors if "attn2" in name):
        inside = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        layers |= {f"{2 * place + 1}.{key}_ip.weight": torch.randn(inside, width) for key in ("to_k", "to_v")}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    image = {"proj.weight": torch.randn(4 * width, 16), "proj.bias": torch.zeros(4 * width), **norm}
    unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": layers}])
    return {"ip_adapter_image_embeds": [torch.randn(2, 1, 16)]}


def image_prompt_of_mmdit(mmdit: Any) -> dict[str, Any]:
    config = mmdit.config
    width = config.attention_head_dim * config.num_attention_heads
    processor = functools.partial(
        SD3IPAdapterJointAttnProcessor2_0, width, width, config.attention_head_dim, timesteps_emb_dim=64
    )
    layers = {
        f"{place}.{name}": weight
        for place in range(len(mmdit.attn_processors))
        for name, weight in processor().state_dict().items()
    }
    image = IPAdapterTimeImageProjection(16, width, hidden_dim=64, heads=1, num_queries=4, timestep_in_dim=32)
    mmdit._load_ip_adapter_weights({"image_proj": image.state_dict(), "ip_adapter": layers})
    return {"ip_adapter_image_embeds": torch.randn(2, 5, 16)}


@ERASERS
@pytest.mark.parametrize("late", [False, True], ids=["before", "afterwards"])
def test_an_image_prompt_leaves_the_text_protected(eraser: str, late: bool, family: str, own: Pipe, protect: Protect) -> None:
    plain = FAMILIES[family]()
    given = with_image_prompt(plain)
    unprotected = generate(plain, PROMPTS, **given)
    if not late:
        with_image_prompt(own)
    protect(own, policy(concept("blood", eraser=eraser)), example={} if late else given)
    if late:
        with_image_prompt(own)
    assert rows_changed(generate(own, PROMPTS, **given), unprotected) == [False, True, False]


def test_two_threads_on_one_denoiser_give_what_each_gives_alone(own: Pipe, protect: Protect) -> None:
    """Each with a copy of the pipeline and a scheduler of its own, since schedulers count their steps."""
    sink = MemorySink()
    protect(own, policy(concept("blood"), concept("weapon")), audit=sink)
    asked = (("blood on snow", "a red boat"), ("a weapon", "blood and a weapon"))
    alone = [generate(own, prompts) for prompts in asked]
    sink.records.clear()

    def ask(prompts: tuple[str, ...]) -> torch.Tensor:
        mine = copy.copy(own)
        mine.scheduler = type(own.scheduler).from_config(own.scheduler.config)
        found: torch.Tensor = generate(mine, prompts)
        return found

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(ask, asked * 3))
    assert all(same(one, alone[place % 2]) for place, one in enumerate(found))
    assert {record["subject"]["source"] for record in sink.records} == {"prompt"}
