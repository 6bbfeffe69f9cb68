"""The embedded demo: a procedural world, pipelines trained on it, and a judge of their pictures."""

from safeguard.demo.judge import Judge
from safeguard.demo.pipelines import GUIDANCE, STEPS, calibration, call_options, load_pipeline

__all__ = ["GUIDANCE", "STEPS", "Judge", "calibration", "call_options", "load_pipeline"]
