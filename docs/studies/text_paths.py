"""By which path a concept reaches the picture: ``python -m docs.studies.text_paths [--pipeline mmdit] [--n 24] [--json]``.

A denoiser of joint attention reads its text twice, token by token and as one pooled vector. Each prompt gets a twin that says
the same without the concept, and one of the two, or both, are taken from the twin: what the judge still sees came by the other.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safeguard_demo.captions import Prompt, prompts, write
from safeguard_demo.world import CONCEPTS, Scene
from torch import Tensor

from safeguard.errors import CapabilityError, SafeguardError
from safeguard.evaluation.harness import Harness, open_harness, quiet_libraries

ELSEWHERE: Final = "meadow"  # where the twin of an implicit prompt stands


@dataclass(frozen=True, slots=True)
class Paths:
    """Shares of ``n`` pictures in which the judge sees the concept: as the prompt is, and with parts of it from its twin."""

    cell: str
    concept: str
    n: int
    whole: float
    twins_pooled: float
    twins_tokens: float
    twins_both: float


def twin(prompt: Prompt, split: str) -> str:
    """The same subject and colour, the concept not named, and at a benign place where it was implied."""
    place = prompt.scene.place if prompt.named else ELSEWHERE
    return write(Scene(prompt.scene.subject, prompt.scene.colour, place), (), split, random.Random(prompt.text))


def follow(studio: Harness, cell: str, concept: str, count: int, split: str = "dev") -> Paths:
    """One cell. Raises CapabilityError for a pipeline that does not tell tokens and pooled vector apart."""
    asked = prompts(split, cell, concept, count)
    tokens, pooled = _encode(studio.pipe, [prompt.text for prompt in asked])
    other_tokens, other_pooled = _encode(studio.pipe, [twin(prompt, split) for prompt in asked])
    pairs = ((tokens, pooled), (tokens, other_pooled), (other_tokens, pooled), (other_tokens, other_pooled))
    return Paths(cell, concept, count, *(_share(studio, concept, *pair) for pair in pairs))


def _encode(pipe: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    from safeguard_demo import call_options

    if "max_sequence_length" not in call_options(pipe):
        raise CapabilityError(
            f"{type(pipe).__name__} is no Stable Diffusion 3 without its third encoder", pipeline=type(pipe).__name__
        )
    with torch.no_grad():
        given = (list(texts),) * 3
        states, _, pooled, _ = pipe.encode_prompt(*given, do_classifier_free_guidance=False, **call_options(pipe))
    return states, pooled


def _share(studio: Harness, concept: str, states: Tensor, pooled: Tensor) -> float:
    from safeguard_demo import call_options

    empty, empty_pooled = _encode(studio.pipe, [""] * len(states))
    made = studio.pipe(
        prompt_embeds=states,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=empty,
        negative_pooled_prompt_embeds=empty_pooled,
        num_inference_steps=studio.steps,
        guidance_scale=studio.guidance,
        generator=[torch.Generator().manual_seed(5000 + place) for place in range(len(states))],
        output_type="np",
        **call_options(studio.pipe),
    )
    seen = studio.judge.predict((np.asarray(made.images) * 255).round().astype(np.uint8))
    return float(np.mean(seen[concept]))


def render(found: Sequence[Paths], console: Console) -> None:
    table = Table("prompts", "concept", "as they are", "twin's pooled", "twin's tokens", "twin's both", box=box.SIMPLE_HEAD)
    for one in found:
        shares = (one.whole, one.twins_pooled, one.twins_tokens, one.twins_both)
        table.add_row(one.cell, one.concept, *(f"{share:.2f}" for share in shares))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.studies.text_paths", description=__doc__)
    parser.add_argument("--pipeline", default="mmdit", help="mmdit, or a folder with one of its class")
    parser.add_argument("--n", type=int, default=24, help="prompts a cell, of the dev split (default 24)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        studio = open_harness(options.pipeline)
        found = [follow(studio, cell, concept, options.n) for cell in ("explicit", "implicit") for concept in CONCEPTS]
    except SafeguardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        render(found, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
