"""The record of one image: its fields, its values, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeguard.audit import (
    Applied,
    Decision,
    DetectionRecord,
    Evidence,
    GroupChoice,
    MemorySink,
    Metrics,
    Model,
    Output,
    Screen,
    Subject,
)
from safeguard.audit.canonical import canonical, parse, plain
from safeguard.errors import AuditError

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Make = Callable[..., Decision]


def test_a_record_has_the_published_fields(make_decision: Make) -> None:
    (record,) = MemorySink().append([make_decision()])
    fields = "schema decision_id time seq labels policy tenant request_id trace_id subject screen evidence applied result"
    assert set(record) == {*fields.split(), *["status", "model", "output", "metrics", "redacted", "masked", "prev", "hash"]}
    assert record["schema"] == "safeguard.dev/decision/v2"
    assert record["applied"][0]["effect"] == {"mass": 0.02, "mass_first": 0.03, "mass_last": 0.01, "relative_change": 0.1}
    assert record["output"] == {"image_sha256": "ab" * 32, "seed": 7, "size": [512, 512]}
    assert set(record["labels"]) == {"service", "instance", "safeguard"}


def test_a_record_names_what_was_trained_for_an_eraser_and_only_then(make_decision: Make) -> None:
    bare, trained = Applied("blood", "eiup", "1", 1.0), Applied("blood", "gie", "1", 1.0, adapter="cd" * 32)
    (record,) = MemorySink().append([make_decision(applied=(bare, trained))])
    assert ["adapter" in one for one in record["applied"]] == [False, True]
    assert record["applied"][1]["adapter"] == "cd" * 32


def test_a_blocked_image_has_no_output(make_decision: Make) -> None:
    (record,) = MemorySink().append([make_decision(result="block", output=None)])
    assert record["output"] is None


def test_the_decision_id_is_known_before_it_is_logged(make_decision: Make) -> None:
    decision = make_decision()
    (record,) = MemorySink().append([decision])
    assert record["decision_id"] == decision.decision_id


def test_time_is_utc_whatever_zone_it_came_in(make_decision: Make) -> None:
    noon_in_berlin = datetime(2026, 8, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    (record,) = MemorySink().append([make_decision(time=noon_in_berlin)])
    assert record["time"] == "2026-08-01T10:00:00.000000Z"


def test_the_clock_can_be_given(make_decision: Make) -> None:
    (record,) = MemorySink(clock=lambda: datetime(2030, 1, 2, tzinfo=UTC)).append([make_decision()])
    assert record["time"].startswith("2030-01-02T")


def test_what_is_no_number_becomes_null(make_decision: Make) -> None:
    decision = make_decision(metrics=Metrics(float("nan"), float("inf")), screen=Screen(scores={"blood": float("-inf")}))
    (record,) = MemorySink().append([decision])
    assert record["metrics"] == {"screen_ms": None, "overhead_ms": None}
    assert record["screen"]["scores"] == {"blood": None}


def test_numbers_of_numpy_are_numbers(make_decision: Make) -> None:
    (record,) = MemorySink().append([make_decision(screen=Screen(scores={"blood": np.float32(0.5)}))])
    assert record["screen"]["scores"] == {"blood": 0.5}


def test_a_seed_beyond_what_json_can_hold_is_text(make_decision: Make) -> None:
    (record,) = MemorySink().append([make_decision(output=Output("ab" * 32, seed=2**64 - 1))])
    assert record["output"]["seed"] == "18446744073709551615"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("result", "deny"),
        ("status", "fine"),
        ("policy_revision", "../../etc/passwd"),
        ("subject", Subject(source="mail")),
        ("time", datetime(2026, 8, 1)),
    ],
)
def test_words_that_the_record_does_not_know_are_refused(make_decision: Make, field: str, value: object) -> None:
    with pytest.raises(AuditError, match=field.replace("subject", "source")):
        make_decision(**{field: value})


def test_a_value_that_is_not_json_is_refused_with_its_place(make_decision: Make) -> None:
    with pytest.raises(AuditError, match=r"object at /tenant"):
        MemorySink().append([make_decision(tenant=object())])


def test_the_prompt_is_not_in_the_repr(make_decision: Make) -> None:
    assert "secret words" not in repr(make_decision("secret words"))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@CALM
@given(st.dictionaries(st.text(st.characters()), values))
def test_any_value_survives_the_way_to_a_file_and_back(value: dict[str, object]) -> None:
    written = plain(value)
    assert parse(canonical(written)) == written


@CALM
@given(
    st.text(st.characters()),
    st.text(st.characters()),
    st.integers(),
    st.floats(),
    st.dictionaries(st.text(), st.floats()),
)
def test_any_decision_makes_a_record_that_round_trips(
    prompt: str, name: str, seed: int, ms: float, scores: dict[str, float]
) -> None:
    decision = Decision(
        policy_name=name,
        policy_revision="0" * 64,
        result="pass",
        subject=Subject(prompt),
        model=Model(name),
        screen=Screen(scores=scores),
        output=Output("ab" * 32, seed),
        metrics=Metrics(ms, ms),
    )
    (record,) = MemorySink().append([decision], capture="full")
    assert parse(canonical(record)) == record
    assert json.loads(canonical(record))["subject"]["prompt_chars"] == len(prompt)


def test_evidence_is_told_concept_by_concept(make_decision: Make) -> None:
    evidence = Evidence("cd" * 32, {"blood": DetectionRecord(4.5, 3.1, opened=True, step=0)})
    (record,) = MemorySink().append([make_decision(evidence=evidence)])
    seen = {"score": 4.5, "threshold": 3.1, "opened": True, "step": 0}
    assert record["evidence"] == {"calibration": "cd" * 32, "concepts": {"blood": seen}}


def test_a_record_says_what_was_drawn_and_only_then(make_decision: Make) -> None:
    key = "ef" * 32
    drawn = GroupChoice("colour", "blue", ("green", "blue"), "generator", key)
    without, with_one = MemorySink().append([make_decision(), make_decision(drawn=(drawn,))])
    assert "drawn" not in without
    assert with_one["drawn"] == [{"group": "colour", "concept": "blue", "of": ["green", "blue"], "by": "generator", "key": key}]
