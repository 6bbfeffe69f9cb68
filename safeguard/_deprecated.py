"""Names of version 0.1 that README and docs told users to type: they work until 0.3, and say what to type instead."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any, Final

_GONE: Final = "0.3"

_SDK: Final = {
    **{name: name for name in ("adapter", "calls", "closed_form", "eraser", "fingerprint", "overlap", "pipeline", "seams")},
    "attention": "attention",
    "deltas": "delta_eraser",
    "memory": "edit_memory",
    "negative": "negative_text",
    "reading": "concept_attention",
}
_PLAN: Final = {
    "activation": "request_state",
    "calibration": "calibration",
    "evidence": "detectors",
    "plan": "compile",
    "registry": "registry",
}
_DEMO: Final = {"captions": "captions", "judge": "judge", "pipelines": "pipelines", "world": "world", "card": "model_card"}
_EVALUATION: Final = {
    "metrics": "statistics",
    "methods": "arms",
    "pictures": "contact_sheets",
    "studio": "harness",
    "suites": "prompt_sets",
}
_TRAINING: Final = {
    "frozen": "frozen_pipeline",
    "inversion": "feedback_inversion",
    "words": "textual_inversion",
    "pairs": "text_pairs",
}
_COMMANDS: Final = {
    "bench": "tests.bench.bench",
    "coverage": "tests.coverage.survey",
    "evidence": "docs.studies.detector_separation",
    "fairness": "docs.studies.fairness",
    "pages": "docs.studies.docs_tables",
    "paths": "docs.studies.text_paths",
    "robustness": "docs.studies.robustness",
    "screening": "docs.studies.screener_figures",
    "walkthrough": "safeguard_demo.walkthrough",
}

MOVED: Final[Mapping[str, str]] = {
    **{f"safeguard.erasing.{old}": f"safeguard.sdk.{new}" for old, new in _SDK.items()},
    **{f"safeguard.erasing.{old}": f"safeguard.plan.{new}" for old, new in _PLAN.items()},
    **{f"safeguard.demo.{old}": f"safeguard_demo.{new}" for old, new in _DEMO.items()},
    **{f"safeguard.evaluation.{old}": f"safeguard.evaluation.{new}" for old, new in _EVALUATION.items()},
    **{f"safeguard.evaluation.{old}": new for old, new in _COMMANDS.items()},
    **{f"safeguard.training.{old}": f"safeguard.training.{new}" for old, new in _TRAINING.items()},
    "safeguard.erasing": "safeguard.sdk",
    "safeguard.demo": "safeguard_demo",
    "safeguard.demo.train": "safeguard_demo.train_models",
    "safeguard.policy.testing": "safeguard.policy.policy_tests",
    "safeguard.screening.fit": "safeguard.screening.fit_heads",
}
"""Modules, by their old names. Those in ``docs`` and ``tests`` come with the repository and not with the package."""

RENAMED: Final[Mapping[str, str]] = {
    "Case": "PromptCase",
    "ConceptTokens": "ConceptAttention",
    "Gauge": "Detector",
    "Memory": "EditMemory",
    "Method": "ArmMethod",
    "OfDeltas": "DeltaEraser",
    "Reading": "AttentionReading",
    "Settings": "InversionSettings",
    "Studio": "Harness",
    "Word": "LearnedWord",
    "choice_of": "param_choice",
    "number_of": "param_number",
    "open_studio": "open_harness",
    "own_edits": "edits_per_concept",
}
"""Names in these modules, by their old names."""

_PACKAGES: Final = {"safeguard.erasing": ("safeguard.plan", *(f"safeguard.sdk.{name}" for name in _SDK.values()))}
"""Where to look besides, for what the old package gathered."""


def _warn(old: str, new: str, depth: int) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes in {_GONE}", DeprecationWarning, stacklevel=depth + 1)


class _Moved(ModuleType):
    """Stands in for a module that moved: its names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        places = (MOVED[self.__name__], *_PACKAGES.get(self.__name__, ()))
        for place in places:
            module = importlib.import_module(place)
            for spelling in (name, RENAMED.get(name, name)):
                if hasattr(module, spelling):
                    _warn(f"{self.__name__}.{name}", f"{module.__name__}.{spelling}", 2)
                    return getattr(module, spelling)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}; it is now {MOVED[self.__name__]}")


class _Loader(InspectLoader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs: names are looked up when they are asked for."""

    def is_package(self, fullname: str) -> bool:
        return any(name.startswith(f"{fullname}.") for name in MOVED)

    def get_source(self, fullname: str) -> str:
        return f"from safeguard._deprecated import run\nrun({fullname!r})\n"

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_source(fullname), f"<{fullname}>", "exec")


class Finder(MetaPathFinder):
    """Finds modules by their old names. The import system asks it last, so what exists is never shadowed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        loader = _Loader()
        return ModuleSpec(fullname, loader, is_package=loader.is_package(fullname))


def run(old: str) -> None:
    """Run the command that was ``python -m OLD``. Raises SystemExit where it is not on this machine."""
    new = MOVED[old]
    _warn(f"python -m {old}", f"python -m {new}", 2)
    try:
        known = importlib.util.find_spec(new) is not None
    except ModuleNotFoundError:  # the package that it would be in
        known = False
    if not known:
        demo = new.startswith("safeguard_demo")
        mend = "install safeguard-diffusion-demo" if demo else "run it in a checkout of the repository"
        raise SystemExit(f"{new} is not on this machine: {mend}")
    runpy.run_module(new, run_name="__main__", alter_sys=True)


def install() -> None:
    """Let old names be imported. Called once, by the package itself."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
