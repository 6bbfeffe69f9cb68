"""The file that evidence is read by: what it holds, what it is bound to, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safeguard.errors import CapabilityError
from safeguard.plan.calibration import PHRASES, Calibration, Detector
from safeguard.plan.detectors import Detection
from safeguard.policy import Concept
from safeguard.sdk.fingerprint import Fingerprint

PRINT = Fingerprint("StableDiffusionPipeline", (("unet.a", 4), ("unet.b", 8)), (10.0, None))
GAUGE = Detector(("blood", "gore"), (1.0, -2.0), 0.5, 3.0, {"auroc": 0.99})
MADE = Calibration(PRINT, {"blood": GAUGE}, 0.001, "ab" * 32, step=1)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    MADE.save(tmp_path / "c.json")
    loaded = Calibration.load(tmp_path / "c.json")
    assert loaded == MADE
    assert loaded.digest == MADE.digest


def test_another_threshold_has_another_digest() -> None:
    assert replace(MADE, gauges={"blood": replace(GAUGE, threshold=2.0)}).digest != MADE.digest


def test_a_file_of_an_older_version_is_read_by_phrases_and_keeps_its_digest(tmp_path: Path) -> None:
    data = MADE.to_dict()
    del data["evidence"]
    (tmp_path / "c.json").write_text(json.dumps(data))
    loaded = Calibration.load(tmp_path / "c.json")
    assert loaded.evidence == PHRASES
    assert loaded.to_dict() == data


def test_another_kind_of_evidence_has_another_digest() -> None:
    assert replace(MADE, evidence=PHRASES).digest != MADE.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"schema": "other"}',
        json.dumps({**MADE.to_dict(), "concepts": {"blood": {"weights": "x"}}}),
        json.dumps({**MADE.to_dict(), "evidence": "tea leaves"}),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CapabilityError, match="no calibration file"):
        Calibration.load(tmp_path / "c.json")


def test_a_calibration_bound_to_nothing_is_refused(tmp_path: Path) -> None:
    unbound = {**MADE.to_dict(), "pipeline": {"name": "", "sites": [], "norms": []}}
    (tmp_path / "c.json").write_text(json.dumps(unbound))
    with pytest.raises(CapabilityError, match="bound to no pipeline"):
        Calibration.load(tmp_path / "c.json")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="no such calibration file"):
        Calibration.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(PRINT, pipeline="FluxPipeline"), "made for a StableDiffusionPipeline"),
        (replace(PRINT, sites=(("unet.a", 4), ("unet.b", 4))), "other text sites"),
        (replace(PRINT, norms=(11.0, 5.0)), "other weights"),
    ],
)
def test_another_pipeline_is_refused_with_what_differs(other: Fingerprint, words: str) -> None:
    with pytest.raises(CapabilityError, match=words):
        MADE.require(other)


@pytest.mark.parametrize("norms", [(10.1, None), (None, 7.0), (9.9, 3.0)])
def test_rounding_and_weights_that_are_elsewhere_are_no_other_pipeline(norms: tuple[float | None, ...]) -> None:
    MADE.require(replace(PRINT, norms=norms))


def test_it_covers_a_concept_only_with_the_phrases_that_were_calibrated() -> None:
    assert MADE.covers(Concept("blood", ("blood", "gore")))
    assert not MADE.covers(Concept("blood", ("blood",)))
    assert not MADE.covers(Concept("weapon", ("blood", "gore")))


def test_residuals_beside_evidence_that_cannot_be_read_by_them_are_refused(tmp_path: Path) -> None:
    replace(MADE, evidence=PHRASES, residuals={"blood": GAUGE}).save(tmp_path / "c.json")
    with pytest.raises(CapabilityError, match="residuals beside evidence"):
        Calibration.load(tmp_path / "c.json")


def test_it_covers_a_concept_only_with_the_pairs_that_were_calibrated(tmp_path: Path) -> None:
    contrasts = ({"with": "a wounded dog", "without": "a dog"},)
    own, anchored = Concept("blood", ("blood",), contrasts=contrasts), Concept("blood", ("blood",), anchor="flowers")
    for concept in (own, anchored):
        made = Calibration(MADE.fingerprint, {"blood": Detector.of(concept, (1.0,), 0.0, 3.0)}, 0.001, "0" * 64)
        made.save(tmp_path / "calibration.json")
        assert Calibration.load(tmp_path / "calibration.json").digest == made.digest
        assert [made.covers(other) for other in (own, anchored, Concept("blood", ("blood",)))].count(True) == 1
        assert Calibration.load(tmp_path / "calibration.json").covers(concept)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=2, max_size=2))
@example([math.inf, math.inf])
@example([-1e308, 1e308])
def test_a_score_is_a_number_or_opens(features: list[float]) -> None:
    score = GAUGE.score(features)
    if all(map(math.isfinite, features)) and math.isfinite(features[0] - 2 * features[1]):
        assert score == pytest.approx(features[0] - 2 * features[1] + 0.5)
    else:
        assert Detection(score, GAUGE.threshold, 0).opened


def test_features_of_another_number_are_refused() -> None:
    with pytest.raises(CapabilityError, match="knows 2 features of a concept and the pipeline shows 3"):
        GAUGE.score([1.0, 2.0, 3.0])
