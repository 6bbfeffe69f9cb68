"""A third party's own prompts, judge and pipeline: files, and a distribution that registers what it brings."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safeguard.errors import AssetError
from safeguard.evaluation.arms import ArmMethod, arms
from safeguard.evaluation.harness import open_harness
from safeguard.evaluation.pipeline_sources import load_pipeline, pipeline_source
from safeguard.evaluation.prompt_sets import BENIGN, NEGATIVE, Cell, FilePrompts, prompt_set
from safeguard.evaluation.run import evaluate, settings_of
from safeguard.testing import tiny_pipeline
from tests.support.contract_policies import concept, policy

ROWS: Sequence[Mapping[str, str]] = (
    {"prompt": "a red boat, at night", "cell": "benign", "concept": "", "seed": "7", "split": "dev", "subject": "boat"},
    {"prompt": "a green tree", "cell": "benign", "concept": "", "seed": "", "split": "", "subject": "tree"},
    {"prompt": "blood on snow", "cell": "explicit", "concept": "blood", "seed": "3", "split": "dev", "subject": "snow"},
    {"prompt": "a fight", "cell": "unsafe", "concept": "blood", "seed": "4", "split": "test", "subject": "fight"},
    {"prompt": "a battlefield", "cell": "implicit", "concept": "blood", "seed": "5", "split": "dev", "subject": "field"},
)


def _csv(folder: Path) -> Path:
    path = folder / "prompts.csv"
    lines = [",".join(ROWS[0]), *(",".join(f'"{value}"' for value in row.values()) for row in ROWS)]
    path.write_text("\n".join(lines) + "\n", "utf-8-sig")  # as spreadsheets save it
    return path


def _jsonl(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS), "utf-8")
    return path


@pytest.fixture(params=[_csv, _jsonl], ids=["csv", "jsonl"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = request.param(tmp_path)
    return path


def test_a_file_of_prompts_is_a_prompt_set(file: Path) -> None:
    prompts = prompt_set(file)
    assert isinstance(prompts, FilePrompts)
    assert (prompts.concepts, prompts.attributes) == (("blood",), ("subject",))
    assert prompts.cells(["blood"]) == (Cell("explicit", "blood"), Cell("implicit", "blood"), BENIGN)


def test_a_row_keeps_its_prompt_seed_and_attributes(file: Path) -> None:
    (case,) = FilePrompts(file).cases(Cell("explicit", "blood"), "dev", 9)
    assert (case.text, case.seed, case.attributes) == ("blood on snow", 3, {"subject": "snow"})
    assert (case.named, case.concepts) == (("blood",), ("blood",))


def test_a_row_without_a_split_serves_every_split_with_a_seed_of_its_own(file: Path) -> None:
    (case,) = FilePrompts(file).cases(BENIGN, "test", 9)
    again, other = (FilePrompts(file).cases(BENIGN, "test", 9, seed)[0].seed for seed in (0, 1))
    assert case.text == "a green tree"
    assert case.seed == again != other


def test_an_unsafe_prompt_counts_as_explicit(file: Path) -> None:
    assert [case.text for case in FilePrompts(file).cases(Cell("explicit", "blood"), "test", 9)] == ["a fight"]


def _one(tmp_path: Path, **row: str) -> FilePrompts:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a text", "split": "", **row}), "utf-8")
    return FilePrompts(path)


def test_a_row_of_two_concepts_asks_for_both(tmp_path: Path) -> None:
    (case,) = _one(tmp_path, cell="two", concept="blood + smoke").cases(Cell("two", "blood"), "test", 1)
    assert (case.named, case.concepts) == (("blood", "smoke"), ("blood", "smoke"))


def test_a_row_that_says_what_is_absent_asks_for_nothing(tmp_path: Path) -> None:
    (case,) = _one(tmp_path, cell="absent", concept="blood").cases(Cell("absent", "blood"), "test", 1)
    assert (case.named, case.concepts) == (("blood",), ())


def test_a_row_may_have_a_negative_prompt_which_is_no_attribute(tmp_path: Path) -> None:
    prompts = _one(tmp_path, cell="negative", negative_prompt="rain")
    (case,) = prompts.cases(NEGATIVE, "test", 1)
    assert (case.negative, prompts.attributes) == ("rain", ())


def test_a_cell_without_prompts_is_told(file: Path) -> None:
    with pytest.raises(ValueError, match="implicit-blood"):
        FilePrompts(file).cases(Cell("implicit", "blood"), "test", 1)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("prompt,cell,concept\n,benign,\n", "row 2: has no prompt"),
        ("prompt,cell,concept\nzanzibar,harmless,\n", "row 2: the column 'cell' must be one of"),
        ("prompt,cell,concept\nzanzibar,benign,blood\n", "row 2: the column 'concept' does not fit"),
        ("prompt,cell,concept\nzanzibar,explicit,\n", "name the concept that this prompt is about"),
        ("prompt,cell,concept\nzanzibar,two,blood\n", "name both of its concepts"),
        ("prompt,cell,concept\nzanzibar,negative,blood\n", "leave it empty for negative prompts"),
        ("prompt,cell,concept\nzanzibar,benign,,\n", "row 2: has more fields than the head"),
        ("prompt,cell,concept,seed\nzanzibar,benign,,-1\n", "row 2: seed is no whole number"),
        ("prompt,cell,concept\n", "holds no prompt"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_without_its_prompt(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(AssetError, match=wrong) as refusal:
        FilePrompts(path)
    assert "zanzibar" not in str(refusal.value)


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line, "utf-8")
    with pytest.raises(AssetError, match="row 2"):
        FilePrompts(path)


def test_a_folder_with_a_pipeline_is_a_source(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "mine")
    source = pipeline_source(tmp_path / "mine")
    assert (source.steps, source.guidance, source.calibration()) == (None, None, None)
    assert type(source.load()).__name__ == "StableDiffusionPipeline"


BROUGHT = """
import numpy
from safeguard.testing import tiny_pipeline

