"""What the author of an eraser may import: the seams and their calls, the eraser protocol, and helpers that methods share.

An eraser imports from here, from `safeguard.policy` and from `safeguard.errors`. These names are stable: they change only with
the version of the SDK, which an eraser states as ``api = (1, 0)``. The modules of this package have more, for methods that need
it (`safeguard.sdk.closed_form`, `safeguard.sdk.negative_text`); what only stands there may change in a minor version.
"""

from typing import Any

from safeguard.sdk.adapter import Adapter, find_adapter
from safeguard.sdk.calls import FeatureCall, PredictionCall, SiteCall, SiteEffect, StatesCall
from safeguard.sdk.concept_attention import ConceptAttention
from safeguard.sdk.delta_eraser import DeltaEraser, edits_per_concept
from safeguard.sdk.eraser import Eraser, param_choice, param_number
from safeguard.sdk.pipeline import Pipeline
from safeguard.sdk.seams import Edit, FeatureEdit, LinearEdit, PredictionEdit, Seam, TextSiteEdit, TextStatesEdit

__all__ = [
    "Adapter",
    "ConceptAttention",
    "DeltaEraser",
    "Edit",
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
    "TextSiteEdit",
    "TextStatesEdit",
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
