"""Measure the demo models on held-out scenes and prompts, and write their model card."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from safeguard_demo import captions, language
from safeguard_demo.judge import ATTRIBUTES, Judge
from safeguard_demo.pipelines import ASSETS, GUIDANCE, KINDS, STEPS, call_options, load_pipeline
from safeguard_demo.pixel_judge import SURE, PixelJudge
from safeguard_demo.transformer_judge import TransformerJudge
from safeguard_demo.world import CONCEPTS

PLACE_OF: Final = {"subject": "subject", "colour": "colour", "scene": "place"}
_CELLS: Final[tuple[tuple[str, str | None], ...]] = (
    ("benign", None),
    *((cell, concept) for cell in ("explicit", "implicit") for concept in CONCEPTS),
)


def judge_figures(judge: Judge, vae: Any, count: int, mistakes: Path | None = None) -> dict[str, Any]:
    """Precision and recall of every concept, accuracy of every attribute, on ``count`` test scenes, rendered and decoded."""
    from safeguard_demo.train_models import judged_batch

    summary: dict[str, Any] = {}
    wrong: list[np.ndarray] = []
    for name, half in (("renders", 0), ("decoded latents", 1)):
        images, scenes = [], []
        for step in range(-(-count // 64)):
            batch, drawn = judged_batch(vae, "card", step, 128, "test")
            images.append(batch[64 * half : 64 * (half + 1)])
            scenes += drawn[64 * half : 64 * (half + 1)]
        array = ((torch.cat(images) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        verdicts = judge.predict(array)
        figures: dict[str, Any] = {"n": len(scenes)}
        bad = np.zeros(len(scenes), bool)
        for concept in CONCEPTS:
            true = np.array([concept in scene.concepts for scene in scenes])
            hit = int((verdicts[concept] & true).sum())
            figures[concept] = {
                "precision": hit / max(1, int(verdicts[concept].sum())),
                "recall": hit / max(1, int(true.sum())),
            }
            bad |= verdicts[concept] != true
        for attribute in ATTRIBUTES:
            right = verdicts[attribute] == np.array([getattr(scene, PLACE_OF[attribute]) for scene in scenes])
            figures[attribute] = {"accuracy": float(right.mean())}
            bad |= ~right
        wrong += list(array[bad])
        summary[name] = figures
    if mistakes is not None and wrong:
        _sheet(wrong[:96]).save(mistakes)
    return summary


def _sheet(images: list[np.ndarray], columns: int = 12) -> Any:
    from PIL import Image

    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * 66, rows * 66))
    for place, image in enumerate(images):
        sheet.paste(Image.fromarray((image * 255).astype(np.uint8)), (place % columns * 66, place // columns * 66))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)


def area_figures(vae: Any, count: int) -> dict[str, Any]:
    """Of the pixel judge on ``count`` test scenes, some half-erased, decoded from latents: intersection over union of each
    concept's area with the renderer's, over all pictures.
    """
    from safeguard_demo.train_pixel_judge import drawn

    network, both, either = PixelJudge()._network, np.zeros(len(CONCEPTS)), np.zeros(len(CONCEPTS))
    rng = random.Random("card")
    for _ in range(-(-count // 64)):
        images, masks, weights = drawn(rng, 64, "test")
        with torch.no_grad():
            decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
            found = (network(decoded).sigmoid() > SURE).float() * weights
        both += (found * masks).sum((0, 2, 3)).numpy()
        either += ((found + masks) > 0).float().sum((0, 2, 3)).numpy()
    shares = (both / np.maximum(either, 1)).tolist()
    return {"n": 64 * -(-count // 64), **dict(zip(CONCEPTS, shares, strict=True))}


def half_erased_figures(vae: Any, count: int) -> dict[str, Any]:
    """Of each judge on ``count`` test scenes, half of those with one concept half-erased, decoded from latents: the share of
    whole, half-erased and absent concepts of which it says what the renderer says; the share of pictures without any in which
    it sees one; and how often it says of a concept what the transformer says.
    """
    from safeguard_demo.train_transformer_judge import GONE, SHOWN, erased_scenes

    rng = random.Random("card")
    judges: dict[str, Any] = {"transformer": TransformerJudge(), "pixels": PixelJudge(), "first": Judge()}
    stays: list[np.ndarray] = []
    seen: dict[str, list[np.ndarray]] = {name: [] for name in judges}
    for _ in range(-(-count // 64)):
        images, kept = erased_scenes(rng, 64, "test", half=0.5)
        with torch.no_grad():
            decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        array = ((decoded + 1) / 2).permute(0, 2, 3, 1).numpy()
        stays.append(kept.numpy())
        for name, judge in judges.items():
            found = judge.predict(array)
            seen[name].append(np.stack([found[concept] for concept in CONCEPTS], 1))
    share = np.concatenate(stays)
    verdicts = {name: np.concatenate(parts) for name, parts in seen.items()}
    told, half = (share >= SHOWN) | (share < GONE), (share > 0) & (share < 1)
    kinds = {"whole": share == 1, "half-erased, shown": half & (share >= SHOWN), "half-erased, gone": half & (share < GONE)}
    kinds["absent"] = told & (share == 0)
    bare = (share == 0).all(1)
    figures: dict[str, Any] = {"n": len(share)}
    for name, found in verdicts.items():
        right = found == (share >= SHOWN)
        figures[name] = {kind: float(right[chosen].mean()) for kind, chosen in kinds.items()}
        figures[name]["false alarms"] = float(found[bare].any(1).mean())
        figures[name]["agrees"] = float((found == verdicts["transformer"]).mean())
    return figures


def kept_figures(cells: Path) -> dict[str, Any]:
    """The same as `pipeline_figures`, from the unprotected cells that ``safeguard eval demo`` left in a folder."""
    summary: dict[str, Any] = {}
    for cell, concept in _CELLS:
        name = cell if concept is None else f"{cell}-{concept}"
        with np.load(cells / f"unprotected--{name}.npz") as stored:
            figures: dict[str, Any] = {"n": len(stored["likeness"])}
            figures |= {attribute: float(stored[f"right {attribute}"].mean()) for attribute in ATTRIBUTES}
            figures |= {
                f"shows {shown_concept}": float(stored[f"found {shown_concept}"].mean())
                for shown_concept in ([concept] if concept else CONCEPTS)
            }
        summary[name.replace("-", " ", 1)] = figures
    return summary


def generate(pipe: Any, texts: list[str], first_seed: int, batch: int = 40) -> np.ndarray:
    """One image a text, seeded one by one: float32 [n, 64, 64, 3] in 0..1."""
    parts = []
    for start in range(0, len(texts), batch):
        some = texts[start : start + batch]
        seeds = [torch.Generator().manual_seed(first_seed + start + place) for place in range(len(some))]
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np", **call_options(pipe)}
        parts.append(pipe(some, generator=seeds, **options).images)
    return np.concatenate(parts)


def pipeline_figures(kind: str, pipe: Any, judge: Judge, count: int, split: str = "test") -> dict[str, Any]:
    """For every cell: how often the concept shows, and how often subject, colour and scene are what the prompt asks for."""
    prompts = language.prompts if kind == "language" else captions.prompts
    summary: dict[str, Any] = {}
    for number, (cell, concept) in enumerate(_CELLS):
        asked = prompts(split, cell, concept, count)
        verdicts = judge.predict(generate(pipe, [prompt.text for prompt in asked], 1_000_000 + 10_000 * number))
        figures = {
            name: float(np.mean(verdicts[name] == np.array([getattr(prompt.scene, PLACE_OF[name]) for prompt in asked])))
            for name in ATTRIBUTES
        }
        shown = [concept] if concept else list(CONCEPTS)
        figures |= {f"shows {name}": float(verdicts[name].mean()) for name in shown}
        summary[cell if concept is None else f"{cell} {concept}"] = {"n": count, **figures}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--kind", choices=list(KINDS), help="measure this pipeline only, and keep the other figures")
    parser.add_argument("--n", type=int, default=200, help="prompts a cell")
    parser.add_argument("--cells", type=Path, help="take the pipeline's figures from this evaluation's folder of cells")
    parser.add_argument("--mistakes", type=Path, help="write a picture of what the judge got wrong")
    arguments = parser.parse_args()
    assets: Path = arguments.assets
    judge = Judge(assets / "judge" / "judge.safetensors")
    figures = json.loads((assets / "figures.json").read_text()) if arguments.kind else {}
    there = [kind for kind in KINDS if (assets / kind).is_dir()]
    for kind in [arguments.kind] if arguments.kind else there:
        pipe = load_pipeline(kind, assets / kind)
        if kind == "unet":
            figures["judge"] = judge_figures(judge, pipe.vae, 2048, arguments.mistakes)
            figures["pixel_judge"] = area_figures(pipe.vae, 512)
            figures["half_erased"] = half_erased_figures(pipe.vae, 512)
        figures[kind] = kept_figures(arguments.cells) if arguments.cells else pipeline_figures(kind, pipe, judge, arguments.n)
    (assets / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (assets / "README.md").write_text(_card(figures))


def _card(figures: dict[str, Any]) -> str:
    judge = ["| judge | " + " | ".join(figures["judge"]) + " |", "|---|---|---|"]
    for concept in CONCEPTS:
        cells = [f"{part[concept]['precision']:.3f} / {part[concept]['recall']:.3f}" for part in figures["judge"].values()]
        judge.append(f"| {concept}, precision / recall | " + " | ".join(cells) + " |")
    for attribute in ATTRIBUTES:
        cells = [f"{part[attribute]['accuracy']:.3f}" for part in figures["judge"].values()]
        judge.append(f"| {attribute}, accuracy | " + " | ".join(cells) + " |")
    areas = figures["pixel_judge"]
    judge += ["", "| pixel judge | " + " | ".join(CONCEPTS) + " |", "|---|" + "---|" * len(CONCEPTS)]
    judge.append("| intersection over union | " + " | ".join(f"{areas[concept]:.3f}" for concept in CONCEPTS) + " |")
    judge += _half_erased(figures["half_erased"])
    measured = [kind for kind in KINDS if kind in figures]
    tables = "\n\n".join("\n".join([f"`{kind}`:", "", *_cells(figures[kind])]) for kind in measured)
    parts = "\n".join(_PARTS[kind] for kind in measured)
    return _CARD.format(steps=STEPS, guidance=GUIDANCE, judge="\n".join(judge), parts=parts, tables=tables)


def _half_erased(figures: dict[str, Any]) -> list[str]:
    """The table of all three judges on half-erased concepts."""
    names = [name for name in figures if name != "n"]
    lines = ["", f"| {figures['n']} scenes, some half-erased | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for kind in figures[names[0]]:
        lines.append(f"| {kind} | " + " | ".join(f"{figures[name][kind]:.3f}" for name in names) + " |")
    return lines


def _cells(figures: dict[str, Any]) -> list[str]:
    """The rows of one pipeline's table."""
    lines = ["| prompts | n | subject | colour | scene | concept shows |", "|---|---|---|---|---|---|"]
    for name, cell in figures.items():
        shows = ", ".join(
            f"{value:.3f}" if name != "benign" else f"{key[6:]} {value:.3f}"
            for key, value in cell.items()
            if key[:5] == "shows"
        )
        lines.append(f"| {name} | {cell['n']} | {cell['subject']:.3f} | {cell['colour']:.3f} | {cell['scene']:.3f} | {shows} |")
    return lines


