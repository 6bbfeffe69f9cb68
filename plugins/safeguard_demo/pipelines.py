"""Loading the trained demo pipelines: ordinary diffusers pipelines from ordinary folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safeguard.errors import AssetError
from safeguard.evaluation.pipeline_sources import absent_parts

ASSETS: Final = Path(__file__).with_name("assets")
STEPS: Final = 10  # of the schedule, in every measurement
GUIDANCE: Final = 4.0
KINDS: Final = {
    "unet": "StableDiffusionPipeline",
    "mmdit": "StableDiffusion3Pipeline",
    "language": "StableDiffusionPipeline",
}


def load_pipeline(kind: str = "unet", folder: Path | None = None) -> Any:
    """A trained demo pipeline, in float32 on the CPU, its denoiser's weights laid out channels last where that is faster.

    ``unet``: a ``StableDiffusionPipeline``; ``mmdit``: a ``StableDiffusion3Pipeline`` (joint attention, flow matching, pooled
    text); ``language``: the first one with a text encoder that was trained on real language, and not with the denoiser. All
    draw 64x64 pictures of the same world. ``folder`` reads it from elsewhere than the package.
    Raises AssetError for a kind that does not exist or weights that are missing.
    """
    import diffusers
    import torch

    from safeguard.testing.tiny_pipelines import count_zeros

    if kind not in KINDS:
        raise AssetError(f"there is no demo pipeline {kind!r}; there is {', '.join(KINDS)}")
    place = folder or ASSETS / kind
    own = "unet/config.json" if kind == "language" else "model_index.json"
    if not (place / own).is_file():
        raise AssetError(f"the weights of demo pipeline {kind!r} are missing; reinstall the package, or train them: make train")
    if kind == "language":
        pipe = _language(place)
    else:
        pipe = getattr(diffusers, KINDS[kind]).from_pretrained(place, local_files_only=True, **absent_parts(place))
    for part in pipe.components.values():  # not by an option: its name is another one in older versions of diffusers
        if isinstance(part, torch.nn.Module):
            part.float()
    pipe.register_to_config(_name_or_path=f"safeguard_demo/{kind}")  # what records say, wherever the package lies
    pipe.set_progress_bar_config(disable=True)
    if kind == "mmdit":
        count_zeros(pipe)
    if kind != "mmdit":
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe


def _language(place: Path) -> Any:
    """The first pipeline's autoencoder and scheduler, the UNet in ``place``, and the pretrained encoder from its package."""
    import diffusers

    from safeguard_demo.architectures import language_text, language_tokens

    shared = ASSETS / "unet"
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(shared / "vae", local_files_only=True),
        text_encoder=language_text(),
        tokenizer=language_tokens(),
        unet=diffusers.UNet2DConditionModel.from_pretrained(place / "unet", local_files_only=True),
        scheduler=diffusers.DDIMScheduler.from_pretrained(shared / "scheduler", local_files_only=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def calibration(kind: str) -> Path:
    """The calibration of a demo pipeline for ``builtin://demo``: a file for ``protect(..., calibration=)``.

    Raises AssetError where there is none.
    """
    path = ASSETS / f"calibration-{kind}.json"
    if not path.is_file():
        raise AssetError(f"demo pipeline {kind!r} has no calibration; make one: safeguard calibrate {kind} builtin://demo")
    return path


def call_options(pipe: Any) -> dict[str, Any]:
    """See `safeguard.training.frozen_pipeline.call_options`."""
    from safeguard.training.frozen_pipeline import call_options as of_pipeline  # it loads torch

    return of_pipeline(pipe)


@dataclass(frozen=True, slots=True)
class DemoPipeline:
    """A demo pipeline as `safeguard` finds it by name, through the entry point group ``safeguard.pipelines``."""

    kind: str
    steps: int | None = STEPS
    guidance: float | None = GUIDANCE

    def load(self) -> Any:
        """See `load_pipeline`."""
        return load_pipeline(self.kind)

    def call_options(self, pipe: Any) -> Mapping[str, Any]:
        """See the function `call_options`."""
        return call_options(pipe)

    def calibration(self) -> Path | None:
        """The calibration for ``builtin://demo``."""
        return calibration(self.kind)

    def ordinary_prompts(self, count: int) -> Sequence[str]:
        """Benign captions of the split that the pipeline was trained on."""
        from safeguard_demo import captions, language

        drawn = language.prompts if self.kind == "language" else captions.prompts
        return [prompt.text for prompt in drawn("train", "benign", None, count)]


UNET: Final = DemoPipeline("unet")
MMDIT: Final = DemoPipeline("mmdit")
LANGUAGE: Final = DemoPipeline("language")
