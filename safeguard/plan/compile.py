"""The compiled policy: which edits it needs, made once for a pipeline; and how strongly each concept acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from safeguard.errors import CapabilityError, PluginError, SafeguardError
from safeguard.plan.calibration import Calibration, Detector
from safeguard.plan.detectors import LAST, ConceptProbe
from safeguard.plan.registry import Registry
from safeguard.policy import Concept, Policy
from safeguard.sdk.eraser import Eraser, Strength, concept_params, concept_strength
from safeguard.sdk.fingerprint import Fingerprint
from safeguard.sdk.pipeline import EncodedText, FeatureSite, Pipeline, TextLayers, TextSite, TokenKeys
from safeguard.sdk.seams import Edit, FeatureEdit, LinearEdit, PredictionEdit, Seam, TextSiteEdit, TextStatesEdit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PlannedConcept:
    """A concept with the eraser that will act on it. ``column`` is its place in every activation."""

    column: int
    concept: Concept
    eraser: Eraser
    strength: Strength
    distribution: str = "no distribution"  # name and version of what registered the eraser


@dataclass(frozen=True, eq=False)
class Plan:
    """A policy, compiled for one pipeline: immutable, and all that a running request needs to know of it."""

    policy: Policy
    concepts: tuple[PlannedConcept, ...]
    edits: tuple[Edit, ...]
    columns: Mapping[str, int] = field(repr=False)
    tokens: tuple[TokenKeys, ...] = field(default=(), repr=False)  # whose keys and values its edits ask for
    watch: ConceptProbe | None = field(default=None, repr=False)  # for the concepts that evidence may open
    watch_tokens: tuple[TokenKeys, ...] = field(default=(), repr=False)
    gauges: tuple[Detector, ...] = field(default=(), repr=False)  # of the concepts of the watch
    residuals: Mapping[float, Sequence[Detector | None]] = field(default_factory=dict, repr=False)  # by share of the schedule
    calibration: str | None = None  # digest of what the gauges came from
    watched_step: int = 0  # at which images are looked at

    @property
    def watched(self) -> tuple[str, ...]:
        """The concepts that act where evidence, or the screener, opens them."""
        return () if self.watch is None else self.watch.concepts

    def follows(self, concept: str) -> bool:
        """Whether it is read on the way what a concept has left, so that its strength can follow."""
        if concept not in self.watched:
            return False
        place = self.watched.index(concept)
        return any(gauges[place] is not None for share, gauges in self.residuals.items() if share != LAST)

    @property
    def full_strengths(self) -> list[float]:
        """Every concept at its own strength: what protects a row about which nothing is known."""
        return [planned.strength.value for planned in self.concepts]

    def strengths_of(self, edit: Edit) -> list[float]:
        """The strengths of an edit's concepts, as the policy has them."""
        return [self.concepts[self.columns[concept]].strength.value for concept in edit.concepts]

    @cached_property
    def adapters(self) -> Mapping[str, str]:
        """The digest of what was trained for a concept, by concept: of those whose eraser was."""
        return {concept: digest for edit in self.edits for concept, digest in edit.adapters.items()}

    @cached_property
    def states_edits(self) -> tuple[TextStatesEdit, ...]:
        """The edits of the text states, in the policy's order."""
        return tuple(edit for edit in self.edits if isinstance(edit, TextStatesEdit))

    @cached_property
    def site_edits(self) -> tuple[TextSiteEdit, ...]:
        """The edits of the text sites, in the policy's order."""
        return tuple(edit for edit in self.edits if isinstance(edit, TextSiteEdit))

    @cached_property
    def linear_edits(self) -> tuple[LinearEdit, ...]:
        """The edits of linear layers, in the policy's order."""
        return tuple(edit for edit in self.edits if isinstance(edit, LinearEdit))

    @cached_property
    def feature_edits(self) -> tuple[FeatureEdit, ...]:
        """The edits of features, in the policy's order."""
        return tuple(edit for edit in self.edits if isinstance(edit, FeatureEdit))

    @cached_property
    def module_edits(self) -> Mapping[str, Sequence[LinearEdit | FeatureEdit]]:
        """The edits of linear layers, then those of features, by the module that they name."""
        by_module: dict[str, list[LinearEdit | FeatureEdit]] = {}
        edits: list[LinearEdit | FeatureEdit] = [*self.linear_edits, *self.feature_edits]
        for edit in edits:
            by_module.setdefault(edit.module, []).append(edit)
        return by_module

    @cached_property
    def prediction_edits(self) -> tuple[PredictionEdit, ...]:
        """The edits of the prediction, in the policy's order."""
        return tuple(edit for edit in self.edits if isinstance(edit, PredictionEdit))


