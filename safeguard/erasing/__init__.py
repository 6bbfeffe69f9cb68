"""What every eraser shares: the five seams, the protocol, the registry, the compiled plan and the activation of a request."""

from safeguard.erasing.calibration import Calibration, Fingerprint, Gauge
from safeguard.erasing.eraser import PROTOCOL, Eraser, Strength, number_of
from safeguard.erasing.evidence import Looked, Sighting, Watch, Watching
from safeguard.erasing.plan import Plan, PlannedConcept, compile_plan
from safeguard.erasing.reading import ConceptTokens, PooledDirections, Reading
from safeguard.erasing.registry import GROUP, PluginInfo, Registry
from safeguard.erasing.seams import (
    Edit,
    EncodedText,
    EveryKey,
    FeatureCall,
    FeatureEdit,
    LinearEdit,
    Pipeline,
    PredictionCall,
    PredictionEdit,
    Seam,
    SiteCall,
    SiteEffect,
    StatesCall,
    TextLayers,
    TextSite,
    TextSiteEdit,
    TextStatesEdit,
    TokenKeys,
)

__all__ = [
    "GROUP",
    "PROTOCOL",
    "Calibration",
    "ConceptTokens",
    "Edit",
    "EncodedText",
    "Eraser",
    "EveryKey",
    "FeatureCall",
    "FeatureEdit",
    "Fingerprint",
    "Gauge",
    "LinearEdit",
    "Looked",
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
    "compile_plan",
    "number_of",
]
