"""What every eraser shares: the five seams, the protocol, the registry, the compiled plan and the activation of a request."""

from safeguard.erasing.adapter import Adapter, Perceptron, find_adapter, shipped
from safeguard.erasing.calibration import Calibration, Gauge
from safeguard.erasing.calls import (
    EveryKey,
    FeatureCall,
    PredictionCall,
    SiteCall,
    SiteEffect,
    StatesCall,
)
from safeguard.erasing.deltas import OfDeltas, delta_edits, own_edits
from safeguard.erasing.eraser import PROTOCOL, Eraser, Strength, choice_of, number_of
from safeguard.erasing.evidence import Looked, Sighting, Watch, Watching
from safeguard.erasing.fingerprint import Fingerprint
from safeguard.erasing.memory import Memory
from safeguard.erasing.negative import NegativeText
from safeguard.erasing.pipeline import (
    EncodedText,
    FeatureSite,
    LeftOut,
    Pipeline,
    Segment,
    TextLayers,
    TextSite,
    TokenKeys,
)
from safeguard.erasing.plan import Plan, PlannedConcept, compile_plan
from safeguard.erasing.reading import ConceptTokens, PooledDirections, Reading
from safeguard.erasing.registry import GROUP, PluginInfo, Registry
from safeguard.erasing.seams import (
    Edit,
    FeatureEdit,
    LinearEdit,
    PredictionEdit,
    Seam,
    TextSiteEdit,
    TextStatesEdit,
)

__all__ = [
    "GROUP",
    "PROTOCOL",
    "Adapter",
    "Calibration",
    "ConceptTokens",
    "Edit",
    "EncodedText",
    "Eraser",
    "EveryKey",
    "FeatureCall",
    "FeatureEdit",
    "FeatureSite",
    "Fingerprint",
    "Gauge",
    "LeftOut",
    "LinearEdit",
    "Looked",
    "Memory",
    "NegativeText",
    "OfDeltas",
    "Perceptron",
    "Pipeline",
    "Plan",
    "PlannedConcept",
    "PluginInfo",
    "PooledDirections",
    "PredictionCall",
    "PredictionEdit",
    "Reading",
    "Registry",
    "Seam",
    "Segment",
    "Sighting",
    "SiteCall",
    "SiteEffect",
    "StatesCall",
    "Strength",
    "TextLayers",
    "TextSite",
    "TextSiteEdit",
    "TextStatesEdit",
    "TokenKeys",
    "Watch",
    "Watching",
    "choice_of",
    "compile_plan",
    "delta_edits",
    "find_adapter",
    "number_of",
    "own_edits",
    "shipped",
]
