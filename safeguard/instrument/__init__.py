"""All that is known about diffusers: its seams and hooks, encoding, telling rows apart, the self-test."""

from safeguard.instrument.attachment import OFFERED, Attachment
from safeguard.instrument.self_test import SelfTest, SelfTestResult

__all__ = ["OFFERED", "Attachment", "SelfTest", "SelfTestResult"]
