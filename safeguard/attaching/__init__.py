"""All that is known about diffusers: its seams and hooks, encoding, telling rows apart, the self-test."""

from safeguard.attaching.attachment import OFFERED, Attachment
from safeguard.attaching.probe import Probe, ProbeResult

__all__ = ["OFFERED", "Attachment", "Probe", "ProbeResult"]
