"""Train the demo models: ``python -m safeguard_demo.train_models STAGE --out FOLDER``.

Stages, in order: ``vae`` (pixels to latents), ``unet`` and ``mmdit`` (each a text encoder and a denoiser), ``language`` (a
denoiser for a text encoder that is pretrained), ``judge``, ``pixel_judge`` and ``transformer_judge``, ``export`` (write the
weights that the package carries). Each may be stopped at any moment and goes on where it was. A stage takes what an earlier one
made from its checkpoint in the folder, or from the package where there is none.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safeguard._io import write_whole
from safeguard.training.randomness import step_rng
from safeguard_demo.architectures import (
    build_flow_scheduler,
    build_mmdit,
    build_pooling_text_encoder,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    tokens,
)
from safeguard_demo.captions import Prompt, combinations, sample, write
from safeguard_demo.judge import ATTRIBUTES, FILE, build_network, split_logits
from safeguard_demo.pipelines import ASSETS, load_pipeline
from safeguard_demo.stages import Stage, pixels
from safeguard_demo.train_language import SCENES, export_language, kept_scenes, language_loss, language_stage
from safeguard_demo.train_language import STEPS as LANGUAGE_STEPS
from safeguard_demo.train_pixel_judge import STEPS as PIXEL_JUDGE_STEPS
from safeguard_demo.train_pixel_judge import export_pixel_judge, pixel_judge_loss, pixel_judge_stage
from safeguard_demo.train_transformer_judge import BATCH as TRANSFORMER_JUDGE_BATCH
from safeguard_demo.train_transformer_judge import STEPS as TRANSFORMER_JUDGE_STEPS
from safeguard_demo.train_transformer_judge import export_transformer_judge, transformer_judge_loss, transformer_judge_stage
from safeguard_demo.world import CONCEPTS, Scene

log = logging.getLogger("safeguard_demo.train_models")
SEED = 7
VAE_STEPS = 2800
UNET_STEPS = 4000
MMDIT_STEPS = 6000
MMDIT_SCENES = 49_152
JUDGE_STEPS = 420


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Finite differences along both axes of [n, c, h, w]."""
    return image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]


def picture_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Squared, absolute and gradient error: the last keeps outlines sharp."""
    sharp = sum(((a - b).abs().mean() for a, b in zip(edges(predicted), edges(true), strict=True)), torch.zeros(()))
    return F.mse_loss(predicted, true) + 0.3 * F.l1_loss(predicted, true) + 0.15 * sharp


def vae_stage(out: Path, steps: int) -> Stage:
    torch.manual_seed(SEED)
    vae = build_vae().to(memory_format=torch.channels_last)
    return Stage("vae", vae, out, steps=steps, rate=2e-3, decay=0.998, weight_decay=1e-4)


def vae_loss(stage: Stage, batch: int = 16) -> Callable[[int], Tensor]:
    vae: Any = stage.module

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "vae", step)
        true = pixels([sample(rng).scene for _ in range(batch)], rng).to(memory_format=torch.channels_last)
        posterior = vae.encode(true).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        rate = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
        total: Tensor = picture_loss(vae.decode(latents).sample, true) + 1e-4 * rate
        return total

    return loss


class Painter(nn.Module):
    """The text encoder and the denoiser, trained together."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.text = build_text_encoder(tokenizer)
        self.unet = build_unet().to(memory_format=torch.channels_last)


def trained_vae(out: Path, *, shifted: bool = False) -> Any:
    """The autoencoder of the ``vae`` stage, its scaling factor, and with ``shifted`` its shift, measured on 512 renders."""
    stage = vae_stage(out, 0)
    vae: Any = stage.averaged() if stage.step else load_pipeline("unet").vae
    rng, _ = step_rng(SEED, "scale", 0)
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(pixels([sample(rng).scene for _ in range(64)], rng)).latent_dist.mean for _ in range(8)]
        )
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    if shifted:
        vae.register_to_config(shift_factor=round(latents.mean().item(), 5))
    return vae


