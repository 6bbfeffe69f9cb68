"""A program as a user of safeguard writes it: ``mypy --strict`` has to find nothing wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

import safeguard
from safeguard.errors import CapabilityError, PolicyViolation
from safeguard.policy import Concept
from safeguard.sdk import (
    ConceptAttention,
    DeltaEraser,
    Edit,
    Eraser,
    Pipeline,
    PredictionCall,
    PredictionEdit,
    Seam,
    SiteCall,
    SiteEffect,
    TextSiteEdit,
    edits_per_concept,
)
from safeguard.testing import ContractReport, capture_decisions, check_eraser, tiny_pipeline


class Hushed(TextSiteEdit):
    def __init__(self, tokens: ConceptAttention) -> None:
        self.concepts = tokens.concepts
        self.tokens = tokens

    def select(self, columns: Sequence[int]) -> "Hushed":
        return Hushed(self.tokens.select(columns))

    def __call__(self, call: SiteCall) -> SiteEffect:
        mass = self.tokens.read(call).mass(call.log_mass)
        share = (call.strengths[:, None, None, :] * mass).sum(-1, keepdim=True)
        return SiteEffect(-call.merge(share * call.heads_of_output), mass)


class Shrunk(PredictionEdit):
    def __init__(self, concepts: Sequence[Concept]) -> None:
        self.concepts = tuple(concept.id for concept in concepts)

    def __call__(self, call: PredictionCall) -> Tensor:
        strength = call.strengths.amax(1)[:, None, None, None]
        return call.prediction * (1 - 0.1 * strength)


class Hush:
    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "hush"
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE, Seam.PREDICTION})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 1.0, "strong": 2.0, "max": 4.0}
    params: ClassVar[Mapping[str, Any]] = {}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        if not pipeline.sites:
            raise CapabilityError("there is no text site", eraser=self.name)
        return [Hushed(ConceptAttention.of(concepts, pipeline)), Shrunk(concepts)]


class Lull(DeltaEraser):
    name: ClassVar[str] = "lull"
    version: ClassVar[str] = "1.0"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return edits_per_concept(concepts, self.name, params["adapter"], pipeline)


erasers: list[Eraser] = [Hush(), Lull()]


def serve(prompt: str) -> list[str]:
    """The concepts that were erased."""
    pipe = tiny_pipeline("unet")
    with safeguard.protect(pipe, "policy.yaml", audit="audit", erasers=[Hush]) as guard:
        found: safeguard.Guard | None = safeguard.guard_of(pipe)
        if found is not guard:
            return []
        with guard.request(request_id="1", tenant="shop") as request:
            try:
                pipe(prompt)
            except PolicyViolation as refusal:
                return list(refusal.concepts)
        revision: str = guard.swap(safeguard.load_policy("builtin://demo"))
        status: safeguard.Status = guard.status()
        names = [applied.concept for decision in request.decisions for applied in decision.applied]
        return [*names, revision, status.active_revision]


def check() -> ContractReport:
    with capture_decisions() as decisions:
        report = check_eraser(Hush, families=["unet"])
    print(len(decisions), report.failed)
    return report
