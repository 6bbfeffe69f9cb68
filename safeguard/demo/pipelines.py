"""Loading the trained demo pipelines: ordinary diffusers pipelines from ordinary folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from safeguard.errors import AssetError

ASSETS: Final = Path(__file__).with_name("assets")
STEPS: Final = 10  # of the schedule, in every measurement
GUIDANCE: Final = 4.0
KINDS: Final = {"unet": "StableDiffusionPipeline"}


def load_pipeline(kind: str = "unet", folder: Path | None = None) -> Any:
    """A trained demo pipeline, in float32 on the CPU, its denoiser's weights laid out channels last (faster there).

    ``unet``: a ``StableDiffusionPipeline`` that draws 64x64 pictures. ``folder`` reads it from elsewhere than the package.
    Raises AssetError for a kind that does not exist or weights that are missing.
    """
    import diffusers
    import torch

    if kind not in KINDS:
        raise AssetError(f"there is no demo pipeline {kind!r}; there is {', '.join(KINDS)}")
    place = folder or ASSETS / kind
    if not (place / "model_index.json").is_file():
        raise AssetError(f"the weights of demo pipeline {kind!r} are missing; reinstall the package, or train them: make train")
    made = getattr(diffusers, KINDS[kind]).from_pretrained(place, dtype=torch.float32, local_files_only=True)
    made.register_to_config(_name_or_path=f"safeguard.demo/{kind}")  # what records say, wherever the package lies
    made.set_progress_bar_config(disable=True)
    made.unet.to(memory_format=torch.channels_last)
    return made