def drawn(vae: Any, rng: random.Random, batch: int) -> tuple[Tensor, list[str]]:
    """Latents [n, 8, 16, 16] of scenes, scaled as the autoencoder says, and their captions."""
    pairs = [sample(rng) for _ in range(batch)]
    with torch.no_grad():
        latents = vae.encode(pixels([pair.scene for pair in pairs], rng)).latent_dist.mean * vae.config.scaling_factor
    return latents, ["" if rng.random() < 0.1 else pair.text for pair in pairs]


def unet_stage(out: Path, steps: int, tokenizer: Any) -> Stage:
    torch.manual_seed(SEED)
    return Stage("unet", Painter(tokenizer), out, steps=steps, rate=1.2e-3, decay=0.998)


def unet_loss(stage: Stage, vae: Any, tokenizer: Any, batch: int) -> Callable[[int], Tensor]:
    """Velocity prediction (Salimans & Ho 2022, arXiv 2202.00512, app. D) on latents; one caption in ten is empty."""
    painter: Any = stage.module
    scheduler = build_scheduler()

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "unet", step)
        latents, texts = drawn(vae, rng, batch)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, times).to(memory_format=torch.channels_last)
        states = painter.text(tokens(tokenizer, texts))[0]
        return F.mse_loss(painter.unet(noisy, times, states).sample, scheduler.get_velocity(latents, noise, times))

    return loss


