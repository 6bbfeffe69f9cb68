"""Proof of coverage: ``python -m tests.coverage.survey [NAME ...] [--wholes] [--out FILE] [--page FILE] [--check]``.

Every text-conditioned denoiser class of the installed diffusers is built tiny, with random weights, and protected: what a
policy must do and must not do is then tried on it. What cannot be built or is refused is listed with the reason.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

import safeguard
from safeguard.errors import CapabilityError
from safeguard.evaluation.harness import quiet_libraries
from safeguard.policy import Concept, Policy, derive, load_policy
from tests.support.stub_pipeline import StubPipeline
from tests.support.tiny_denoisers import SPECIMENS, UNBUILT
from tests.support.tiny_pipelines import UNBUILT as UNBUILT_WHOLES
from tests.support.tiny_pipelines import WHOLES, run

LIMIT: Final = 60  # seconds that one class may take
PROMPTS: Final = ("a red boat", "blood on snow", "a green tree")
ROWS: Final = "only the active row changes"
MEANINGS: Final = {
    "self-test": "The self-test of `protect()` passes.",
    "identity at strength 0": "At strength 0 the image is bit-identical to the unprotected one.",
    "effect at strength": "At full strength every row changes, and all values are finite.",
    ROWS: "If a concept is active in one row of a batch, only that row changes.",
    "A, B, A to the bit": "After a swap to another policy and back, the image is bit-identical to that of the first policy.",
    "saved as it was": "A protected denoiser is saved as an ordinary one, with its own weights and class name.",
    "released to the bit": "After `release()` the image is bit-identical to the unprotected one.",
}
CHECKS: Final = tuple(MEANINGS)


Paint = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """What was found about one class. ``refused`` is why it is not protected; ``failed`` are checks that did not hold;
    ``example``: it cannot be tried on a prompt alone, and was given an example of a call.
    """

    name: str
    kind: str
    mechanism: str
    sites: int
    pooled: bool
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    refused: str = ""
    example: bool = False

    @property
    def protected(self) -> bool:
        return not self.refused and not self.failed

    @property
    def silent(self) -> bool:
        """Whether it runs with a guard on, and is not protected as it should be. To protect every row of a batch is no gap."""
        return not self.refused and any(check != ROWS for check in self.failed)


class ByWord:
    """A screener that opens a concept where its name stands in the prompt."""

    name = "by word"

    def screen(self, texts: Sequence[str], concepts: Any = None) -> Any:
        from safeguard.screening import Screening

        names = tuple(concepts)
        scores = np.array([[0.6 if name in text else 0.1 for name in names] for text in texts], dtype=np.float32)
        return Screening("by word", names, scores.reshape(len(texts), len(names)), (0.5,) * len(names), (0.75,) * len(names))


def _policy(*concepts: Concept) -> Policy:
    return derive(load_policy("builtin://demo"), name="coverage", concepts=list(concepts))


def _concept(name: str, **fields: Any) -> Concept:
    chosen = {"activation": "screened", "strength": 2.0, "params": {"form": "gated"}, **fields}
    return Concept(name, (name,), **chosen)


def inspect(
    name: str, kind: str, pipe: Any, paint: Paint, rows: int = 3, example: Mapping[str, Any] | None = None
) -> CoverageRow:
    """Protect a pipeline and try every check on it. ``paint`` runs it on `PROMPTS`: [images, ...], the same every time.
    ``example`` is for one that cannot be tried on a prompt alone.
    """
    plain = paint(pipe)
    always = _policy(_concept("blood", activation="always"))
    needed = False
    try:
        try:
            guard = safeguard.protect(pipe, always, screener=ByWord())
        except CapabilityError:
            needed = example is not None
            if not needed:
                raise
            guard = safeguard.protect(pipe, always, screener=ByWord(), example=example)
    except CapabilityError as fault:
        return CoverageRow(name, kind, "", 0, False, (), (), str(fault))
    except Exception as fault:  # noqa: BLE001 - what breaks in the open is no silent gap, and has to be seen here
        return CoverageRow(name, kind, "", 0, False, (), (), f"breaks at protect(): {type(fault).__name__}: {fault}")
    try:
        return replace(_checked(name, kind, pipe, paint, rows, guard, always, plain), example=needed)
    except Exception as fault:  # noqa: BLE001 - as above
        guard.release()
        return CoverageRow(name, kind, "", 0, False, (), (), f"breaks in a call: {type(fault).__name__}: {fault}")


def _checked(
    name: str, kind: str, pipe: Any, paint: Paint, rows: int, guard: safeguard.Guard, always: Policy, plain: Tensor
) -> CoverageRow:
    mechanism, pooled = guard.attachment.mechanism, guard.attachment.reads_pooled
    found: dict[str, bool] = {"self-test": True}
    with guard:
        first = paint(pipe)
        found["effect at strength"] = bool(torch.isfinite(first).all()) and all(_changed(first, plain))
        guard.swap(_policy(_concept("blood", activation="always", strength=0.0)))
        found["identity at strength 0"] = not any(_changed(paint(pipe), plain))
        guard.swap(_policy(_concept("blood"), _concept("weapon")))
        active = [place == 1 for place in range(rows)] if rows > 1 else [True]
        found[ROWS] = _changed(paint(pipe), plain) == active
        guard.swap(always)
        found["A, B, A to the bit"] = torch.equal(paint(pipe), first)
        found["saved as it was"] = _saved(guard.attachment.denoisers)
        sites = len(guard.attachment.sites)
    found["released to the bit"] = torch.equal(paint(pipe), plain)
    passed = tuple(check for check in CHECKS if found[check])
    return CoverageRow(name, kind, mechanism, sites, pooled, passed, tuple(check for check in CHECKS if not found[check]))


def _changed(one: Tensor, other: Tensor) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def _saved(denoisers: dict[str, Any]) -> bool:
    """Whether a protected denoiser is saved as an ordinary one: its own weights under their own names, and nothing else."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        for name, denoiser in denoisers.items():
            place = Path(folder) / name
            denoiser.save_pretrained(place)
            written = {key: value for file in place.glob("*.safetensors") for key, value in load_file(file).items()}
            own = denoiser.state_dict()
            if not written or any(key not in own or not torch.equal(value, own[key]) for key, value in written.items()):
                return False
            if json.loads((place / "config.json").read_text())["_class_name"] != type(denoiser).__name__:
                return False
    return True


