"""From a policy to a plan: what is refused, and in whose name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

from safeguard.errors import CapabilityError, PluginError
from safeguard.plan.compile import compile_plan
from safeguard.plan.registry import GROUP, Registry
from safeguard.policy import Concept
from safeguard.sdk.calls import SiteCall, SiteEffect
from safeguard.sdk.pipeline import EncodedText, Pipeline, TextSite, TokenKeys
from safeguard.sdk.seams import Edit, LinearEdit, Seam, TextSiteEdit
from tests.support.contract_policies import concept, policy

ALL = frozenset(Seam)


class NoPipeline:
    """A pipeline that no eraser of these tests asks anything; whose ``encode`` is asked once for what is planned."""

    name = "NoPipeline"
    sites: Sequence[TextSite] = ()

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return []

    def keys(self, states: Any) -> TokenKeys:
        raise AssertionError


class Term(TextSiteEdit):
    def __init__(self, concepts: Sequence[str]) -> None:
        self.concepts = tuple(concepts)

    def select(self, columns: Sequence[int]) -> Term:
        return Term([self.concepts[column] for column in columns])

    def __call__(self, call: SiteCall) -> SiteEffect:
        raise AssertionError


class Plain:
    """Notes in ``asked`` what it was asked for."""

    api = (1, 0)
    name = "plain"
    version = "1"
    seams = frozenset({Seam.TEXT_SITE})
    strengths: Mapping[str, float] = {"weak": 1.0, "strong": 3.0}
    params: Mapping[str, Any] = {"form": "round", "size": 1}
    asked: ClassVar[list[tuple[tuple[str, ...], dict[str, Any]]]] = []

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Any]:
        ids = tuple(one.id for one in concepts)
        self.asked.append((ids, dict(params)))
        return [Term(ids)]


class Failing(Plain):
    name = "failing"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Any]:
        raise ZeroDivisionError("in a layer")


class Refusing(Plain):
    name = "refusing"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Any]:
        raise CapabilityError("this pipeline has no such layer", missing="layer")


class Idle(Plain):
    name = "idle"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Any]:
        return []


class Foreign(Plain):
    name = "foreign"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Any]:
        return [Term([*(one.id for one in concepts), "another"])]


class Undeclared(Plain):
    name = "undeclared"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [LinearEdit("layer", tuple(one.id for one in concepts), None)]  # type: ignore[arg-type]


class NoEdit(Plain):
    name = "no_edit"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Any]:
        return ["a string"]


class Unnamed(TextSiteEdit):
    """Its author forgot to say what it acts on."""

    def select(self, columns: Sequence[int]) -> Unnamed:
        return self

    def __call__(self, call: SiteCall) -> SiteEffect:
        raise NotImplementedError


class NoConcepts(Plain):
    name = "no_concepts"

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [Unnamed()]


class Linear(Plain):
    name = "linear"
    seams = frozenset({Seam.LINEAR})


def compiled(*concepts: Concept, offered: frozenset[Seam] = ALL) -> Any:
    kinds = (Plain, Failing, Refusing, Idle, Foreign, Undeclared, NoEdit, NoConcepts, Linear)
    points = [EntryPoint(kind.name, f"{__name__}:{kind.__name__}", GROUP) for kind in kinds]
    Plain.asked.clear()
    return compile_plan(policy(*concepts), NoPipeline(), Registry(points), offered)  # type: ignore[arg-type]


def test_concepts_with_equal_parameters_are_made_together() -> None:
    plan = compiled(
        concept("a", eraser="plain"),
        concept("b", eraser="plain", params={"size": 2}),
        concept("c", eraser="plain", params={"form": "round"}),
    )
    assert Plain.asked == [(("a", "c"), {"form": "round", "size": 1}), (("b",), {"form": "round", "size": 2})]
    assert dict(plan.columns) == {"a": 0, "b": 1, "c": 2}


def test_what_is_off_or_only_flagged_needs_no_edit() -> None:
    plan = compiled(
        concept("a", eraser="plain"),
        concept("b", eraser="plain", activation="off"),
        concept("c", eraser="plain", action="flag"),
    )
    assert list(plan.columns) == ["a"]


def test_words_become_the_erasers_own_numbers() -> None:
    plan = compiled(concept("a", eraser="plain", strength="strong"), concept("b", eraser="plain", strength=0.5))
    assert plan.full_strengths == [3.0, 0.5]


def test_a_word_that_the_eraser_lacks_is_refused() -> None:
    with pytest.raises(CapabilityError, match="has no strength 'max'; use weak, strong or a number") as raised:
        compiled(concept("a", eraser="plain", strength="max"))
    assert raised.value.eraser == "plain"


def test_a_parameter_that_the_eraser_lacks_is_refused() -> None:
    with pytest.raises(CapabilityError, match="has no parameter 'colour'; it has form, size"):
        compiled(concept("a", eraser="plain", params={"colour": 1}))


def test_a_seam_that_the_pipeline_does_not_offer_is_refused() -> None:
    with pytest.raises(CapabilityError, match="does not offer the seam 'linear'") as raised:
        compiled(concept("a", eraser="linear"), offered=ALL - {Seam.LINEAR})
    assert (raised.value.pipeline, raised.value.eraser, raised.value.missing) == ("NoPipeline", "linear", "linear")


def test_an_eraser_that_fails_is_a_plugin_error() -> None:
    with pytest.raises(PluginError, match=r"failed while making its edits \(ZeroDivisionError: in a layer\)") as raised:
        compiled(concept("a", eraser="failing"))
    assert raised.value.name == "failing"


def test_what_an_eraser_refuses_is_told_as_it_is() -> None:
    with pytest.raises(CapabilityError, match="this pipeline has no such layer"):
        compiled(concept("a", eraser="refusing"))


def test_a_concept_on_which_nothing_acts_is_refused() -> None:
    with pytest.raises(PluginError, match=r"eraser 'idle' from .*: gave back no edit that acts on concept 'a'") as raised:
        compiled(concept("a", eraser="idle"))
    assert (raised.value.eraser, raised.value.concept) == ("idle", "a")


def test_an_edit_for_a_concept_of_nobody_is_refused() -> None:
    with pytest.raises(PluginError, match="'another', which it was not asked for"):
        compiled(concept("a", eraser="foreign"))


def test_an_edit_at_a_seam_that_was_not_declared_is_refused() -> None:
    with pytest.raises(PluginError, match="seam 'linear', which it does not declare"):
        compiled(concept("a", eraser="undeclared"))


def test_what_is_no_edit_is_refused() -> None:
    with pytest.raises(PluginError, match="a str, which is no Edit"):
        compiled(concept("a", eraser="no_edit"))


def test_an_edit_without_concepts_is_refused() -> None:
    with pytest.raises(PluginError, match=r"the seam 'text site' without concepts: self.concepts = tuple") as raised:
        compiled(concept("a", eraser="no_concepts"))
    assert (raised.value.eraser, raised.value.seam) == ("no_concepts", "text site")
