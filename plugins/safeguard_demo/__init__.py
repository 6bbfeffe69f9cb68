"""The embedded demo: a procedural world, pipelines trained on it, and a judge of their pictures."""

from safeguard_demo.judge import Judge
from safeguard_demo.pipelines import GUIDANCE, STEPS, calibration, call_options, load_pipeline

__all__ = ["GUIDANCE", "STEPS", "Judge", "calibration", "call_options", "load_pipeline"]