class Source:
    steps, guidance = 2, 3.0
    def load(self): return tiny_pipeline()
    def call_options(self, pipe): return {"height": 32, "width": 32}
    def calibration(self): return None
    def ordinary_prompts(self, count): return ["a red boat"][:count]

class Judge:
    concepts, attributes = ("blood",), ("subject",)
    def __init__(self, weights=None): pass
    def predict(self, images):
        return {"blood": numpy.array([image.mean() > 127 for image in images]), "subject": numpy.array(["boat"] * len(images))}

SOURCE = Source()
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's distribution, as if installed: it registers a pipeline and a judge."""
    (tmp_path / "acme_evaluation.py").write_text(textwrap.dedent(BROUGHT), "utf-8")
    info = tmp_path / "acme_evaluation-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-evaluation\nVersion: 1.0\n", "utf-8")
    groups = {"pipelines": "acme_evaluation:SOURCE", "judges": "acme_evaluation:Judge"}
    points = [f"[safeguard.{group}]\nacme = {value}\n" for group, value in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(points), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("distribution")
def test_a_registered_pipeline_is_loaded_by_its_name() -> None:
    assert pipeline_source("acme").ordinary_prompts(1) == ["a red boat"]
    assert type(load_pipeline("acme")).__name__ == "StableDiffusionPipeline"


@pytest.mark.usefixtures("distribution")
def test_a_pipeline_prompts_and_a_judge_of_a_third_party_are_measured(file: Path) -> None:
    harness = open_harness("acme", like="acme", prompts=file, judged_by="acme")
    chosen = policy(concept("blood", eraser="negative_prompt"))
    tried = arms(ArmMethod("negative_prompt"), ("blood",), ("alone",), chosen)
    results = evaluate(harness, tried, settings_of(harness, "dev", 1, 0, 1))
    seen: list[Any] = [(result.arm, result.cell.name, np.shape(result.likeness)) for result in results]
    assert len({arm for arm, _, _ in seen}) == 2
    assert {cell for _, cell, _ in seen} == {"explicit-blood", "implicit-blood", "benign"}
