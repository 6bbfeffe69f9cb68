"""Erasure under other settings, on harder prompts and among many concepts: ``python -m docs.studies.robustness``.

All concepts of the demo policy are adaptive, opened by the shipped calibration, which was made at the demo's own settings; what
is measured here is everything else. Each condition is painted unprotected and protected from the same seeds. What is finished
is kept in ``--out``, and a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import safeguard_demo
from safeguard_demo.captions import prompts
from safeguard_demo.judge import ATTRIBUTES
from safeguard_demo.world import CONCEPTS

import safeguard
from safeguard.errors import SafeguardError
from safeguard.evaluation.arms import UNPROTECTED, Arm
from safeguard.evaluation.harness import Harness, open_harness, quiet_libraries
from safeguard.evaluation.prompt_sets import BENIGN, Cell, cells
from safeguard.evaluation.results_files import write_text
from safeguard.evaluation.run import CellResult, evaluate, settings_of
from safeguard.evaluation.statistics import Figure, rate
from safeguard.evaluation.tables import percent
from safeguard.policy import Concept, Policy, derive, load_policy

SCHEMA: Final = "safeguard.dev/robustness/v1"
BATCH: Final = 20
FORENAMES: Final = ("Mira", "Tovi", "Lasse", "Orrin", "Pela", "Quint", "Rosk", "Sable", "Ulve", "Zora")
SURNAMES: Final = ("Abend", "Brask", "Corvi", "Dellan", "Estermo", "Fyhn", "Garou", "Hollis", "Ibarren", "Jostad")
CALIBRATED_ON: Final = 60  # ordinary prompts, where more concepts than the demo's are calibrated
SAMPLERS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "unet": {"EulerDiscreteScheduler": {}, "EulerAncestralDiscreteScheduler": {}, "DPMSolverMultistepScheduler": {}},
    "mmdit": {
        "FlowMatchHeunDiscreteScheduler": {},
        "DPMSolverMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    },
}


@dataclass(frozen=True)
class Condition:
    """What differs from the demo's own settings, prompts and policy."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the studio
    seed: int = 0
    cells: tuple[Cell, ...] = cells(CONCEPTS)
    sampler: tuple[str, Mapping[str, Any]] | None = None
    dtype: str = "float32"
    absent: int = 0  # concepts that no picture shows, beside the demo's


def conditions(kind: str) -> list[Condition]:
    """Every condition of one demo pipeline; what changes the pipeline's numbers comes last."""
    mixed = (*(Cell("mixed", concept) for concept in CONCEPTS), BENIGN)
    red = (*(Cell(one, "blood", "red") for one in ("explicit", "implicit")), Cell("benign", None, "red"))
    found = [
        Condition("as calibrated"),
        Condition("other prompts and noise", seed=1),
        *(Condition(f"{steps} steps", {"steps": steps}) for steps in (4, 20, 50)),
        *(Condition(f"guidance {scale:g}", {"guidance": scale}) for scale in (1.0, 9.0)),
        Condition("96 pixels a side", {"options": {"height": 96, "width": 96}}),
        *(Condition(name.removesuffix("Scheduler"), sampler=(name, more)) for name, more in SAMPLERS[kind].items()),
        Condition("one implied, another named", cells=mixed),
        Condition("red things, blood", cells=red),
        *(Condition(f"among {5 + absent} concepts", absent=absent) for absent in (15, 95)),
    ]
    return [*found, Condition("bfloat16", dtype="bfloat16")]


def artists(count: int) -> list[Concept]:
    """Concepts that no model of the demo ever saw."""
    names = [f"{first} {last}" for last in SURNAMES for first in FORENAMES][:count]
    found = []
    for name in names:
        phrase = f"in the style of {name}"
        found.append(Concept(name.lower().replace(" ", "-"), (phrase,), strength="strong", activation="adaptive"))
    return found