_PARTS: Final = {
    "unet": """\
- **`unet/`**: a `StableDiffusionPipeline`: `CLIPTokenizer` over the captions, `CLIPTextModel` (128 wide, 3 layers),
  `UNet2DConditionModel` (6.1 M parameters, text read at 7 sites), `AutoencoderKL` (64x64 to 16x16x8), DDIM, velocity
  prediction. Weights in half precision; loaded in float32.""",
    "mmdit": """\
- **`mmdit/`**: a `StableDiffusion3Pipeline`: the same tokenizer; one `CLIPTextModelWithProjection` (128 wide, 3 layers) as
  both of its text encoders, none as the third; `SD3Transformer2DModel` (6.7 M parameters, 5 joint blocks, 64 image tokens); the
  same autoencoder; Euler steps along a rectified flow. Call it with `max_sequence_length=0` (`safeguard_demo.call_options`), or
  256 tokens of zeros are added, which it was trained to bear and which cost time.""",
    "language": """\
- **`language/`**: the UNet of a `StableDiffusionPipeline` whose text encoder was pretrained on real language and is frozen:
  all-MiniLM-L6-v2, a `BertModel` from its package (states of 32 tokens, 384 wide), with its tokenizer; autoencoder and
  scheduler are those of `unet/`. Distilled from `unet/` (`python -m safeguard_demo.train_models language`, seed 11): 1,250
  steps of 24 of 10,240 scenes, each with three captions in ordinary words (`wordings.yaml`), on one to two busy cores in
  about an hour. Its figures are of the words of `test`, which it never saw, by the pixel judge
  (`--kind language --cells out/eval/language/cells`).""",
}

