"""What the demo pipelines paint, as digests: ``python -m docs.studies.picture_digests --out FILE [--against FILE]``.

Every eraser on every demo pipeline, with one concept and with several, and ``builtin://demo`` as it stands, from fixed seeds;
with what the records say was done. Two versions of the code that paint the same pictures write the same file, to the bit, on
one machine with the same packages; another processor may round differently. ``--against`` compares with a file that an earlier
version wrote, and exits with 1 if a picture differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

PROMPTS: Final = (
    "a person covered in blood",
    "a red car in an accident",
    "two rivals in a duel, a sword",
    "a boat in a swirling harbour by Veska Rimm",
    "a green tree in a forest",
    "a neon arcade with a car, Juno Kaldar",
)
CONCEPTS: Final = (("blood",), ("weapon",), ("veska-rimm",), ("blood", "weapon", "juno-kaldar"))
STEPS: Final = 6


def paint(pipe: Any, prompts: Sequence[str]) -> list[str]:
    """The digest of each prompt's picture, each from a seed of its own."""
    import numpy as np
    import torch
    from safeguard_demo import GUIDANCE, call_options

    images = pipe(
        list(prompts),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="np",
        generator=[torch.Generator().manual_seed(11 + place) for place in range(len(prompts))],
        **call_options(pipe),
    ).images
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16] for image in images]


def protected(pipe: Any, prompts: Sequence[str], policy: Any, **options: Any) -> list[Any]:
    """The digests under a policy, and what each record says was done."""
    import safeguard

    with safeguard.protect(pipe, policy, **options) as guard, guard.request() as request:
        digests = paint(pipe, prompts)
    return [digests, [_said(decision) for decision in request.decisions]]


def _said(decision: Any) -> str:
    applied = [
        [one.concept, one.eraser, one.version, one.steps, one.sites, one.effect.mass, one.effect.relative_change]
        for one in decision.applied
    ]
    return repr([decision.result, decision.status, applied])


def digests(kind: str) -> dict[str, Any]:
    """Every cell of one demo pipeline: unprotected, the demo policy, every eraser, and unprotected again."""
    from safeguard_demo import calibration, load_pipeline

    from safeguard.errors import SafeguardError
    from safeguard.plan import Registry
    from safeguard.policy import derive, load_policy

    pipe, policy = load_pipeline(kind), load_policy("builtin://demo")
    cells: dict[str, Any] = {f"{kind}/unprotected": paint(pipe, PROMPTS)}
    for screener in ("default", None):
        given = str(calibration(kind))
        cells[f"{kind}/demo-adaptive/{screener}"] = protected(pipe, PROMPTS, policy, screener=screener, calibration=given)
        cells[f"{kind}/demo-always/{screener}"] = protected(pipe, PROMPTS, policy, screener=screener)
    for eraser in Registry().names:
        for concepts in CONCEPTS:
            changes = {"eraser": eraser, "params": {}, "strength": "strong", "activation": "always", "action": "erase"}
            own = derive(policy, name="one", concepts=list(concepts), **changes)
            try:
                cells[f"{kind}/{eraser}/{'+'.join(concepts)}"] = protected(pipe, PROMPTS[:3], own, screener=None)
            except SafeguardError as fault:
                cells[f"{kind}/{eraser}/{'+'.join(concepts)}"] = type(fault).__name__
    cells[f"{kind}/released"] = paint(pipe, PROMPTS)
    return cells


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The cells that are not the same in both."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description="What the demo pipelines paint, as digests.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--against", type=Path, help="a file of an earlier version to compare with")
    parser.add_argument("--pipeline", choices=("unet", "mmdit"), action="append", help="default: both")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    kinds = chosen.pipeline or ["unet", "mmdit"]
    cells: dict[str, Any] = {}
    for kind in kinds:
        cells |= json.loads(json.dumps(digests(kind)))
    chosen.out.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    if chosen.against is None:
        return 0
    before = json.loads(chosen.against.read_text(encoding="utf-8"))
    changed = differences({name: cell for name, cell in before.items() if name.partition("/")[0] in kinds}, cells)
    print(f"{len(cells)} cells, {len(changed)} of them not as before: {', '.join(changed) or 'none'}")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
