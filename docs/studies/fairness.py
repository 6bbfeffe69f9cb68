"""Whether one of a group balances what prompts leave open: ``python -m docs.studies.fairness``.

Prompts of the demo world that name no place are painted unprotected, and under a policy (``places.yaml``) that draws one place
for each picture and adds its direction. The judge says what each picture shows. The directions are learnt from subjects in
colours of the training split alone, by the prompts that ``--prompts`` writes; ``dev`` and ``test`` have other ones and other
templates, ``dev`` to choose, ``test`` to report.

The deviation ratio is that of arXiv 2311.17216: with n_k of N pictures in each of K classes, the highest |n_k / N - 1 / K|,
over 1 - 1 / K; 0 is balanced, 1 a single class. As there, a picture counts for the class of the K that it is most like, though
it may show none of them; how many do is told besides.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safeguard_demo
from PIL import Image
from safeguard_demo.captions import TEMPLATES, split_of
from safeguard_demo.model_card import generate
from safeguard_demo.world import COLOURS, PLACES, SUBJECTS

import safeguard
from safeguard.evaluation.contact_sheets import Band, Strip, as_image, sheet
from safeguard.evaluation.harness import quiet_libraries
from safeguard.evaluation.pipeline_sources import load_pipeline
from safeguard.evaluation.results_files import write_text
from safeguard.evaluation.statistics import Figure, rate
from safeguard.evaluation.tables import percent
from safeguard.policy import Policy, load_policy

SCHEMA: Final = "safeguard.dev/fairness/v1"
POLICY: Final = Path(__file__).parents[2] / "plugins" / "safeguard_demo" / "places.yaml"
LEARNT_FROM: Final = "a picture of a {c} {s}"  # a template of the training split, of which the place comes last
FIRST_SEED: Final = 3_000_000
SHOWN: Final = 12  # pictures of a sheet


@dataclass(frozen=True, slots=True)
class Open:
    """A prompt that names no place, with what it does name."""

    text: str
    subject: str
    colour: str


def combinations(split: str) -> list[tuple[str, str]]:
    """Every (subject, colour) of a split; no two splits share one."""
    return [(subject, colour) for subject in SUBJECTS for colour in COLOURS if split_of(subject, colour, "") == split]


def prompts(split: str, count: int | None = None, seed: int = 0) -> list[Open]:
    """``count`` prompts of a split, the same for the same arguments; without it all that there are, each once."""
    forms = [LEARNT_FROM] if split == "train" else TEMPLATES[split]
    found = [Open(_said(form, *one), *one) for form in forms for one in combinations(split)]
    random.Random(f"{split}:{seed}").shuffle(found)
    return [found[place % len(found)] for place in range(len(found) if count is None else count)]


def _said(form: str, subject: str, colour: str) -> str:
    """A template without place and concepts."""
    text = " ".join(form.format(s=subject, c=colour, w="", x="").split())
    return text.lstrip(", ").replace("a orange", "an orange")


def deviation(shares: Sequence[float]) -> float:
    """How far the shares of K classes are from 1 / K each: 0 balanced, 1 a single class."""
    even = 1 / len(shares)
    return max(abs(share - even) for share in shares) / (1 - even)


def seen(asked: Sequence[Open], pictures: npt.NDArray[Any], places: Sequence[str]) -> dict[str, Any]:
    """What the judge says of pictures: the share that shows each place, and those that show another; their deviation ratio; and
    how often subject and colour are what the prompt names.
    """
    judge = safeguard_demo.Judge()
    said = judge.predict(pictures)
    like = judge.probabilities(pictures)["scene"][:, [PLACES.index(place) for place in places]].argmax(1)
    right = {name: rate(said[name] == np.array([getattr(one, name) for one in asked])) for name in ("subject", "colour")}
    return {
        "places": {place: rate(said["scene"] == place).to_dict() for place in places},
        "others": rate(~np.isin(said["scene"], places)).to_dict(),
        "deviation": deviation([float((like == number).mean()) for number in range(len(places))]),
        "right": {name: figure.to_dict() for name, figure in right.items()},
        "shown": [str(place) for place in said["scene"]],
    }


def measure(kind: str, split: str, count: int, policy: Policy) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """What is shown without the policy and with it, from the same noise, and the pictures of both."""
    pipe, asked = load_pipeline(kind), prompts(split, count)
    texts = [one.text for one in asked]
    plain = generate(pipe, texts, FIRST_SEED)
    with safeguard.protect(pipe, policy, screener=None) as guard, guard.request() as request:
        balanced = generate(pipe, texts, FIRST_SEED)
    drawn = [one.concept for decision in request.decisions for one in decision.drawn]
    places = list(policy.concepts)
    before, after = (seen(asked, pictures, places) for pictures in (plain, balanced))
    after["drawn"] = {place: rate([one == place for one in drawn]).to_dict() for place in places}
    after["as_drawn"] = rate([one == shown for one, shown in zip(drawn, after["shown"], strict=True)]).to_dict()
    strengths = {name: concept.strength for name, concept in policy.concepts.items()}
    how = {"pipeline": kind, "split": split, "count": count, "strengths": strengths}
    return {"schema": SCHEMA, **how, "draws": drawn, "before": before, "after": after}, [plain, balanced]


def markdown(data: Mapping[str, Any]) -> str:
    """A line a place, then how far they are from balanced and what else the pictures show."""
    before, after = data["before"], data["after"]
    lines = ["| | unprotected | one drawn for each | the draw itself |", "|---|---:|---:|---:|"]
    for place, share in before["places"].items():
        lines.append(_row(place, share, after["places"][place], after["drawn"][place]))
    lines.append(_row("another place", before["others"], after["others"]))
    lines.append(f"| most frequent | {_most(before['shown'])} | {_most(after['shown'])} | |")
    even = deviation([share["value"] for share in after["drawn"].values()])
    lines.append(f"| deviation ratio | {before['deviation']:.2f} | {after['deviation']:.2f} | {even:.2f} |")
    lines.append(_row("the place that was drawn", None, after["as_drawn"]))
    lines += [_row(f"{name} right", before["right"][name], after["right"][name]) for name in before["right"]]
    return "\n".join(lines) + "\n"


def _most(shown: Sequence[str]) -> str:
    (place, times), *_ = Counter(shown).most_common(1)
    return f"{place}, {100 * times / len(shown):.1f} %"


def _row(name: str, *figures: Mapping[str, Any] | None) -> str:
    cells = [percent(Figure(**one)) if one is not None else "" for one in (*figures, None, None)][:3]
    return f"| {name} | {' | '.join(cells)} |"


def contact_sheet(data: Mapping[str, Any], texts: Sequence[str], pictures: Sequence[npt.NDArray[Any]]) -> Image.Image:
    """The first pictures of both, with prompt and the place that was drawn."""
    plain, balanced = ([as_image(one) for one in (255 * some[:SHOWN]).round().astype(np.uint8)] for some in pictures)
    captions = [f"{text}: {place}" for text, place in zip(texts, data["draws"], strict=True)][:SHOWN]
    strips = [Strip("unprotected", plain), Strip("one drawn for each", balanced)]
    return sheet("Places that prompts leave open", f"{data['split']} split, from the same noise", [Band("", strips, captions)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether one of a group balances what prompts leave open.")
    parser.add_argument("--prompts", type=Path, help="write the prompts to learn directions from into this file, and end")
    parser.add_argument("--policy", type=Path, default=POLICY, help="one that draws one of some places; default: %(default)s")
    parser.add_argument("--pipeline", default="unet", choices=("unet", "mmdit"))
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--n", type=int, default=80, help="pictures")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--sheet", type=Path, help="a PNG file to write the first pictures to")
    options = parser.parse_args()
    if options.prompts is not None:
        write_text(options.prompts, "".join(f"{one.text}\n" for one in prompts("train")))
        return
    quiet_libraries()
    data, pictures = measure(options.pipeline, options.split, options.n, load_policy(options.policy))
    if options.out is not None:
        write_text(options.out, json.dumps(data, indent=1) + "\n")
    if options.sheet is not None:
        texts = [one.text for one in prompts(options.split, options.n)]
        contact_sheet(data, texts, pictures).save(options.sheet)
    print(markdown(data))


if __name__ == "__main__":
    main()
