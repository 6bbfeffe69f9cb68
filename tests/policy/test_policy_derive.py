"""Policies made in code."""

from __future__ import annotations

import pytest

from safeguard.errors import PolicyError
from safeguard.policy import Concept, Policy, derive, load_policy


@pytest.fixture(scope="module")
def demo() -> Policy:
    return load_policy("builtin://demo")


def test_nothing_changed_is_the_same_policy(demo: Policy) -> None:
    assert derive(demo) == demo


def test_keeps_the_named_concepts_in_the_order_given(demo: Policy) -> None:
    assert list(derive(demo, concepts=["weapon", "blood"]).concepts) == ["weapon", "blood"]


def test_changes_reach_every_concept(demo: Policy) -> None:
    made = derive(demo, activation="always", strength=3.5, params={"form": "published"})
    assert {concept.strength for concept in made.concepts.values()} == {3.5}
    assert {concept.activation for concept in made.concepts.values()} == {"always"}
    assert {concept.params["form"] for concept in made.concepts.values()} == {"published"}


def test_takes_concepts_that_are_new(demo: Policy) -> None:
    made = derive(demo, concepts=["blood", Concept("smoke", ("smoke",), strength=2)])
    assert made.concepts["smoke"].strength == 2.0


def test_settings_replace_single_values(demo: Policy) -> None:
    made = derive(demo, settings={"capture": "full"})
    assert (made.settings.capture, made.settings.on_error) == ("full", demo.settings.on_error)


def test_the_result_can_be_archived_and_read_back(demo: Policy) -> None:
    made = derive(demo, name="lenient", concepts=["blood"], steps=(0.0, 0.8))
    assert Policy.from_canonical(made.canonical) == made
    assert made.name == "lenient"
    assert made != demo


def test_a_whole_number_and_its_float_are_one_policy(demo: Policy) -> None:
    assert derive(demo, strength=2).revision == derive(demo, strength=2.0).revision


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"strength": -1.0}, "spec.concepts.blood.strength"),
        ({"strength": float("nan")}, "concepts"),
        ({"activation": "sometimes"}, "spec.concepts.blood.activation"),
        ({"steps": (0.9, 0.1)}, "spec.concepts.blood.steps"),
        ({"settings": {"capture": "everything"}}, "spec.settings.capture"),
        ({"name": "No Name"}, "metadata.name"),
        ({"strenght": 1}, "strenght"),
        ({"concepts": ["blod"]}, "blod"),
        ({"concepts": ["blood", "blood"]}, "concepts.blood"),
    ],
)
def test_what_no_file_may_say_no_code_may_say(demo: Policy, changes: dict[str, object], path: str) -> None:
    with pytest.raises(PolicyError) as raised:
        derive(demo, **changes)  # type: ignore[arg-type]
    assert path in [problem.path for problem in raised.value.problems]


def test_a_slip_gets_a_hint(demo: Policy) -> None:
    with pytest.raises(PolicyError) as raised:
        derive(demo, concepts=["wepon"])
    assert "weapon" in raised.value.problems[0].hint
