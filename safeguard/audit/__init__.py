"""What was decided about every image: recorded, chained and on disk before it is returned; how to read it back."""

from safeguard.audit.archive import load_snapshot
from safeguard.audit.chain import Head
from safeguard.audit.image import image_digest
from safeguard.audit.query import query
from safeguard.audit.record import (
    SCHEMA,
    Applied,
    Decision,
    Drawn,
    Effect,
    Evidence,
    Metrics,
    Model,
    Output,
    Screen,
    Seen,
    Subject,
    new_decision_id,
)
from safeguard.audit.sinks import AuditLog, AuditSink, MemorySink
from safeguard.audit.verify import BadRecord, FileReport, VerifyReport, verify

__all__ = [
    "SCHEMA",
    "Applied",
    "AuditLog",
    "AuditSink",
    "BadRecord",
    "Decision",
    "Drawn",
    "Effect",
    "Evidence",
    "FileReport",
    "Head",
    "MemorySink",
    "Metrics",
    "Model",
    "Output",
    "Screen",
    "Seen",
    "Subject",
    "VerifyReport",
    "image_digest",
    "load_snapshot",
    "new_decision_id",
    "query",
    "verify",
]
