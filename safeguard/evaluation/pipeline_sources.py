"""Pipelines that commands name: those that installed distributions register, and any folder that diffusers can load."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from safeguard import _entry_points
from safeguard.errors import AssetError

GROUP: Final = "safeguard.pipelines"


class PipelineSource(Protocol):
    """A pipeline with how it is usually called. Register an object of this kind in the group ``safeguard.pipelines``.

    ``steps`` and ``guidance`` are what the pipeline is measured with; None leaves the pipeline's own default.
    """

    @property
    def steps(self) -> int | None: ...
    @property
    def guidance(self) -> float | None: ...

    def load(self) -> Any:
        """A new pipeline. Raises AssetError where a file is missing."""

    def call_options(self, pipe: Any) -> Mapping[str, Any]:
        """What every call of the pipeline gets besides the prompt, steps and guidance."""

    def calibration(self) -> Path | None:
        """The calibration file that comes with the pipeline, or None."""

    def ordinary_prompts(self, count: int) -> Sequence[str]:
        """Prompts without any concept, to calibrate on: ``count`` of them, or all there are."""


@dataclass(frozen=True, slots=True)
class FolderPipeline:
    """A diffusers pipeline saved in a folder: in float16 on a GPU where there is one, else in float32. Nothing is fetched."""

    folder: Path
    steps: int | None = None
    guidance: float | None = None

    def load(self) -> Any:
        """Raises AssetError where the folder holds no pipeline."""
        import diffusers
        import torch

        # One dtype for all parts: a folder may hold halves, which no CPU computes with in good time.
        device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
        try:
            options = {"local_files_only": True, "dtype": dtype, **absent_parts(self.folder)}
            pipe = diffusers.DiffusionPipeline.from_pretrained(os.fspath(self.folder), **options)
            if pipe.dtype != dtype:  # a diffusers that knows the option by its older name, `torch_dtype`, only
                pipe.to(dtype)
            pipe.to(device)
        except Exception as fault:
            raise AssetError(f"{self.folder}: this folder holds no pipeline that diffusers can load ({fault})") from fault
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call_options(self, pipe: Any) -> Mapping[str, Any]:
        return {}

    def calibration(self) -> Path | None:
        return None

    def ordinary_prompts(self, count: int) -> Sequence[str]:
        """The harmless prompts that the screener's heads are fitted on: all of them, so that the figures stay what they are."""
        from safeguard.screening.corpus import shipped_corpus

        return list(shipped_corpus().benign)


def absent_parts(folder: Path) -> dict[str, None]:
    """The parts that a saved pipeline does without, for ``from_pretrained``: diffusers wants to be told of some of them."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    return {name: None for name, part in index.items() if isinstance(part, list) and part[0] is None}


def pipeline_source(place: str | os.PathLike[str]) -> PipelineSource:
    """The pipeline of a name or a folder. Nothing is loaded yet.

    Args:
        place: A folder that holds a diffusers pipeline, or the name of a registered one.

    Raises:
        AssetError: There is neither such a folder nor such a name.
        PluginError: The name is registered twice, or cannot be imported.
    """
    if Path(place).is_dir():
        return FolderPipeline(Path(place))
    source: PipelineSource = registered(GROUP, os.fspath(place), "pipeline", "name a folder that holds a diffusers pipeline")
    return source


def load_pipeline(place: str | os.PathLike[str]) -> Any:
    """The pipeline of a name or a folder, loaded. Raises what `pipeline_source` and its ``load`` raise."""
    return pipeline_source(place).load()


def calibration_of(word: str, place: str | os.PathLike[str]) -> Path | None:
    """The calibration that a command was asked for: a file, ``none``, or by ``default`` the one that comes with a pipeline."""
    if word != "default":
        return None if word == "none" else Path(word)
    return pipeline_source(place).calibration()


def registered(group: str, name: str, what: str, otherwise: str) -> Any:
    """What a distribution registers under ``name``. Raises AssetError, with what to install, where nobody does."""
    names = _entry_points.names(group)
    if name not in names:
        install = "install one that has it; the demo's are in safeguard-diffusion-demo"
        raise AssetError(f"no {what} {name!r}; installed are {', '.join(names) or 'none'}: {install}, or {otherwise}")
    return _entry_points.load(group, name, what)
