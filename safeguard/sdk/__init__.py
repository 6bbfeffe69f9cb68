"""What the author of an eraser may import: the seams and their calls, the eraser protocol, and helpers that methods share.

An eraser imports from here, from `safeguard.policy` and from `safeguard.errors`. What only some methods need stands in
modules of its own: `safeguard.sdk.closed_form` and, for what training makes, `safeguard.sdk.adapter`.
"""

from typing import Any

from safeguard.sdk.adapter import Adapter, find_adapter
from safeguard.sdk.calls import (
    EditCall,
    FeatureCall,
    LinearCall,
    PredictionCall,
    PromptTokens,
    SiteCall,
    SiteEffect,
    StatesCall,
)
from safeguard.sdk.concept_attention import AttentionReading, ConceptAttention
from safeguard.sdk.delta_eraser import DeltaEraser, delta_edits, edits_per_concept
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.eraser import API, Eraser, param_choice, param_number
from safeguard.sdk.negative_text import NegativeText
from safeguard.sdk.pipeline import EncodedText, Pipeline, TextSite, TokenKeys
from safeguard.sdk.seams import Edit, FeatureEdit, LinearEdit, PredictionEdit, Seam, TextSiteEdit, TextStatesEdit

__all__ = [
    "API",
    "Adapter",
    "AttentionReading",
    "ConceptAttention",
    "DeltaEraser",
    "Edit",
    "EditCall",
    "EditMemory",
    "EncodedText",
    "Eraser",
    "FeatureCall",
    "FeatureEdit",
    "LinearCall",
    "LinearEdit",
    "NegativeText",
    "Pipeline",
    "PredictionCall",
    "PredictionEdit",
    "PromptTokens",
    "Seam",
    "SiteCall",
    "SiteEffect",
    "StatesCall",
    "TextSite",
    "TextSiteEdit",
    "TextStatesEdit",
    "TokenKeys",
    "delta_edits",
    "edits_per_concept",
    "find_adapter",
    "param_choice",
    "param_number",
]


def __getattr__(name: str) -> Any:
    """``PROTOCOL``, which erasers for 0.1 state. It goes in 0.3."""
    if name == "PROTOCOL":
        from safeguard.sdk import eraser

        return eraser.PROTOCOL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