class JointPainter(nn.Module):
    """The text encoder, which stands for both of Stable Diffusion 3, and the denoiser, trained together.

    The text encoder begins as the first pipeline's, which already knows the words; its projection is new.
    """

    def __init__(self, tokenizer: Any, taught: Any) -> None:
        super().__init__()
        self.text = build_pooling_text_encoder(tokenizer)
        self.text.load_state_dict(taught.state_dict(), strict=False)
        self.transformer = build_mmdit()

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States [n, L, 2 D] and pooled vectors [n, 2 D], as the pipeline makes them."""
        encoded = self.text(ids, output_hidden_states=True)
        states, pooled = encoded.hidden_states[-2], encoded.text_embeds
        return torch.cat([states, states], -1), torch.cat([pooled, pooled], -1)


def mmdit_stage(out: Path, steps: int, tokenizer: Any) -> Stage:
    torch.manual_seed(SEED)
    earlier = unet_stage(out, 0, tokenizer)
    taught: Any = earlier.averaged().text if earlier.step else load_pipeline("unet").text_encoder
    torch.manual_seed(SEED)
    return Stage("mmdit", JointPainter(tokenizer, taught), out, steps=steps, rate=1.2e-3, decay=0.998)


def kept_latents(out: Path, vae: Any, count: int) -> tuple[Tensor, list[Prompt]]:
    """``count`` scenes as latents, float16 [n, 8, 16, 16], kept in a file beside the checkpoints, and what they show.

    Encoding a scene costs half of what learning from it does, and 49,152 of them, each read under a new caption, are enough.
    """
    from safetensors.torch import load_file, save

    rng, _ = step_rng(SEED, "latents", 0)
    pairs = [sample(rng) for _ in range(count)]
    file = out / "mmdit.latents.safetensors"
    if not file.exists():
        parts = []
        with torch.no_grad():
            for first in range(0, count, 64):
                latents = vae.encode(pixels([pair.scene for pair in pairs[first : first + 64]], rng)).latent_dist.mean
                parts.append(((latents - vae.config.shift_factor) * vae.config.scaling_factor).half())
        write_whole(file, save({"latents": torch.cat(parts).contiguous()}))
    return load_file(file)["latents"], pairs


def mmdit_loss(
    stage: Stage, scenes: tuple[Tensor, list[Prompt]], tokenizer: Any, batch: int, *, brief: bool
) -> Callable[[int], Tensor]:
    """Rectified flow, logit-normal times (Esser et al. 2024, arXiv 2403.03206, sec. 3.1); one caption in ten is empty.

    One batch in forty carries the 256 zero tokens that the pipeline puts in the place of its third text encoder unless it is
    called with ``max_sequence_length=0``, so that both give the same pictures. ``brief`` multiplies in bfloat16.
    """
    painter: Any = stage.module
    latents_kept, pairs = scenes

    def loss(step: int) -> Tensor:
        rng, generator = step_rng(SEED, "mmdit", step)
        chosen = [rng.randrange(len(pairs)) for _ in range(batch)]
        latents = latents_kept[chosen].float()
        texts = [write(pairs[i].scene, pairs[i].named, "train", rng) if rng.random() >= 0.1 else "" for i in chosen]
        noise = torch.randn(latents.shape, generator=generator)
        share = torch.randn((batch, 1, 1, 1), generator=generator).sigmoid()
        with torch.autocast("cpu", torch.bfloat16, enabled=brief):
            states, pooled = painter.read(tokens(tokenizer, texts))
            if rng.random() < 0.025:
                states = F.pad(states, (0, 0, 0, 256))
            noisy = (1 - share) * latents + share * noise
            flow = painter.transformer(noisy, states, pooled, 1000 * share.flatten()).sample
        return F.mse_loss(flow.float(), noise - latents)

    return loss


def judge_stage(out: Path, steps: int) -> Stage:
    torch.manual_seed(SEED)
    return Stage("judge", build_network(), out, steps=steps, rate=2e-3, decay=0.98, weight_decay=1e-3)


def judged_batch(vae: Any, stage: str, step: int, batch: int, split: str = "train") -> tuple[Tensor, list[Scene]]:
    """Pictures with their scenes: the first half as rendered, the second half through the autoencoder, slightly disturbed."""
    rng, generator = step_rng(SEED, stage, step)
    scenes = [judged_scene(rng, split) for _ in range(batch)]
    images = pixels(scenes, rng)
    half = batch // 2
    with torch.no_grad():
        latents = vae.encode(images[half:]).latent_dist.mean
        latents += 0.1 * latents.std() * torch.randn(latents.shape, generator=generator)
        images[half:] = vae.decode(latents).sample.clamp(-1, 1)
    return images, scenes


def judged_scene(rng: random.Random, split: str) -> Scene:
    """Any concept anywhere, so that the judge learns what is drawn and not what usually comes together."""
    subject, colour, place = rng.choice(combinations(split))
    shown = {concept for concept in CONCEPTS if rng.random() < 0.18}
    return Scene(subject, colour, place, tuple(concept for concept in CONCEPTS if concept in shown))


def judge_loss(stage: Stage, vae: Any, batch: int) -> Callable[[int], Tensor]:
    def loss(step: int) -> Tensor:
        images, scenes = judged_batch(vae, "judge", step, batch)
        labels = [scene.labels() for scene in scenes]
        parts = split_logits(stage.module(images))
        shown = torch.tensor([[label[concept] for concept in CONCEPTS] for label in labels], dtype=torch.float32)
        total = 2 * F.binary_cross_entropy_with_logits(parts["concepts"], shown)
        for name in ATTRIBUTES:
            total = total + F.cross_entropy(parts[name], torch.tensor([label[name] for label in labels]))
        return total

    return loss


def export(out: Path, assets: Path) -> None:
    """Write what was trained here for the package to carry: the pipelines in half precision, and the judge. What has no
    checkpoint in ``out`` stays as the package has it.
    """
    from safetensors.torch import save_file

    tokenizer = build_tokenizer()
    if (out / "unet.checkpoint").exists():
        export_unet(out, assets, tokenizer)
    if (out / "mmdit.checkpoint").exists():
        export_mmdit(out, assets, tokenizer)
    if (out / "language.checkpoint").exists():
        export_language(out, assets)
    if (out / "pixel_judge.checkpoint").exists():
        export_pixel_judge(out, assets, {kind: load_pipeline(kind) for kind in ("unet", "mmdit")})
    if (out / "transformer_judge.checkpoint").exists():
        export_transformer_judge(out, assets)
    if (out / "judge.checkpoint").exists():
        judge = judge_stage(out, 0).averaged()
        (assets / "judge").mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, assets / "judge" / FILE)
    for folder in assets.glob("*/tokenizer*"):
        older_words(folder)
    for folder in assets.glob("*/text_encoder*"):
        older_names(folder / "model.safetensors")
    for file in assets.rglob("*.safetensors"):
        file.chmod(0o644)


def older_words(folder: Path) -> None:
    """Beside the tokenizer that transformers 5 saves, the two files that transformers 4 reads a ``CLIPTokenizer`` from."""
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(folder))


def older_names(file: Path) -> None:
    """Name a text encoder's weights as every version of transformers reads them.

    Version 5 saves a ``CLIPTextModel`` without the prefix ``text_model.``. Version 4 looks for the prefix; where it is missing,
    it draws random weights and only warns.
    """
    from safetensors.torch import load_file, save_file

    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    weights = {name.replace("text_model.text_projection", "text_projection"): value for name, value in weights.items()}
    save_file(weights, file, metadata={"format": "pt"})


def export_unet(out: Path, assets: Path, tokenizer: Any) -> None:
    """Write the first pipeline, in half precision."""
    from diffusers import StableDiffusionPipeline

    painter: Any = unet_stage(out, 0, tokenizer).averaged()
    pipe = StableDiffusionPipeline(
        vae=trained_vae(out),
        text_encoder=painter.text,
        tokenizer=tokenizer,
        unet=painter.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(assets / "unet", safe_serialization=True)


def export_mmdit(out: Path, assets: Path, tokenizer: Any) -> None:
    """Write the second pipeline, in half precision."""
    from diffusers import StableDiffusion3Pipeline

    joint: Any = mmdit_stage(out, 0, tokenizer).averaged()
    flow = StableDiffusion3Pipeline(
        vae=trained_vae(out, shifted=True),
        text_encoder=joint.text,
        tokenizer=tokenizer,
        text_encoder_2=joint.text,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=joint.transformer,
        scheduler=build_flow_scheduler(),
    )
    flow.to(torch.float16).save_pretrained(assets / "mmdit", safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stage", choices=("vae", "unet", "mmdit", "language", "judge", "pixel_judge", "transformer_judge", "export")
    )
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--steps", type=int, help="steps of the stage (default: what the shipped weights had)")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where export writes")
    parser.add_argument("--batch", type=int, help="scenes a step (default: what the shipped weights had)")
    parser.add_argument("--bf16", action="store_true", help="mmdit: multiply in bfloat16, faster where the processor can")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)
    out: Path = arguments.out
    if arguments.stage == "vae":
        stage = vae_stage(out, arguments.steps or VAE_STEPS)
        stage.run(vae_loss(stage))
    elif arguments.stage == "unet":
        tokenizer = build_tokenizer()
        stage = unet_stage(out, arguments.steps or UNET_STEPS, tokenizer)
        stage.run(unet_loss(stage, trained_vae(out), tokenizer, arguments.batch or 32))
    elif arguments.stage == "mmdit":
        tokenizer = build_tokenizer()
        stage = mmdit_stage(out, arguments.steps or MMDIT_STEPS, tokenizer)
        scenes = kept_latents(out, trained_vae(out, shifted=True), MMDIT_SCENES)
        stage.run(mmdit_loss(stage, scenes, tokenizer, arguments.batch or 64, brief=arguments.bf16))
    elif arguments.stage == "language":
        stage = language_stage(out, arguments.steps or LANGUAGE_STEPS)
        stage.run(language_loss(stage, kept_scenes(out, SCENES), arguments.batch or 24))
    elif arguments.stage == "judge":
        stage = judge_stage(out, arguments.steps or JUDGE_STEPS)
        stage.run(judge_loss(stage, trained_vae(out), 64))
    elif arguments.stage == "pixel_judge":
        stage = pixel_judge_stage(out, arguments.steps or PIXEL_JUDGE_STEPS)
        stage.run(pixel_judge_loss(stage, trained_vae(out), arguments.batch or 24))
    elif arguments.stage == "transformer_judge":
        stage = transformer_judge_stage(out, arguments.steps or TRANSFORMER_JUDGE_STEPS)
        stage.run(transformer_judge_loss(stage, trained_vae(out), arguments.batch or TRANSFORMER_JUDGE_BATCH))
    else:
        export(out, arguments.assets)


if __name__ == "__main__":
    main()
