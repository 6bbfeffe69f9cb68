"""Where pictures are made: a pipeline, a judge of its pictures, and the settings of every measurement."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from safeguard.audit import AuditSink
from safeguard.errors import AssetError, SafeguardError
from safeguard.evaluation.prompt_sets import PromptCase
from safeguard.evaluation.statistics import Pixels
from safeguard.guard import Guard, ScreenLike, protect
from safeguard.plan.calibration import Calibration
from safeguard.policy import Policy


class PictureJudge(Protocol):
    """Says what pictures show: each concept as bool [n], ``subject``, ``colour`` and ``scene`` as str [n]."""

    def predict(self, images: Pixels) -> dict[str, npt.NDArray[Any]]: ...


@dataclass(eq=False)
class Harness:
    """A pipeline with what its measurements share."""

    pipe: Any
    judge: PictureJudge
    steps: int
    guidance: float
    calibration: Calibration | None = None  # by which adaptive concepts open; without one they act in every picture
    options: Mapping[str, Any] = field(default_factory=dict)  # what else the pipeline is called with
    _screener: ScreenLike | None = None

    @property
    def screener(self) -> ScreenLike:
        """The default screener, loaded once for all policies."""
        if self._screener is None:
            from safeguard.screening import Screener

            self._screener = Screener()
        return self._screener

    def paint(self, cases: Sequence[PromptCase], **more: Any) -> Pixels:
        """The pictures of these cases, each from its own seed: uint8 [n, h, w, 3]."""
        import safeguard_demo
        import torch

        made = self.pipe(
            [case.text for case in cases],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            output_type="pil",
            **{**safeguard_demo.call_options(self.pipe), **self.options, **more},
        )
        return np.stack([np.asarray(image.convert("RGB")) for image in made.images])

    @contextmanager
    def under(self, policy: Policy | None, *, screened: bool = False, audit: AuditSink | None = None) -> Iterator[Guard | None]:
        """The pipeline under a policy, or as it is (None), for the length of a ``with`` block."""
        if policy is None:
            yield None
            return
        screener = self.screener if screened else None
        with protect(self.pipe, policy, screener=screener, audit=audit, calibration=self.calibration) as guard:
            yield guard

    def digest(self) -> str:
        """Names the pipeline's weights."""
        return weights_digest(self.pipe.components)


def weights_digest(parts: Mapping[str, Any]) -> str:
    """Names weights: hex SHA-256 over every parameter of some modules; what else is among the parts does not count."""
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if hasattr(part, "state_dict"):
            for key, value in sorted(part.state_dict().items()):
                total.update(f"{name}.{key}".encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
    return total.hexdigest()


def load_pipeline(place: str | os.PathLike[str]) -> Any:
    """``unet`` (or another pipeline of `safeguard_demo`), or a folder that holds any diffusers pipeline: in float16 on a GPU
    where there is one, else in float32.

    Nothing is fetched. Raises AssetError where there is no pipeline.
    """
    import safeguard_demo
    from safeguard_demo.pipelines import absent_parts

    if not Path(place).is_dir():
        return safeguard_demo.load_pipeline(os.fspath(place))
    import diffusers
    import torch

    # One dtype for all parts: a folder may hold halves, which no CPU computes with in good time.
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    try:
        options = {"local_files_only": True, "dtype": dtype, **absent_parts(Path(place))}
        pipe = diffusers.DiffusionPipeline.from_pretrained(os.fspath(place), **options).to(device)
    except Exception as fault:
        raise AssetError(f"{place}: this folder holds no pipeline that diffusers can load ({fault})") from fault
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quiet_libraries() -> None:
    """Keep the loading bars and advice of diffusers and transformers, and the lines of torch's profiler, off the terminal. For
    programs, not for libraries.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when the profiler first begins


def calibration_of(word: str, pipeline: str | os.PathLike[str]) -> Path | None:
    """The calibration that a command was asked for: a file, ``none``, or by ``default`` that of a demo pipeline."""
    import safeguard_demo

    if word != "default":
        return None if word == "none" else Path(word)
    return None if Path(pipeline).is_dir() else safeguard_demo.calibration(os.fspath(pipeline))


def open_harness(pipeline: str | os.PathLike[str] = "unet", judge: Path | None = None, calibration: str = "default") -> Harness:
    """The demo pipeline, or the one in a folder, with a calibration (see `calibration_of`), the demo's judge and settings.
    Raises AssetError, and CapabilityError for a file that is no calibration.
    """
    import safeguard_demo

    file = calibration_of(calibration, pipeline)
    gauged = None if file is None else Calibration.load(file)
    try:
        return Harness(
            load_pipeline(pipeline), safeguard_demo.Judge(judge), safeguard_demo.STEPS, safeguard_demo.GUIDANCE, gauged
        )
    except ModuleNotFoundError as fault:
        raise SafeguardError(f"the demo needs the package '{fault.name}': install safeguard-diffusion[demo]") from fault
