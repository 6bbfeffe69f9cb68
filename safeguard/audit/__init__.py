"""What was decided about every image: recorded, chained and on disk before it is returned; how to read it back."""

from safeguard.audit.chain import ChainHead
from safeguard.audit.decision import (
    SCHEMA,
    Applied,
    Decision,
    DetectionRecord,
    Effect,
    Evidence,
    GroupChoice,
    Metrics,
    Model,
    Output,
    Residual,
    Screen,
    Subject,
    new_decision_id,
)
from safeguard.audit.image_digest import image_digest
from safeguard.audit.policy_store import load_snapshot
from safeguard.audit.query import query
from safeguard.audit.sinks import AuditLog, AuditSink, MemorySink
from safeguard.audit.verify import BadRecord, FileReport, VerifyReport, verify

__all__ = [
    "SCHEMA",
    "Applied",
    "AuditLog",
    "AuditSink",
    "BadRecord",
    "ChainHead",
    "Decision",
    "DetectionRecord",
    "Effect",
    "Evidence",
    "FileReport",
    "GroupChoice",
    "MemorySink",
    "Metrics",
    "Model",
    "Output",
    "Residual",
    "Screen",
    "Subject",
    "VerifyReport",
    "image_digest",
    "load_snapshot",
    "new_decision_id",
    "query",
    "verify",
]
