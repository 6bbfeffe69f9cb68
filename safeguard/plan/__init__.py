"""From a policy to what acts in a request: registry, compiled plan, detectors and the state of a request."""

from safeguard.plan.calibration import Calibration, Detector
from safeguard.plan.compile import Plan, PlannedConcept, compile_plan
from safeguard.plan.registry import GROUP, PluginInfo, Registry

__all__ = ["GROUP", "Calibration", "Detector", "Plan", "PlannedConcept", "PluginInfo", "Registry", "compile_plan"]