def of_denoiser(name: str) -> CoverageRow:
    """Try one denoiser class, in a pipeline that stands in for its own."""
    specimen = SPECIMENS[name]

    def paint(pipe: Any) -> Tensor:
        seeds = [torch.Generator().manual_seed(100 + place) for place in range(len(PROMPTS))]
        made: Tensor = pipe(PROMPTS, generator=seeds)
        return made

    return inspect(name, specimen.kind, StubPipeline.of(specimen), paint)


def of_whole(name: str) -> CoverageRow:
    """Try one pipeline class, built whole."""
    whole = WHOLES[name]
    asked = PROMPTS if whole.prompts >= len(PROMPTS) else PROMPTS[1:2]
    return inspect(name, "", whole.build(), lambda pipe: run(whole, pipe, asked), len(asked), whole.call(asked[:1]))


def page(denoisers: Sequence[CoverageRow], wholes: Sequence[CoverageRow], version: str) -> str:
    """The page of the documentation."""
    done = sum(line.protected for line in denoisers)
    text = [
        "# Coverage",
        "",
        f"This page lists which diffusers classes were protected in a test with diffusers {version}. `make coverage` writes "
        "it. Every text-conditioned denoiser class was built tiny, with random weights (`tests/support/tiny_denoisers/`), and "
        "protected. These checks were made:",
        "",
        *(f"{number}. {sentence}" for number, sentence in enumerate(MEANINGS.values(), 1)),
        "",
        "Random weights show that the mechanics work. How well a concept is erased is measured on the "
        "[demo pipelines](evaluation.md).",
        "",
        "## Denoisers",
        "",
        f"**{done} of {len(denoisers)} denoiser classes are protected and pass all checks.** The others are refused, with the "
        "reason: a pipeline with such a denoiser raises `CapabilityError` in `protect()`. It never runs unprotected without "
        "telling you.",
        "",
        "- *separate*: cross-attentions that read only the text. Hooks on their own layers edit them.",
        "- *joint*: attentions over text and image tokens together, or with rotated queries. They are edited in torch's "
        "attention function.",
        "- Kinds: A UNet, B transformer with separate cross-attention, C joint attention, D single stream.",
        "",
        "| denoiser | kind | text sites | pooled text | result |",
        "|---|---|---|---|---|",
        *(_row(line) for line in sorted(denoisers, key=lambda line: (line.kind, line.name))),
        "",
    ]
    if wholes:
        ran = sum(line.protected for line in wholes)
        text += [
            f"## Whole pipelines\n\n{ran} of {len(wholes)} pipeline classes that could be built tiny from their own parts are "
            "protected and pass the same checks from end to end (`tests/support/tiny_pipelines/`). If a pipeline cannot be "
            "tried with a prompt and a blank image, it was given an example of a call: `protect(..., example={...})`.\n",
            "| pipeline | text sites | result |",
            "|---|---|---|",
            *(f"| {line.name} | {line.mechanism} | {_verdict(line)} |" for line in sorted(wholes, key=lambda one: one.name)),
            "",
        ]
    return "\n".join(text)


