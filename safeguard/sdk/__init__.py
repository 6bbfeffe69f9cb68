"""What the author of an eraser may import: the seams and their calls, the eraser protocol, and helpers that methods share."""

from safeguard.sdk.adapter import Adapter, find_adapter
from safeguard.sdk.calls import FeatureCall, PredictionCall, SiteCall, SiteEffect, StatesCall
from safeguard.sdk.concept_attention import ConceptAttention
from safeguard.sdk.delta_eraser import DeltaEraser, edits_per_concept
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.eraser import PROTOCOL, Eraser, param_choice, param_number
from safeguard.sdk.pipeline import EncodedText, Pipeline, TextSite
from safeguard.sdk.seams import Edit, FeatureEdit, LinearEdit, PredictionEdit, Seam, TextSiteEdit, TextStatesEdit

__all__ = [
    "PROTOCOL",
    "Adapter",
    "ConceptAttention",
    "DeltaEraser",
    "Edit",
    "EditMemory",
    "EncodedText",
    "Eraser",
    "FeatureCall",
    "FeatureEdit",
    "LinearEdit",
    "Pipeline",
    "PredictionCall",
    "PredictionEdit",
    "Seam",
    "SiteCall",
    "SiteEffect",
    "StatesCall",
    "TextSite",
    "TextSiteEdit",
    "TextStatesEdit",
    "edits_per_concept",
    "find_adapter",
    "param_choice",
    "param_number",
]
