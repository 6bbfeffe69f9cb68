"""The stage ``language`` of `safeguard_demo.train_models`: the shipped UNet learns to read a pretrained, frozen text encoder.

The teacher is the shipped UNet under the world's own caption of a scene; the student reads a caption in ordinary words of the
same scene. Loss: squared error to the teacher's velocity, and `TRUE` of that to the true velocity.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from safeguard._io import write_whole
from safeguard.training.randomness import step_rng
from safeguard_demo import captions, language
from safeguard_demo.architectures import build_scheduler, build_unet, language_text, language_tokens, tokens
from safeguard_demo.pipelines import load_pipeline
from safeguard_demo.stages import Stage, pixels
from safeguard_demo.world import Scene

SEED: Final = 11
STEPS: Final = 1250
SCENES: Final = 10_240
CAPTIONS: Final = 3  # of each scene
TRUE: Final = 0.3
NOISE: Final = 0.5  # at most so many standard deviations of noise on the token states, so that near words read alike
RATE: Final = 4e-4
FRESH: Final = 2e-3  # of the keys and values, which are new


def language_stage(out: Path, steps: int) -> Stage:
    """The shipped UNet with keys and values for states of the pretrained encoder's width."""
    torch.manual_seed(SEED)
    student = build_unet(language_text().config.hidden_size).to(memory_format=torch.channels_last)
    taught = {name: value for name, value in load_pipeline("unet").unet.state_dict().items() if not _fresh(name)}
    student.load_state_dict(taught, strict=False)
    fresh = [value for name, value in student.named_parameters() if _fresh(name)]
    rest = [value for name, value in student.named_parameters() if not _fresh(name)]
    return Stage("language", student, out, steps=steps, rate=[(FRESH, fresh), (RATE, rest)], decay=0.998)


def _fresh(name: str) -> bool:
    return ".attn2.to_k" in name or ".attn2.to_v" in name


def kept_scenes(out: Path, count: int) -> tuple[list[Scene], Tensor, Tensor]:
    """Scenes, their latents [n, 8, 16, 16] and the token states [n * `CAPTIONS`, L, 384] of captions of them, both float16 and
    kept in a file beside the checkpoints: reading a caption costs a third of what learning from it does.
    """
    from safetensors.torch import load_file, save

    rng, _ = step_rng(SEED, "scenes", 0)
    scenes = [language.sample_scene(rng) for _ in range(count)]
    file = out / "language.scenes.safetensors"
    if not file.exists():
        vae, reader = load_pipeline("unet").vae, language_text()
        latents, states = [], []
        with torch.no_grad():
            for first in range(0, count, 64):
                some = scenes[first : first + 64]
                latents.append((vae.encode(pixels(some, rng)).latent_dist.mean * vae.config.scaling_factor).half())
                for scene in some:
                    texts = [language.sample(rng, scene) for _ in range(CAPTIONS)]
                    states.append(read(reader, texts).half())
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, save({"latents": torch.cat(latents).contiguous(), "states": torch.cat(states).contiguous()}))
    kept = load_file(file)
    return scenes, kept["latents"], kept["states"]


def read(reader: Any, texts: list[str]) -> Tensor:
    """Token states of texts as the pipeline makes them: float32 [n, L, 384]."""
    batch = language_tokens()(
        texts, padding="max_length", truncation=True, max_length=language_tokens().model_max_length, return_tensors="pt"
    )
    states: Tensor = reader(batch.input_ids, attention_mask=batch.attention_mask)[0]
    return states


def language_loss(stage: Stage, kept: tuple[list[Scene], Tensor, Tensor], batch: int) -> Callable[[int], Tensor]:
    """One caption in ten is empty, for the teacher and the student."""
    student: Any = stage.module
    teacher = load_pipeline("unet")
    scheduler = build_scheduler()
    scenes, latents_kept, states_kept = kept
    with torch.no_grad():
        empty = read(language_text(), [""])[0]
    spread = states_kept[:512].float().std((0, 1))

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "language", step)
        chosen = [rng.randrange(len(scenes)) for _ in range(batch)]
        bare = torch.tensor([rng.random() < 0.1 for _ in chosen])
        latents = latents_kept[chosen].float()
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, times).to(memory_format=torch.channels_last)
        states = states_kept[[place * CAPTIONS + rng.randrange(CAPTIONS) for place in chosen]].float()
        amount = NOISE * torch.rand((batch, 1, 1), generator=generator)
        states = states + amount * spread * torch.randn(states.shape, generator=generator)
        states[bare] = empty
        named = [captions.write(scenes[place], scenes[place].concepts, "train", rng) for place in chosen]
        texts = ["" if alone else text for alone, text in zip(bare.tolist(), named, strict=True)]
        with torch.no_grad():
            target = teacher.unet(noisy, times, teacher.text_encoder(tokens(teacher.tokenizer, texts))[0]).sample
        velocity = student(noisy, times, states).sample
        return F.mse_loss(velocity, target) + TRUE * F.mse_loss(velocity, scheduler.get_velocity(latents, noise, times))

    return loss


def export_language(out: Path, assets: Path) -> None:
    """Write the third pipeline's own weights, in half precision: the rest is the first pipeline's and the encoder's package."""
    student: Any = language_stage(out, 0).averaged()
    student.half().save_pretrained(assets / "language" / "unet", safe_serialization=True)
