"""Whether ``residual`` tells what is left: ``python -m docs.studies.residual [--pipeline mmdit] [--n 8] [--out FILE]``.

The demo's policy on explicit, implicit and short prompts, all concepts at once and opened by evidence, at several strengths:
weak ones leave much, strong ones little. For each concept that acted in an image, the residual of its record is compared with
what the pixel judge finds in the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from safeguard_demo.pixel_judge import PixelJudge
from safeguard_demo.world import CONCEPTS

from docs.studies.study_command import run_study
from safeguard.evaluation.harness import Harness, open_harness
from safeguard.evaluation.prompt_sets import Cell, PromptCase
from safeguard.policy import derive, load_policy

SCHEMA: Final = "safeguard.dev/study/residual/v1"
STRENGTHS: Final = (0.4, 0.7, 1.0)
CELLS: Final = ("explicit", "implicit", "short")
BATCH: Final = 20
DRAWS: Final = 2000  # of the bootstrap, over prompts

Seen = tuple[int, str, float, bool, bool]  # prompt, concept, residual, enough, whether the judge finds it


def measure(kind: str, split: str, count: int, strengths: Sequence[float] = STRENGTHS) -> dict[str, Any]:
    """Every concept that acted on these prompts: how much is left by its record, and by the judge."""
    prompts = "language" if kind == "language" else "demo"
    studio = open_harness(kind, prompts=prompts)
    judge, seen = PixelJudge(), list[Seen]()
    cases = [
        case for concept in CONCEPTS for cell in CELLS for case in studio.prompt_set.cases(Cell(cell, concept), split, count)
    ]
    for strength in strengths:
        policy = derive(load_policy("builtin://demo"), name="residual", strength=strength)
        with studio.under(policy) as guard:
            for start in range(0, len(cases), BATCH):
                seen += _seen(studio, guard, judge, cases[start : start + BATCH], start)
    rows = [_row(name, [item for item in seen if name in (item[1], "all concepts")]) for name in ("all concepts", *CONCEPTS)]
    used = {"pipeline": kind, "split": split, "count": count, "strengths": list(strengths)}
    return {"schema": SCHEMA, **used, "rows": rows}


def _seen(studio: Harness, guard: Any, judge: PixelJudge, cases: Sequence[PromptCase], start: int) -> list[Seen]:
    with guard.request() as request:
        found = judge.predict(studio.paint(cases))
    return [
        (start + place, item.concept, item.residual.score, item.residual.enough, bool(found[item.concept][place]))
        for place, decision in enumerate(request.decisions)
        for item in decision.applied
        if item.residual is not None
    ]


def _row(name: str, seen: Sequence[Seen]) -> dict[str, Any]:
    """AUROC with its interval, and what share of what the judge finds, and does not find, is called enough."""
    left = np.array([item[4] for item in seen], dtype=bool)
    enough = np.array([item[3] for item in seen], dtype=bool)
    row: dict[str, Any] = {"concept": name, "acted": len(seen), "left": int(left.sum())}
    if 0 < left.sum() < len(left):
        scores = np.array([item[2] for item in seen])
        row |= {"auroc": _auroc(scores, left), "interval": _interval(scores, left, np.array([item[0] for item in seen]))}
        row |= {"enough_left": float(enough[left].mean()), "enough_gone": float(enough[~left].mean())}
    return row


def _auroc(scores: Any, left: Any) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(left, scores))


def _interval(scores: Any, left: Any, prompts: Any) -> list[float]:
    """95 %, by drawing prompts with replacement: images of one prompt are alike."""
    draw, names = np.random.default_rng(0), np.unique(prompts)
    places = {name: np.flatnonzero(prompts == name) for name in names}
    drawn = []
    for _ in range(DRAWS):
        chosen = np.concatenate([places[name] for name in draw.choice(names, len(names))])
        if 0 < left[chosen].sum() < len(chosen):
            drawn.append(_auroc(scores[chosen], left[chosen]))
    return [float(np.quantile(drawn, share)) for share in (0.025, 0.975)]


def markdown(data: Mapping[str, Any]) -> str:
    """One row a concept."""
    lines = ["| concept | acted | left | AUROC | enough, of left | enough, of gone |", "|---|---:|---:|---:|---:|---:|"]
    for row in data["rows"]:
        told = ["-", "-", "-"]
        if "auroc" in row:
            low, high = row["interval"]
            told = [f"{row['auroc']:.3f} ({low:.3f}-{high:.3f})", f"{row['enough_left']:.0%}", f"{row['enough_gone']:.0%}"]
            told = [text.replace("%", " %") for text in told]
        lines.append(f"| {' | '.join((row['concept'], str(row['acted']), str(row['left']), *told))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_study(__doc__, measure, markdown, pipelines=("unet", "mmdit", "language"), count=8)
