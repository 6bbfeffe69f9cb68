"""Policies: YAML in, one checked, flat, immutable, revisioned snapshot out. Knows no model."""

from safeguard.policy.archive import PolicyArchive
from safeguard.policy.derive import derive
from safeguard.policy.documents import builtin_names
from safeguard.policy.load import Resolution, load_policy, resolve
from safeguard.policy.schema import schema_text
from safeguard.policy.snapshot import Concept, Policy, Settings

__all__ = [
    "Concept",
    "Policy",
    "PolicyArchive",
    "Resolution",
    "Settings",
    "builtin_names",
    "derive",
    "load_policy",
    "resolve",
    "schema_text",
]