def _row(line: CoverageRow) -> str:
    return f"| {line.name} | {line.kind} | {line.mechanism} | {'yes' if line.pooled else ''} | {_verdict(line)} |"


def _verdict(line: CoverageRow) -> str:
    if line.refused:
        return f"refused: {line.refused}"
    if list(line.failed) == [ROWS]:
        return "protected in every row: which row belongs to which prompt cannot be told"
    if line.protected and line.example:
        return "protected, given an example of a call"
    return "protected" if line.protected else f"**fails**: {', '.join(line.failed)}"


def survey(
    denoisers: Sequence[str], wholes: Sequence[str], jobs: int, tell: Callable[[CoverageRow], None]
) -> tuple[list[CoverageRow], ...]:
    """Try the classes of these names, in ``jobs`` processes; ``tell`` hears of each as soon as it is done."""
    asked = [(name, False) for name in denoisers] + [(name, True) for name in wholes]
    made: dict[tuple[str, bool], CoverageRow] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin) as pool, Progress(transient=True) as progress:
        task = progress.add_task("coverage", total=len(asked))
        under_way = {pool.submit(_of, *one): one for one in asked}
        for done in as_completed(under_way):
            made[under_way[done]] = done.result()
            progress.advance(task)
            tell(done.result())
    return [made[one] for one in asked if not one[1]], [made[one] for one in asked if one[1]]


def _begin() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet_libraries()


class _Late(BaseException):
    """Time is up. No Exception, so that nothing takes it for a fault of the pipeline."""


def _of(name: str, whole: bool) -> CoverageRow:
    """Try one class. One that takes too long is given up: some pipelines paint no small pictures."""

    def late(*_: Any) -> None:
        raise _Late

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        return of_whole(name) if whole else of_denoiser(name)
    except _Late:
        return CoverageRow(name, "", "", 0, False, (), (), f"not tried to the end: not done in {LIMIT} s")
    finally:
        signal.alarm(0)
        gc.collect()


def _print(line: CoverageRow) -> None:
    print(f"{line.name:44} {line.kind:2} {line.mechanism:24} {_verdict(line)}", flush=True)


def main() -> None:
    import diffusers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="denoiser or pipeline classes (default: every one)")
    parser.add_argument("--wholes", action="store_true", help="try whole pipelines too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--out", type=Path, help="write what was found here, as JSON")
    parser.add_argument("--page", type=Path, help="write the page of the documentation here")
    parser.add_argument("--check", action="store_true", help="exit 1 where a class runs, guarded, and is not protected")
    arguments = parser.parse_args()
    quiet_libraries()
    chosen = arguments.names
    denoisers = [name for name in SPECIMENS if not chosen or name in chosen]
    wholes = [name for name in WHOLES if name in chosen or (arguments.wholes and not chosen)]
    found, ran = survey(denoisers, wholes, arguments.jobs, _print)
    if not chosen:
        found += [CoverageRow(name, "D", "", 0, False, (), (), f"cannot be tried: {why}") for name, why in UNBUILT.items()]
    if arguments.out:
        lines = {"diffusers": diffusers.__version__, "denoisers": [asdict(one) for one in found]}
        whole = {"pipelines": [asdict(one) for one in ran], "pipelines not built": dict(UNBUILT_WHOLES)}
        arguments.out.write_text(json.dumps({**lines, **whole}, indent=1) + "\n")
    if arguments.page:
        arguments.page.write_text(page(found, ran, diffusers.__version__))
    if arguments.check and any(line.silent for line in (*found, *ran)):
        sys.exit(1)


if __name__ == "__main__":
    main()