@contextmanager
def under(studio: Harness, condition: Condition) -> Iterator[tuple[Harness, Policy]]:
    """The studio as a condition has it, and the policy that is measured."""
    import diffusers
    import torch

    pipe, scheduler = studio.pipe, studio.pipe.scheduler
    policy = derive(load_policy("builtin://demo"), name="adaptive", activation="adaptive", action="erase")
    changed = replace(studio, **condition.fields)
    if condition.sampler is not None:
        name, more = condition.sampler
        pipe.scheduler = getattr(diffusers, name).from_config(scheduler.config, **more)
    if condition.absent:
        own = list(policy.concepts.values())
        policy = derive(policy, name=f"among-{5 + condition.absent}", concepts=[*own, *artists(condition.absent)])
        ordinary = [one.text for one in prompts("train", "benign", None, CALIBRATED_ON)]
        call = {"num_inference_steps": studio.steps, "guidance_scale": studio.guidance, **safeguard_demo.call_options(pipe)}
        changed = replace(changed, calibration=safeguard.calibrate(pipe, policy, ordinary, call=call))
    pipe.to(dtype=getattr(torch, condition.dtype))
    try:
        yield changed, policy
    finally:
        pipe.scheduler = scheduler
        pipe.to(dtype=torch.float32)


def summary(results: Sequence[CellResult]) -> dict[str, Any]:
    """What is shown of named and of implied concepts before and after, and what is left of the rest."""
    found: dict[str, Any] = {}
    sides = {
        "before": [one for one in results if one.arm == UNPROTECTED],
        "after": [one for one in results if one.arm != UNPROTECTED],
    }
    for side, own in sides.items():
        for what in ("named", "implied"):
            by_concept: dict[str, list[bool]] = {}
            for result in own:
                for place, case in enumerate(result.cases):
                    for concept in case.concepts:
                        if (concept in case.named) == (what == "named"):
                            by_concept.setdefault(concept, []).append(bool(result.found[concept][place]))
            found[f"{what}_{side}"] = rate([hit for hits in by_concept.values() for hit in hits]).to_dict()
            found[f"{what}_{side}_worst"] = max((sum(hits) / len(hits) for hits in by_concept.values()), default=0.0)
        found[f"right_{side}"] = {name: rate(np.concatenate([one.right[name] for one in own])).to_dict() for name in ATTRIBUTES}
    benign = [one for one in sides["after"] if one.cell.concept is None]
    untouched = [not any(flags) for one in benign for flags in zip(*one.acted.values(), strict=True)]
    found["untouched"] = rate(untouched).to_dict()
    kept = [found["right_after"][name]["value"] / found["right_before"][name]["value"] for name in ATTRIBUTES]
    return {**found, "kept": min(kept)}


def measure(kind: str, split: str, count: int, out: Path, only: str = "", say: Callable[[str], None] = print) -> dict[str, Any]:
    """Every condition of one demo pipeline whose name holds ``only``, with ``count`` prompts a cell. Raises SafeguardError
    where there is none.
    """
    chosen = [condition for condition in conditions(kind) if only in condition.name]
    if not chosen:
        names = ", ".join(condition.name for condition in conditions(kind))
        raise SafeguardError(f"no condition is called {only!r}; there are {names}")
    studio = open_harness(kind)
    found = {}
    for condition in chosen:
        with under(studio, condition) as (changed, policy):
            arm = Arm("eiup", "adaptive", condition.cells, policy)
            settings = settings_of(changed, split, count, condition.seed, BATCH)
            folder = out / kind / re.sub(r"\W+", "-", condition.name)
            found[condition.name] = summary(evaluate(changed, [arm], settings, out=folder))
        say(f"{condition.name}: done")
    how = {"pipeline": kind, "split": split, "count": count}
    return {"schema": SCHEMA, **how, "conditions": found}


def markdown(data: Mapping[str, Any]) -> str:
    """A line a condition."""
    head = (
        "condition",
        "named, unprotected",
        "implied, unprotected",
        "named",
        "implied",
        "worst concept",
        "attributes kept",
        "benign untouched",
    )
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name, one in data["conditions"].items():
        shown = [percent(Figure(**one[key])) for key in ("named_before", "implied_before", "named_after", "implied_after")]
        worst = max(one["named_after_worst"], one["implied_after_worst"])
        rest = (f"{100 * worst:.1f} %", f"{100 * one['kept']:.1f} %", percent(Figure(**one["untouched"])))
        lines.append(f"| {' | '.join((name, *shown, *rest))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", default="unet", choices=("unet", "mmdit"))
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--only", default="", help="conditions whose name holds this; default: all")
    parser.add_argument("--n", type=int, default=40, help="prompts a cell")
    parser.add_argument("--out", type=Path, default=Path("out/robustness"), help="folder for results and finished cells")
    options = parser.parse_args()
    quiet_libraries()
    data = measure(options.pipeline, options.split, options.n, options.out, options.only)
    write_text(options.out / f"{options.pipeline}.json", json.dumps(data, indent=1) + "\n")
    print(markdown(data))


if __name__ == "__main__":
    main()
