"""Evidence: how far a prompt goes a concept's way inside the denoiser, whether or not its words name the concept.

A text that brings blood into a picture brings it through the attentions at which image tokens read the text. So a
`ConceptProbe` measures there, in the first denoiser call of an image and before anything is drawn, the component that the
prompt's answer has along the concept, head by head, and the same of the text's pooled vector where the denoiser reads one. A
`Detector`, fitted by calibration, makes one number of these; a concept opens in a row where that number is over its threshold.

GIE (arXiv 2408.01014 v2) fits its weights of the erasure prompt's tokens on what one step at t = T shows; it reads the mean
attention mass of each layer, which by itself does not tell implicit prompts from benign ones here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safeguard.plan.calibration import DIFFERENCE, Detector
from safeguard.policy import Concept
from safeguard.sdk.calls import SiteCall
from safeguard.sdk.concept_attention import ConceptAttention, PooledDirections
from safeguard.sdk.contrast_attention import ContrastAttention, pairs_of
from safeguard.sdk.pipeline import Pipeline

if TYPE_CHECKING:
    from torch import Tensor


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
    """What is read of the concepts that acted, in the last call of the denoiser that makes an image: how far its image tokens
    still attend to the concept. ``only``: nothing is read off, and the features themselves are kept, for calibration.
    """

    watch: ConceptProbe
    gauges: Sequence[Detector | None]  # None: nothing can be said of the concept
    sites: int
    only: bool = False
    seen: dict[tuple[int, str], Detection] = field(default_factory=dict)  # by image and concept
    features: dict[int, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gathered = _Gathered(self.sites)
        self.pending = set[int]()  # the images to read in the call that is under way

    def note(self, images: Sequence[int | None], features: Tensor, site: int) -> None:
        """Keep what a ``site`` shows of these images: ``features`` [R, C, 2 * H]."""
        for place, image in enumerate(images):
            if image is not None:
                self._gathered.note(image, features[place], site)

    def read(self, step: int) -> None:
        """Read the images that every site has shown in this call."""
        for image, features in self._gathered.whole().items():
            if self.only:
                self.features[image] = features
                continue
            for column, (concept, gauge) in enumerate(zip(self.watch.concepts, self.gauges, strict=True)):
                if gauge is not None:
                    self.seen[image, concept] = Detection(gauge.score(features[column]), gauge.threshold, step)


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
