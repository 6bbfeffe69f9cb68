"""How well evidence tells prompts that bring a concept from others: ``python -m docs.studies.detector_separation``.

Calibrated on captions of the training split with the concepts' phrases beside them, as ``safeguard calibrate`` does; measured
on prompts of another split, whose templates and scenes calibration never saw, and of which most never name the concept. Step by
step, and under other settings than it was calibrated with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safeguard_demo
import torch
from safeguard_demo.captions import prompts
from safeguard_demo.world import CONCEPTS

import safeguard
from docs.studies.screener_figures import auc, rate_at
from safeguard.errors import CapabilityError
from safeguard.evaluation.harness import quiet_libraries
from safeguard.evaluation.pipeline_sources import load_pipeline
from safeguard.plan.calibration import Calibration
from safeguard.plan.detectors import FIRST
from safeguard.policy import load_policy

Scores = npt.NDArray[np.float64]  # [prompts, concepts]
SCHEMA: Final = "safeguard.dev/evidence/v1"
POLICY: Final = "builtin://demo"
STEPS: Final = (0, 1, 2, 4)
ORDINARY: Final = 200  # captions that are calibrated on
BATCH: Final = 20
CHANGES: Final[dict[str, dict[str, Any]]] = {
    "as calibrated": {},
    "4 steps": {"num_inference_steps": 4},
    "20 steps": {"num_inference_steps": 20},
    "50 steps": {"num_inference_steps": 50},
    "guidance 1": {"guidance_scale": 1.0},
    "guidance 9": {"guidance_scale": 9.0},
    "96 pixels a side": {"height": 96, "width": 96},
}


def scores(
    guard: safeguard.Guard, calibration: Calibration, texts: Sequence[str], call: Mapping[str, Any], seed: int
) -> Scores:
    """What the gauges say of each prompt, in standard deviations above ordinary prompts."""
    found = []
    for start in range(0, len(texts), BATCH):
        some = list(texts[start : start + BATCH])
        noise = [torch.Generator().manual_seed(seed + start + place) for place in range(len(some))]
        found += [shown[FIRST] for shown in guard.look(some, generator=noise, **call)]
    gauges = list(calibration.gauges.values())
    return np.array([[gauge.score(one) for gauge, one in zip(gauges, image, strict=True)] for image in found])


def cells_of(split: str, count: int) -> dict[str, list[str]]:
    """Texts by cell: benign ones, those of red things among them, and explicit and implicit ones of every concept."""
    benign = prompts(split, "benign", None, count)
    found = {"benign": [one.text for one in benign]}
    red = [one.text for one in prompts(split, "benign", None, 4 * count, seed=1) if one.scene.colour == "red"]
    found["benign, red"] = red[:count]
    for concept in CONCEPTS:
        for kind in ("explicit", "implicit"):
            found[f"{kind} {concept}"] = [one.text for one in prompts(split, kind, concept, count)]
    return found


def compared(seen: Mapping[str, Scores], calibration: Calibration) -> dict[str, dict[str, float]]:
    """Per concept: how its explicit and implicit prompts stand against benign ones, and what opens it that should not."""
    found = {}
    for column, (concept, gauge) in enumerate(calibration.gauges.items()):
        benign, red = seen["benign"][:, column], seen["benign, red"][:, column]
        others = np.concatenate([seen[f"implicit {other}"][:, column] for other in CONCEPTS if other != concept])
        implicit, explicit = (seen[f"{kind} {concept}"][:, column] for kind in ("implicit", "explicit"))
        found[concept] = {
            "auroc_implicit": auc(implicit, benign),
            "tpr_at_1_fpr": rate_at(implicit, benign, 0.01),
            "opened_implicit": float((implicit >= gauge.threshold).mean()),
            "opened_explicit": float((explicit >= gauge.threshold).mean()),
            "opened_benign": float((benign >= gauge.threshold).mean()),
            "opened_red": float((red >= gauge.threshold).mean()),
            "opened_others": float((others >= gauge.threshold).mean()),
            "lowest_implicit": float(implicit.min()),
            "highest_benign": float(benign.max()),
        }
    return found


def measure(kind: str, split: str, count: int, steps: Sequence[int], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Every step, and at the shipped calibration's step every change of `CHANGES`."""
    pipe = load_pipeline(kind)
    call = {
        "num_inference_steps": safeguard_demo.STEPS,
        "guidance_scale": safeguard_demo.GUIDANCE,
        **safeguard_demo.call_options(pipe),
    }
    ordinary = [one.text for one in prompts("train", "benign", None, ORDINARY)]
    cells = cells_of(split, count)

    def seen_under(calibration: Calibration, options: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        with safeguard.protect(pipe, load_policy(POLICY), screener=None, calibration=calibration) as guard:
            seen = {name: scores(guard, calibration, texts, options, 10_000) for name, texts in cells.items()}
        return compared(seen, calibration)

    by_step, by_change = {}, {}
    for step in steps:
        try:
            made = safeguard.calibrate(pipe, POLICY, ordinary, step=step, call=call)
        except CapabilityError as fault:  # nothing tells a concept any more
            say(f"step {step}: {fault}")
            continue
        by_step[step] = seen_under(made, call)
        say(f"step {step}: done")
    shipped = Calibration.load(safeguard_demo.calibration(kind))
    for name, change in CHANGES.items():
        by_change[name] = seen_under(shipped, {**call, **change})
        say(f"{name}: done")
    by_change["looked at in step 3"] = seen_under(replace(shipped, step=3), call)  # as image-to-image begins late
    pipe.to(dtype=torch.bfloat16)
    by_change["bfloat16"] = seen_under(shipped, call)
    how = {"pipeline": kind, "split": split, "count": count, "calibration": shipped.digest}
    return {"schema": SCHEMA, **how, "steps": by_step, "changes": by_change}


def markdown(data: Mapping[str, Any]) -> str:
    """Two tables: concept by concept at each step, and the worst concept under each change."""
    head = ("AUROC", "TPR at 1 % FPR", "opened: implicit", "explicit", "benign", "benign, red", "others' implicit")
    names = (
        "auroc_implicit",
        "tpr_at_1_fpr",
        *(f"opened_{what}" for what in ("implicit", "explicit", "benign", "red", "others")),
    )
    lines = [_row("step", "concept", *head), "|" + "---|" * 2 + "---:|" * len(head)]
    for step, concepts in data["steps"].items():
        lines += [_row(str(step), concept, *_cells(found, names)) for concept, found in concepts.items()]
    lines += ["", _row("worst concept", *head), "|---|" + "---:|" * len(head)]
    for name, concepts in data["changes"].items():
        worst = {key: (min if place < 4 else max)(found[key] for found in concepts.values()) for place, key in enumerate(names)}
        lines.append(_row(name, *_cells(worst, names)))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(found: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{found[name]:.3f}" if name == names[0] else f"{100 * found[name]:.1f} %" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", default="unet", choices=("unet", "mmdit"))
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--n", type=int, default=200, help="prompts a cell")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="steps to look at, from 0")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    quiet_libraries()
    data = measure(options.pipeline, options.split, options.n, [int(step) for step in options.steps.split(",")])
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(markdown(data))


if __name__ == "__main__":
    main()
