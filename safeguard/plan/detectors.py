"""Evidence: how far a prompt goes a concept's way inside the denoiser, whether or not its words name the concept.

A text that brings blood into a picture brings it through the attentions at which image tokens read the text. So a
`ConceptProbe` measures there, in the first denoiser call of an image and before anything is drawn, the component that the
prompt's answer has along the concept, head by head, and the same of the text's pooled vector where the denoiser reads one. A
`Detector`, fitted by calibration, makes one number of these; a concept opens in a row where that number is over its threshold.

GIE (arXiv 2408.01014 v2) fits its weights of the erasure prompt's tokens on what one step at t = T shows; it reads the mean
attention mass of each layer, which by itself does not tell implicit prompts from benign ones here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from safeguard.plan.calibration import DIFFERENCE, Detector
from safeguard.policy import Concept
from safeguard.sdk.calls import SiteCall
from safeguard.sdk.concept_attention import ConceptAttention
from safeguard.sdk.contrast_attention import ContrastAttention, pairs_of
from safeguard.sdk.pipeline import Pipeline
from safeguard.sdk.pooled_directions import PooledDirections

if TYPE_CHECKING:
    from torch import Tensor


FIRST: Final = 0.0
"""The share of a schedule that stands for its first step that is looked at."""
LAST: Final = 1.0
"""The share of a schedule that stands for its last step."""
SHARES: Final = (0.1, 0.3, 0.6)
"""The shares of a schedule at which it is read on the way what concepts that acted have left."""
RISE: Final = 0.5
"""What part of the way to its bound, in logarithms, a strength goes for one reading that finds too much."""


class ConceptProbe:
    """Looks for some concepts in one denoiser call, and changes nothing.

    ``features`` of an image, [C, F]: the component of its pooled text along each concept, where there is one; then those of
    every head of every site, in their order.

    ``evidence`` says along what: see `safeguard.plan.calibration.EVIDENCE`.
    """

    def __init__(self, concepts: Sequence[Concept], pipeline: Pipeline, evidence: str = DIFFERENCE) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self._texts: ConceptAttention | ContrastAttention
        if evidence == DIFFERENCE:
            self._texts = ContrastAttention.of(concepts, [pairs_of(concept) for concept in concepts], pipeline)
        else:
            self._texts = ConceptAttention.of(concepts, pipeline)
        self._directions = PooledDirections.of(concepts, pipeline)

    def at_site(self, call: SiteCall) -> Tensor:
        """What one site shows: [R, C, H]."""
        return self._texts.read(call).components().transpose(1, 2)

    def in_image(self, call: SiteCall) -> Tensor:
        """What the image tokens of one site show of each concept, whatever the prompt says: [R, C, 2 * H]. Only where evidence
        is measured along the difference.
        """
        assert isinstance(self._texts, ContrastAttention)
        return self._texts.read(call).leaning().transpose(1, 2)

    def in_pooled(self, pooled: Tensor | None) -> Tensor | None:
        """What pooled texts [R, P] show: [R, C, 1]."""
        if pooled is None or self._directions is None:
            return None
        return self._directions.components(pooled.float())[..., None]


class ProbeFinished(BaseException):
    """All that a request was run for has been seen: it ends here, past whoever catches exceptions."""


@dataclass(frozen=True, slots=True)
class Detection:
    """What was seen of one concept in one image: its score and threshold (see `Detector`), and the step."""

    score: float
    threshold: float
    step: int

    @property
    def opened(self) -> bool:
        return self.score >= self.threshold


@dataclass(eq=False)
class _Gathered:
    """The features of the images of one denoiser call, until all ``sites`` have shown theirs."""

    sites: int
    _pooled: dict[int, list[Any]] = field(default_factory=dict)
    _found: dict[int, dict[int, list[Any]]] = field(default_factory=dict)  # by image and site

    def note(self, image: int, features: Tensor, site: int | None) -> None:
        cells = self._pooled if site is None else self._found.setdefault(image, {})
        cells.setdefault(image if site is None else site, []).append(features)

    def whole(self) -> dict[int, list[list[float]]]:
        """The features of each image that every site has shown, in the mean over its rows: [concepts][F]. All are forgotten."""
        import torch

        whole = {}
        for image, shown in sorted(self._found.items()):
            if len(shown) == self.sites:
                parts = [*([self._pooled[image]] if image in self._pooled else []), *(shown[site] for site in sorted(shown))]
                whole[image] = torch.cat([torch.stack(part).float().mean(0) for part in parts], -1).tolist()
        self._pooled.clear()
        self._found.clear()
        return whole


@dataclass(eq=False)
class ResidualRun:
    """What is read of the concepts that acted: how far the image tokens still attend to the concept. It is read in the last
    call of the denoiser that makes an image, and at the shares of its schedule that ``gauges`` name, [share][concept].

    Where a reading on the way finds too much of a concept, it acts more strongly from the next step on, up to its one of
    ``bounds`` times as strongly. It never falls again.

    ``only``: nothing is read off, and the features themselves are kept, for calibration.
    """

    watch: ConceptProbe
    gauges: Mapping[float, Sequence[Detector | None]]  # None: nothing can be said of the concept
    bounds: Sequence[float]
    sites: int
    only: bool = False
    seen: dict[tuple[int, str], Detection] = field(default_factory=dict)  # in the last step, by image and concept
    raised: dict[tuple[int, str], list[tuple[int, float]]] = field(default_factory=dict)  # the same: step and times as strongly
    features: dict[int, dict[float, list[list[float]]]] = field(default_factory=dict)  # by image and share
    rises: int = 0  # times that something was raised

    def __post_init__(self) -> None:
        self._gathered = _Gathered(self.sites)
        self._begun: dict[float, int] = {}  # in which step each share was reached
        self._share = LAST  # that is read now
        self.pending = set[int]()  # the images to read in the call that is under way

    def reaches(self, step: int, progress: float, *, last: bool) -> bool:
        """Whether something is to be read in the call that is under way: in every call of the first step at or past a share."""
        passed = [share for share in self.gauges if (last if share == LAST else progress >= share - 1e-9)]
        share = max(passed, default=None)
        if share is None or self._begun.get(share, step) != step:
            return False
        self._share = share
        return True

    @property
    def told(self) -> list[str]:
        """The concepts of which it can be said what is left, in the call that is under way."""
        gauges = self.gauges[self._share]
        return [name for name, gauge in zip(self.watch.concepts, gauges, strict=True) if gauge is not None]

    def note(self, images: Sequence[int | None], features: Tensor, site: int) -> None:
        """Keep what a ``site`` shows of these images: ``features`` [R, C, 2 * H]."""
        for place, image in enumerate(images):
            if image is not None:
                self._gathered.note(image, features[place], site)

    def read(self, step: int) -> None:
        """Read the images that every site has shown in this call."""
        self._begun.setdefault(self._share, step)
        for image, features in self._gathered.whole().items():
            if self.only:
                self.features.setdefault(image, {})[self._share] = features
                continue
            for column, gauge in enumerate(self.gauges[self._share]):
                if gauge is not None:
                    self._judge(image, column, Detection(gauge.score(features[column]), gauge.threshold, step))

    def _judge(self, image: int, column: int, left: Detection) -> None:
        cell = image, self.watch.concepts[column]
        if self._share == LAST:
            self.seen[cell] = left
        elif left.opened and self.times(*cell) < self.bounds[column] - 1e-6:
            risen = min(self.bounds[column], self.times(*cell) * self.bounds[column] ** RISE)
            self.raised.setdefault(cell, []).append((left.step + 1, risen))
            self.rises += 1

    def times(self, image: int, concept: str) -> float:
        """How many times as strongly as it began a concept acts in an image now."""
        course = self.raised.get((image, concept))
        return course[-1][1] if course else 1.0


@dataclass(eq=False)
class ProbeRun:
    """What one request is watched for, and what was seen. ``strengths`` [images][concepts of the watch], with which a concept
    acts once it is opened; 0 where it acts anyway. An image in which all of them do is not looked at.

    ``step`` is the first at which images are looked at. ``only``: nothing is opened, and the features themselves are kept,
    for calibration.
    """

    watch: ConceptProbe
    gauges: Sequence[Detector]
    strengths: Sequence[Sequence[float]]
    sites: int  # at how many sites an image is looked at
    only: bool = False
    step: int = 0
    seen: dict[tuple[int, str], Detection] = field(default_factory=dict)  # by image and concept
    features: dict[int, list[list[float]]] = field(default_factory=dict)
    openings: int = 0  # times that something was opened

    def __post_init__(self) -> None:
        self._gathered = _Gathered(self.sites)
        self.pending = {image for image, row in enumerate(self.strengths) if self.only or any(row)}

    def note(self, images: Sequence[int | None], features: Tensor, site: int | None = None) -> None:
        """Keep what a ``site``, or without one the pooled text, shows of these images: ``features`` [R, C, H]."""
        for place, image in enumerate(images):
            if image is not None and image in self.pending:
                self._gathered.note(image, features[place], site)

    def decide(self, step: int) -> bool:
        """Read the evidence of the images that every site has shown in this call. Whether it opened something."""
        opened = False
        for image, features in self._gathered.whole().items():
            self.pending.discard(image)
            if self.only:
                self.features[image] = features
                continue
            for column, concept in enumerate(self.watch.concepts):
                gauge = self.gauges[column]
                sighting = self.seen[image, concept] = Detection(gauge.score(features[column]), gauge.threshold, step)
                opened = opened or (sighting.opened and self.strengths[image][column] > 0)
        self.openings += opened
        return opened

    def strength(self, image: int, concept: str) -> float:
        """How strongly evidence has a concept act in an image: 0 unless it was opened."""
        sighting = self.seen.get((image, concept))
        if sighting is None or not sighting.opened:
            return 0.0
        return self.strengths[image][self.watch.concepts.index(concept)]
