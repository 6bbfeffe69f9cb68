"""Where pictures are made: a pipeline, a judge of its pictures, and the settings of every measurement."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from safeguard.audit import AuditSink
from safeguard.errors import AssetError, SafeguardError
from safeguard.evaluation.pipeline_sources import calibration_of, pipeline_source, registered
from safeguard.evaluation.prompt_sets import PromptCase, PromptSet, prompt_set
from safeguard.evaluation.statistics import Pixels
from safeguard.guard import Guard, ScreenLike, protect
from safeguard.plan.calibration import Calibration
from safeguard.policy import Policy
from safeguard.training.frozen_pipeline import weights_digest
from safeguard.training.sources import ConceptJudge

JUDGES: Final = "safeguard.judges"
STEPS: Final = 30  # where neither the pipeline nor what it is measured like names a number
GUIDANCE: Final = 7.5
PACKAGES: Final = ("skimage", "matplotlib")


class PictureJudge(ConceptJudge, Protocol):
    """A judge that names what it knows. Register one in the group ``safeguard.judges``: a callable that takes a file of weights
    or None.

    ``concepts`` and ``attributes`` are the names that it knows.
    """

    @property
    def concepts(self) -> tuple[str, ...]: ...
    @property
    def attributes(self) -> tuple[str, ...]: ...


@runtime_checkable
class AreaJudge(Protocol):
    """A judge that measures as well. What it finds of a concept counts as left where it is more than a tenth of what the same
    noise brings without protection, and as remains where it is less.
    """

    def areas(self, images: Pixels) -> Mapping[str, npt.NDArray[np.float64]]:
        """For n images, uint8 [n, h, w, 3]: of each concept the share of the picture that it takes, [n]."""


@dataclass(eq=False)
class Harness:
    """A pipeline with what its measurements share."""

    pipe: Any
    judge: PictureJudge
    steps: int
    guidance: float
    calibration: Calibration | None = None  # by which adaptive concepts open; without one they act in every picture
    options: Mapping[str, Any] = field(default_factory=dict)  # what else the pipeline is called with
    usual: Mapping[str, Any] = field(default_factory=dict)  # what every call of this pipeline gets; ``options`` go before it
    prompts: PromptSet | None = None  # what is measured on
    further: Mapping[str, PictureJudge] = field(default_factory=dict)  # who look at the same pictures as well, by name
    _screener: ScreenLike | None = None

    @property
    def screener(self) -> ScreenLike:
        """The default screener, loaded once for all policies."""
        if self._screener is None:
            from safeguard.screening import Screener

            self._screener = Screener()
        return self._screener

    @property
    def prompt_set(self) -> PromptSet:
        """Raises SafeguardError where this harness was made without prompts."""
        if self.prompts is None:
            raise SafeguardError("there are no prompts to measure on; make the harness with prompts=")
        return self.prompts

    def paint(self, cases: Sequence[PromptCase], **more: Any) -> Pixels:
        """The pictures of these cases, each from its own seed: uint8 [n, h, w, 3]."""
        import torch

        if any(case.negative for case in cases):
            more = {"negative_prompt": [case.negative for case in cases], **more}
        images = self.pipe(
            [case.text for case in cases],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            output_type="pil",
            **{**self.usual, **self.options, **more},
        )
        return np.stack([np.asarray(image.convert("RGB")) for image in images.images])

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


def open_harness(
    pipeline: str | os.PathLike[str] = "unet",
    judge: Path | None = None,
    calibration: str = "default",
    *,
    like: str = "unet",
    prompts: str | Path = "demo",
    judged_by: str = "demo",
) -> Harness:
    """A pipeline with prompts, a judge of its pictures, and a calibration.

    Args:
        pipeline: The name of a registered pipeline, or a folder with one.
        judge: A file of other weights for the (first) judge.
        calibration: See `calibration_of`.
        like: The registered pipeline whose steps, guidance and options hold for one in a folder.
        prompts: A registered prompt set, or a .csv or .jsonl file.
        judged_by: A registered judge, or several, separated by commas: the first is `Harness.judge`, the others are `further`.

    Raises:
        AssetError: A name is not registered, or a file is missing.
        CapabilityError: The calibration file is none.
        SafeguardError: A package is missing that measuring needs.
    """
    require_packages()
    source, asked = pipeline_source(pipeline), prompt_set(prompts)
    settings = source if source.steps is not None and source.guidance is not None else pipeline_source(like)
    makers = {name: registered(JUDGES, name, "judge", "name another") for name in judge_names(judged_by)}
    file = calibration_of(calibration, pipeline)
    gauged = None if file is None else Calibration.load(file)
    first, *others = makers
    pipe = source.load()
    return Harness(
        pipe, makers[first](judge), settings.steps or STEPS, GUIDANCE if settings.guidance is None else settings.guidance,
        gauged, usual=settings.call_options(pipe), prompts=asked, further={name: makers[name](None) for name in others},
    )  # fmt: skip


def judge_names(text: str) -> list[str]:
    """The names of judges in a text that separates them by commas, each once. Raises AssetError where there is none."""
    names = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not names:
        raise AssetError("no judge is named; name a registered one, such as demo")
    return names


def require_packages() -> None:
    """Raises SafeguardError, before any work, where a package is missing that measuring needs."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise SafeguardError(f"measuring needs {' and '.join(missing)}: install safeguard-diffusion[eval]")
