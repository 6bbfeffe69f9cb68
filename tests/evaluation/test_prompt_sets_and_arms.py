"""Which pictures are measured, under which policies."""

from __future__ import annotations

import pytest
from safeguard_demo.prompt_set import DemoPrompts
from safeguard_demo.world import CONCEPTS

from safeguard.errors import PolicyError, SafeguardError
from safeguard.evaluation.arms import ArmMethod, arms, demo_policy
from safeguard.evaluation.prompt_sets import BENIGN, NEGATIVE, Cell
from safeguard.policy import load_policy

cases, cells = DemoPrompts().cases, DemoPrompts().cells


def test_every_concept_has_a_cell_of_every_kind_and_two_kinds_have_no_concept() -> None:
    assert len(cells()) == 8 * len(CONCEPTS) + 2
    assert {BENIGN, NEGATIVE} <= set(cells())


def test_only_the_kinds_that_are_named_are_measured_beside_the_benign_cell() -> None:
    (arm,) = arms(ArmMethod("eiup"), ("blood",), ("together",), kinds=("list", "negative"))
    assert arm.cells == (Cell("list", "blood"), NEGATIVE, BENIGN)


def test_a_case_keeps_its_seed_whatever_the_count() -> None:
    cell = Cell("implicit", "blood")
    assert cases(cell, "dev", 3) == cases(cell, "dev", 5)[:3]


def test_another_seed_is_other_noise() -> None:
    first = {case.text: case.seed for seed in (0, 1) for case in cases(BENIGN, "dev", 40, seed)}
    again = {case.text: case.seed for case in cases(BENIGN, "dev", 40, 0)}
    both = [text for text in again if text in first]
    assert any(first[text] != again[text] for text in both)


def test_choosing_and_reporting_share_no_prompt() -> None:
    dev, test = ({case.text for case in cases(BENIGN, split, 60)} for split in ("dev", "test"))
    assert not dev & test


@pytest.mark.parametrize("text", ["eiup", "eiup@8.0", "eiup@max", "eiup:form=published@1.0"])
def test_a_method_is_read_as_it_is_named(text: str) -> None:
    assert ArmMethod.parse(text).name == text


@pytest.mark.parametrize("text", ["", "@3", "eiup:form", ":form=gated"])
def test_what_is_no_method_is_refused(text: str) -> None:
    with pytest.raises(SafeguardError, match="no method"):
        ArmMethod.parse(text)


def test_each_concept_alone_is_on_for_its_own_cells_and_the_benign_one() -> None:
    found = arms(ArmMethod("eiup"), ("blood", "weapon"), ("alone",))
    assert [list(arm.policy.concepts) for arm in found if arm.policy] == [["blood"], ["weapon"]]
    assert found[0].cells == (Cell("explicit", "blood"), Cell("implicit", "blood"), Cell("short", "blood"), BENIGN)
    assert {one.activation for arm in found if arm.policy for one in arm.policy.concepts.values()} == {"always"}


def test_other_phrases_take_the_place_of_a_concepts_own() -> None:
    found = arms(ArmMethod("uce"), ("blood", "weapon"), ("alone",), demo_policy({"blood": ["<blood>"]}))
    phrases = {one.id: one.phrases for arm in found if arm.policy for one in arm.policy.concepts.values()}
    assert phrases == {"blood": ("<blood>",), "weapon": load_policy("builtin://demo").concepts["weapon"].phrases}


def test_screened_arms_are_opened_by_the_screener() -> None:
    (arm,) = arms(ArmMethod("eiup"), CONCEPTS, ("screened",))
    assert arm.screened
    assert arm.policy is not None
    assert {one.activation for one in arm.policy.concepts.values()} == {"screened"}


def test_the_policys_own_strengths_hold_for_the_eraser_that_it_was_written_for() -> None:
    policy = load_policy("builtin://demo")
    (own,) = arms(ArmMethod("eiup"), CONCEPTS, ("together",))
    (other,) = arms(ArmMethod("negative_prompt"), CONCEPTS, ("together",))
    assert own.policy is not None
    assert other.policy is not None
    assert [one.strength for one in own.policy.concepts.values()] == [one.strength for one in policy.concepts.values()]
    assert {(one.eraser, one.strength) for one in other.policy.concepts.values()} == {("negative_prompt", "strong")}


def test_a_strength_beyond_every_scale_is_an_invalid_policy() -> None:
    with pytest.raises(PolicyError):
        arms(ArmMethod("eiup", strength=1000.0), CONCEPTS)