class _Noting:
    """The pipeline as erasers see it while they make their edits; notes whose keys and values they ask for."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.made: list[TokenKeys] = []

    @property
    def name(self) -> str:
        return self._pipeline.name

    @property
    def sites(self) -> Sequence[TextSite]:
        return self._pipeline.sites

    @property
    def main_sites(self) -> Sequence[TextSite]:
        return self._pipeline.main_sites

    @property
    def fingerprint(self) -> Fingerprint:
        return self._pipeline.fingerprint

    @property
    def middle(self) -> FeatureSite | None:
        return self._pipeline.middle

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return self._pipeline.encode(texts)

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        return self._pipeline.pooled(texts)

    @property
    def text_layers(self) -> Sequence[TextLayers]:
        return self._pipeline.text_layers

    def weight(self, module: str) -> Tensor:
        return self._pipeline.weight(module)

    def inputs(self, layers: TextLayers, texts: Sequence[str]) -> list[Tensor]:
        return self._pipeline.inputs(layers, texts)

    def keys(self, texts: Sequence[EncodedText]) -> TokenKeys:
        self.made.append(self._pipeline.keys(texts))
        return self.made[-1]


def compile_plan(
    policy: Policy,
    pipeline: Pipeline,
    registry: Registry,
    offered: frozenset[Seam],
    calibration: Calibration | None = None,
) -> Plan:
    """Make every edit that ``policy`` needs. Concepts of one eraser with the same parameters are made together.

    Concepts that are ``off`` or only flagged need no edit. Adaptive ones that ``calibration`` covers are watched for; the
    others act in every image. Raises CapabilityError where the pipeline does not offer a seam that an eraser needs, a phrase
    cannot be encoded, or an eraser lacks a strength or a parameter; PluginError where an eraser cannot be loaded.
    """
    planned: list[PlannedConcept] = []
    groups: dict[tuple[str, str], list[Concept]] = {}
    for concept in policy.concepts.values():
        if concept.activation == "off" or concept.action == "flag":
            continue
        eraser = registry.get(concept.eraser)
        lacking = eraser.seams - offered
        if lacking:
            names = ", ".join(sorted(seam.value for seam in lacking))
            raise CapabilityError(
                f"{pipeline.name} does not offer the seam {names!r} that eraser {eraser.name!r} needs; choose another eraser",
                pipeline=pipeline.name,
                eraser=eraser.name,
                missing=names,
            )
        strength, origin = concept_strength(concept, eraser), registry.distribution(eraser.name)
        planned.append(PlannedConcept(len(planned), concept, eraser, strength, origin))
        groups.setdefault((eraser.name, repr(sorted(concept_params(concept, eraser).items()))), []).append(concept)
    if planned:
        pipeline.encode([phrase for item in planned for phrase in item.concept.phrases])  # not every eraser reads them as texts
    edits, noting = list[Edit](), _Noting(pipeline)
    for (name, _), concepts in groups.items():
        edits.extend(_edits(registry, name, concepts, noting))
    columns = {item.concept.id: item.column for item in planned}
    plan = Plan(policy, tuple(planned), tuple(edits), columns, tuple(noting.made))
    plan = plan if calibration is None else _watching(plan, calibration, pipeline)
    _require_residuals(plan)
    return plan


def _require_residuals(plan: Plan) -> None:
    """Raises CapabilityError for a concept of which it must be known what is left, and nothing tells it."""
    told = {name for name, gauge in zip(plan.watched, plan.residuals.get(LAST, ()), strict=False) if gauge is not None}
    for item in plan.concepts:
        if item.concept.on_residual != "record" and item.concept.id not in told:
            raise CapabilityError(
                f"concept {item.concept.id!r}: 'on_residual: {item.concept.on_residual}' needs to know what is left of it; "
                "make it 'activation: adaptive' and protect with a calibration of 'safeguard calibrate --residual 48', or "
                "write 'on_residual: record'",
                missing="residual",
            )


def _watching(plan: Plan, calibration: Calibration, pipeline: Pipeline) -> Plan:
    """The same plan with a watch for its adaptive concepts."""
    concepts = [
        item.concept for item in plan.concepts if item.concept.activation == "adaptive" and calibration.covers(item.concept)
    ]
    if not concepts:
        return plan
    noting = _Noting(pipeline)
    watch = ConceptProbe(concepts, noting, calibration.evidence)
    gauges = tuple(calibration.gauges[concept.id] for concept in concepts)
    texts = tuple(noting.made)
    residuals = {
        share: [_known(gauges, concept) for concept in concepts]
        for share, gauges in {**calibration.midway, LAST: calibration.residuals}.items()
        if gauges
    }
    watching = replace(plan, watch=watch, watch_tokens=texts, gauges=gauges, residuals=residuals)
    return replace(watching, calibration=calibration.digest, watched_step=calibration.step)


def _known(gauges: Mapping[str, Detector], concept: Concept) -> Detector | None:
    gauge = gauges.get(concept.id)
    return gauge if gauge is not None and gauge.knows(concept) else None


def _edits(registry: Registry, name: str, concepts: Sequence[Concept], pipeline: Pipeline) -> Sequence[Edit]:
    """What one eraser makes for concepts that share their parameters. What it raises or gives wrongly is a PluginError."""
    eraser = registry.get(name)

    def wrong(message: str, concept: str = "", seam: str = "") -> PluginError:
        origin = registry.distribution(name)
        return PluginError(f"{message}; report it to its author", name=name, distribution=origin, concept=concept, seam=seam)

    try:
        edits = list(eraser.edits(concepts, concept_params(concepts[0], eraser), pipeline))
    except SafeguardError:
        raise
    except Exception as fault:
        raise wrong(f"failed while making its edits ({type(fault).__name__}: {fault})") from fault
    for edit in edits:
        if not isinstance(edit, Edit):
            raise wrong(f"gave back a {type(edit).__name__}, which is no Edit")
        if edit.seam not in eraser.seams:
            raise wrong(f"gave back an edit at the seam {edit.seam.value!r}, which it does not declare", seam=edit.seam.value)
        what = _edit_fault(edit, {concept.id for concept in concepts})
        if what:
            raise wrong(f"gave back an edit at the seam {edit.seam.value!r} {what}", seam=edit.seam.value)
    acted = {concept for edit in edits for concept in edit.concepts}
    silent = [concept.id for concept in concepts if concept.id not in acted]
    if silent:
        raise wrong(f"gave back no edit that acts on concept {silent[0]!r}", concept=silent[0])
    return edits


def _edit_fault(edit: Edit, asked: Set[str]) -> str:
    """What is wrong with what an edit says of itself, which was made for the concepts ``asked``; empty where nothing is."""
    concepts = getattr(edit, "concepts", None)
    if not isinstance(concepts, Sequence) or isinstance(concepts, str) or not all(isinstance(name, str) for name in concepts):
        return "without concepts: self.concepts = tuple(concept.id for concept in concepts)"
    if not concepts:
        return "with no concept in its concepts"
    foreign = [concept for concept in concepts if concept not in asked]
    if foreign:
        return f"for {foreign[0]!r}, which it was not asked for"
    if isinstance(edit, LinearEdit | FeatureEdit) and not isinstance(getattr(edit, "module", None), str):
        return "without a module: self.module = the name of the module that it acts on"
    return ""
