"""The verbs that make or measure images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safeguard_demo import pipelines as demo
from typer.testing import CliRunner

from safeguard import audit
from safeguard.cli.main import app


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def data(*args: object) -> Any:
    code, out, err = run(*args, "--json")
    assert code in (0, 1, 4), err
    return json.loads(out)


@pytest.fixture
def pipeline() -> Path:
    """The demo pipeline, named as any folder with a diffusers pipeline is."""
    return demo.ASSETS / "unet"


@pytest.fixture
def blocking(tmp_path: Path) -> Path:
    path = tmp_path / "blocking.yaml"
    path.write_text(
        "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: blocking}\n"
        "spec:\n  extends: [builtin://demo]\n  concepts: {blood: {action: block}}\n"
    )
    return path


def test_plugins_are_listed_with_where_they_come_from() -> None:
    found = {one["name"]: one for one in data("plugins", "list")["erasers"]}
    assert {"eiup", "negative_prompt"} <= set(found)
    assert found["eiup"]["distribution"].startswith("safeguard-diffusion")
    assert found["eiup"]["error"] == ""


def test_listing_plugins_loads_no_model() -> None:
    code = (
        "import sys\nfrom safeguard.cli.main import main\n"
        "try: main(['plugins', 'list'])\nexcept SystemExit as done: assert not done.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_doctor_says_how_a_pipeline_would_be_protected(pipeline: Path) -> None:
    found = data("doctor", "--pipeline", pipeline, "--policy", "builtin://demo")
    assert found["protected"]
    diagnosis = found["diagnosis"]
    assert diagnosis["pipeline"] == "StableDiffusionPipeline"
    assert diagnosis["text_sites"] == diagnosis["sites_reached"] > 0
    assert "text site" in diagnosis["seams"]
    assert all(one["change"] > 0 for one in diagnosis["concepts"])


def test_doctor_names_the_concept_that_would_be_refused_and_why(pipeline: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: mixed}\nspec:\n  concepts:\n"
        "    good: {phrases: [blood]}\n    bad: {phrases: [sword], params: {temperature: 2}}\n"
    )
    code, out, _ = run("doctor", "--pipeline", pipeline, "--policy", policy, "--json")
    reports = {one["concept"]: one["refused"] for one in json.loads(out)["diagnosis"]["concepts"]}
    assert code == 1
    assert reports["good"] == ""
    assert "temperature" in reports["bad"]


def test_doctor_leaves_nothing_attached(pipeline: Path) -> None:
    from safeguard.cli.doctor import diagnose
    from safeguard.evaluation.pipeline_sources import load_pipeline
    from safeguard.policy import load_policy

    pipe = load_pipeline(pipeline)
    assert diagnose(pipe, load_policy("builtin://demo")).protected
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())


def test_generate_makes_an_image_a_prompt_and_records_each(pipeline: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red car on a beach\n\na blue dog in the snow\n")
    out, log = tmp_path / "images", tmp_path / "audit"
    found = data(
        "generate", "--pipeline", pipeline, "--file", prompts, "--steps", 2, "--guidance", 4, "--out", out, "--audit", log,
        "--screener", "none",
    )  # fmt: skip
    assert [one["result"] for one in found["images"]] == ["erase", "erase"]
    for one in found["images"]:
        with Image.open(one["image"]) as image:
            assert audit.image_digest(image) == one["image_sha256"]
    assert audit.verify(log).records == 2


def test_the_same_seed_makes_the_same_image(pipeline: Path, tmp_path: Path) -> None:
    digests = [
        data(
            "generate", "--pipeline", pipeline, "--prompt", "a red car", "--seed", seed, "--steps", 2,
            "--out", tmp_path / str(place), "--screener", "none",
        )["images"][0]["image_sha256"]
        for place, seed in enumerate((5, 5, 6))
    ]  # fmt: skip
    assert digests[0] == digests[1] != digests[2]


def test_a_blocked_prompt_is_refused_and_the_others_are_made(pipeline: Path, blocking: Path, tmp_path: Path) -> None:
    asked = "a person covered in blood"
    code, out, err = run(
        "generate", "--pipeline", pipeline, "--policy", blocking, "--prompt", asked, "--prompt", "a red car on a street",
        "--steps", 2, "--out", tmp_path / "images", "--audit", tmp_path / "audit", "--json",
    )  # fmt: skip
    first, second = json.loads(out)["images"]
    assert code == 1
    assert (first["result"], first["image"]) == ("block", None)
    assert Path(second["image"]).is_file()
    assert "refused" in err
    assert "blood" in err
    assert asked not in err + out
    assert [one["result"] for one in audit.query(tmp_path / "audit")].count("block") == 1


def test_generate_without_a_prompt_is_a_usage_error() -> None:
    code, _, err = run("generate")
    assert code == 2
    assert "--prompt" in err


def test_an_invalid_policy_is_told_before_a_pipeline_is_loaded(tmp_path: Path) -> None:
    code, _, err = run("generate", "--pipeline", tmp_path / "none", "--policy", "builtin://demmo", "--prompt", "a red car")
    assert code == 3
    assert "demo" in err


def test_a_pipeline_that_is_not_there_is_told(tmp_path: Path) -> None:
    code, _, err = run("generate", "--pipeline", tmp_path / "none", "--prompt", "a red car")
    assert code == 1
    assert "none" in err


def test_compare_writes_one_picture_with_the_heat_of_every_concept(pipeline: Path, tmp_path: Path) -> None:
    narrow, wide = tmp_path / "one.png", tmp_path / "two.png"
    for path, concepts in ((narrow, "blood"), (wide, "blood,weapon")):
        found = data(
            "compare", "--pipeline", pipeline, "--prompt", "a red car with blood", "--concepts", concepts, "--steps", 2,
            "--guidance", 4, "--out", path,
        )  # fmt: skip
        assert [one["concept"] for one in found["images"][0]["applied"]] == concepts.split(",")
    assert Image.open(wide).width > Image.open(narrow).width


def test_compare_tells_how_a_concepts_share_went_and_whether_evidence_opened_it(tmp_path: Path) -> None:
    found = data(
        "compare", "--prompt", "a red house on the old battlefield", "--prompt", "a red house in a meadow",
        "--concepts", "blood", "--steps", 3, "--out", tmp_path / "both.png",
    )  # fmt: skip
    battlefield, meadow = found["images"]
    assert battlefield["evidence"]["blood"]["opened"]
    assert [step for step, _ in battlefield["applied"][0]["effect"]["course"]] == [0, 1, 2]
    assert [step for step, _ in battlefield["unprotected"]["blood"]] == [0, 1, 2]
    assert (meadow["applied"], meadow["mean_pixel_change"]) == ([], 0.0)
    assert meadow["unprotected"]["blood"]


def test_eval_measures_resumes_and_checks(tmp_path: Path) -> None:
    args = (
        "eval", "demo", "--n", 1, "--split", "dev", "--concepts", "blood",
        "--modes", "alone", "--baselines", "", "--out", tmp_path,
    )  # fmt: skip
    first = data(*args)
    assert {row["method"] for row in first["rows"]} == {"unprotected", "eiup"}
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "results.json", "table.md", "cells.png", "sheet.png"}
    assert run(*args)[0] == 1  # there are cells already
    code, out, _ = run(*args, "--resume", "--check", "--json")
    again = json.loads(out)
    assert again["rows"] == first["rows"]
    assert code == (0 if all(one["met"] for one in again["targets"]) else 4)


def test_eval_measures_a_baseline_with_each_concept_alone_only(tmp_path: Path) -> None:
    found = data(
        "eval", "demo", "--n", 1, "--split", "dev", "--concepts", "blood",
        "--modes", "together", "--baselines", "negative_prompt", "--out", tmp_path,
    )  # fmt: skip
    rows = {(row["method"], row["mode"]) for row in found["rows"]}
    assert rows == {("unprotected", ""), ("eiup", "together"), ("negative_prompt", "alone")}


def test_eval_of_a_calibration_that_is_not_there_is_told(tmp_path: Path) -> None:
    code, _, err = run("eval", "demo", "--n", 1, "--calibration", tmp_path / "none.json", "--out", tmp_path)
    assert code == 1
    assert "no such calibration file" in err


def test_eval_without_a_calibration_has_adaptive_concepts_act_in_every_picture(tmp_path: Path) -> None:
    found = data(
        "eval", "demo", "--n", 1, "--split", "dev", "--concepts", "blood", "--modes", "adaptive", "--baselines", "",
        "--calibration", "none", "--out", tmp_path,
    )  # fmt: skip
    (row,) = [row for row in found["rows"] if row["method"] == "eiup"]
    assert row["benign_acted_on"]["value"] == 1.0


def test_eval_of_more_prompts_than_there_are_is_a_usage_error(tmp_path: Path) -> None:
    code, _, err = run("eval", "demo", "--n", 5000, "--out", tmp_path)
    assert code == 2
    assert "prompts" in err


def test_eval_of_an_unknown_concept_is_a_usage_error() -> None:
    assert run("eval", "curve", "--concepts", "smoke")[0] == 2
