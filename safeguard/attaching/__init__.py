"""All that is known about diffusers: finding the seams of a pipeline, hooking them, encoding, telling rows apart, the self-test."""

from safeguard.attaching.attachment import OFFERED, Attachment
from safeguard.attaching.probe import Probe, ProbeResult

__all__ = ["OFFERED", "Attachment", "Probe", "ProbeResult"]
