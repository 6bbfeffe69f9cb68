"""The measurement on a live pipeline: what is painted from what, what is kept, what is recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safeguard_demo.pixel_judge import PixelJudge

from safeguard.audit import MemorySink
from safeguard.errors import AssetError, SafeguardError
from safeguard.evaluation import run
from safeguard.evaluation.arms import ArmMethod, arms
from safeguard.evaluation.harness import Harness
from safeguard.evaluation.pipeline_sources import load_pipeline
from safeguard.evaluation.prompt_sets import BENIGN, NEGATIVE
from safeguard.evaluation.run import evaluate, settings_of

ONE = ("blood",)


def test_a_case_looks_the_same_in_any_batch(studio: Harness) -> None:
    asked = studio.prompt_set.cases(BENIGN, "dev", 3)
    together, single = studio.paint(asked)[1].astype(int), studio.paint(asked[1:2])[0].astype(int)
    assert np.abs(together - single).max() <= 2  # kernels round differently for other batches


def test_a_negative_prompt_of_a_case_is_painted_with(studio: Harness) -> None:
    (case,) = studio.prompt_set.cases(NEGATIVE, "dev", 1)
    plain = replace(case, negative="")
    assert not np.array_equal(studio.paint([case]), studio.paint([plain]))


def test_a_run_of_more_kinds_of_cells_goes_on_where_a_smaller_one_ended(studio: Harness, tmp_path: Path) -> None:
    settings = settings_of(studio, "dev", 1, 0, 1)
    painted: list[str] = []
    for kinds in (("short",), ("short", "negative")):
        tried = arms(ArmMethod("eiup"), ONE, ("adaptive",), kinds=kinds)
        evaluate(studio, tried, settings, out=tmp_path)
        painted.append(" ".join(sorted(path.name for path in (tmp_path / "cells").iterdir())))
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    evaluate(studio, arms(ArmMethod("eiup"), ONE, ("adaptive",), kinds=("short",)), settings, out=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
    assert (painted[0].count(".npz"), painted[1].count(".npz")) == (4, 6)


def test_strength_nought_paints_the_unprotected_picture(studio: Harness) -> None:
    tried = arms(ArmMethod("eiup", strength=0.0), ONE, ("alone",))
    results = evaluate(studio, tried, settings_of(studio, "dev", 2, 0, 2))
    assert all((one.likeness == 1.0).all() for one in results)


def test_every_protected_picture_is_recorded_with_what_acted(studio: Harness) -> None:
    sink = MemorySink()
    tried = arms(ArmMethod("eiup", strength=2.0), ONE, ("together",))
    results = evaluate(studio, tried, settings_of(studio, "dev", 2, 0, 2), audit=sink)
    assert len(sink.records) == 2 * len(tried[0].cells)
    assert all(one.acted["blood"].all() == (one.arm != "unprotected") for one in results)


def test_a_stopped_run_goes_on_and_paints_nothing_twice(studio: Harness, tmp_path: Path) -> None:
    settings = settings_of(studio, "dev", 2, 0, 2)
    tried = arms(ArmMethod("eiup", strength=2.0), ONE, ("alone",))
    first = evaluate(studio, tried, settings, out=tmp_path)
    broken = Harness(None, studio.judge, studio.steps, studio.guidance, prompts=studio.prompts)  # can paint nothing
    again = evaluate(broken, tried, settings, out=tmp_path)
    assert [one.arm for one in again] == [one.arm for one in first]
    assert all(np.array_equal(a.likeness, b.likeness) for a, b in zip(first, again, strict=True))


def _looked_at_by(studio: Harness, pipe: object) -> Harness:
    further = {"demo-pixels": PixelJudge()}
    return Harness(
        pipe, studio.judge, studio.steps, studio.guidance, prompts=studio.prompts, usual=studio.usual, further=further
    )


def test_a_further_judge_sees_the_pictures_that_were_kept(studio: Harness, tmp_path: Path) -> None:
    settings, tried = settings_of(studio, "dev", 2, 0, 2), arms(ArmMethod("eiup"), ONE, ("alone",), kinds=("short",))
    first = evaluate(studio, tried, settings, out=tmp_path)
    again = evaluate(_looked_at_by(studio, None), tried, settings, out=tmp_path)  # without a pipeline: can paint nothing
    areas = PixelJudge().areas(first[0].pixels)["blood"]
    assert not first[0].sightings
    assert np.array_equal(again[0].sightings["demo-pixels"].areas["blood"], areas)
    assert all(np.array_equal(a.found["blood"], b.found["blood"]) for a, b in zip(first, again, strict=True))


def test_where_too_few_pictures_were_kept_it_says_so_and_paints(
    studio: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "KEPT", 1)
    settings, tried = settings_of(studio, "dev", 2, 0, 2), arms(ArmMethod("eiup"), ONE, ("alone",), kinds=("short",))
    evaluate(studio, tried, settings, out=tmp_path)
    again = evaluate(_looked_at_by(studio, studio.pipe), tried, settings, out=tmp_path)
    assert all(len(result.sightings["demo-pixels"].found["blood"]) == 2 for result in again)
    assert "too_few_pictures_kept_painting_again" in caplog.text


def test_a_concept_that_a_further_judge_does_not_know_is_refused_by_its_name(studio: Harness) -> None:
    doubled = _looked_at_by(studio, None)
    doubled.further["demo-pixels"].concepts = ("weapon",)  # type: ignore[index,misc]
    with pytest.raises(SafeguardError, match="the judge demo-pixels knows no blood"):
        evaluate(doubled, arms(ArmMethod("eiup"), ONE, ("alone",)), settings_of(studio, "dev", 1, 0, 1))


def test_every_batch_is_told(studio: Harness) -> None:
    told: list[int] = []
    tried = arms(ArmMethod("eiup", strength=2.0), ONE, ("alone",))
    evaluate(studio, tried, settings_of(studio, "dev", 3, 0, 2), advance=lambda what, images: told.append(images))
    assert told == [2, 1] * 8


def test_other_weights_have_another_digest(studio: Harness) -> None:
    before = studio.digest()
    weight = studio.pipe.unet.conv_in.bias
    kept = weight.data.clone()
    weight.data += 1
    changed = studio.digest()
    weight.data.copy_(kept)
    assert changed != before
    assert studio.digest() == before


def test_a_folder_without_a_pipeline_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no pipeline"):
        load_pipeline(tmp_path)