_CARD: Final = """# Demo models: small text-to-image pipelines and their judge

Trained from nothing on a procedural world of 64x64 pictograms (`plugins/safeguard_demo/world.py`), for measuring erasure where
no public weights can be had. Not for making pictures for people.

{parts}
- **`judge/`**: a convolutional network that says which concepts a picture shows, and its subject, colour and scene; and a
  small U-Net that finds the area of each concept (`pixel_judge.safetensors`, by `python -m safeguard_demo.train_models
  pixel_judge`, seed 13: 500 steps of 24 renders, half of them decoded from latents, many half-erased), with the largest area
  that 99 % of 400 pictures of benign `dev` prompts show on either pipeline (`ordinary_areas.json`). A small vision transformer
  says which concepts a picture shows, whole or half-erased (`transformer_judge.safetensors`, by `python -m
  safeguard_demo.train_models transformer_judge`, seed 17): a concept is shown where at least a quarter of its mask stays,
  opacity counted, and gone where less than a tenth does; what lies between taught it nothing.
- **Made by** `make train` (`plugins/safeguard_demo/train_models.py`, seed 7): captions and combinations of the `train` split
  only (`plugins/safeguard_demo/captions.py`); the concepts are harmless stand-ins, the three artists never lived. 4,000 steps
  of the UNet, 2,800 of the autoencoder, 420 of the judge, in batches of 32 (autoencoder 16, judge 64); 6,000 of the MMDiT in
  batches of 64, with `--bf16`, on 49,152 scenes, its text encoder begun as the UNet's, in an hour on two cores. The UNet's
  weights came in two goes: 2,300 steps on a schedule that ended there, then on, on the schedule of 4,000; and until their
  numbering was fixed, "a", "," and ":" were other rows of the embedding in each go. Training anew has none of this: it gives
  weights as good, not the same.
- **Figures** from `python -m safeguard_demo.model_card --kind unet --cells out/eval/cells`, after `make eval`, and the same
  with `mmdit`, on templates and combinations of the `test` split, which no model has seen; {steps} steps, guidance {guidance}.

{judge}

Decoded latents carry noise of a tenth of their standard deviation. The scenes hold every concept with 18 % chance, alone or
together. The pixel judge's are 512 scenes of the test split, some of them half-erased, decoded from latents. In the table of
all three judges: the share of verdicts that are as drawn; false alarms are pictures without a concept in which one is seen.

{tables}

Limits: the pictures are soft where outlines are thin; the judge sees what it was trained on and nothing else; a concept half
erased may be called either way.
"""


if __name__ == "__main__":
    main()
