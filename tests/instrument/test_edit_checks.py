"""Edits that are wrong: each is refused as its eraser's fault, and the message names what is wrong and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeguard.errors import PluginError
from safeguard.sdk import FeatureEdit, PredictionEdit, Seam, SiteEffect, TextSiteEdit, TextStatesEdit
from tests.support.contract_policies import concept, policy, protecting
from tests.support.families import FAMILIES

Wrong = Callable[[Any], Any]


def eraser_of(kind: type, answer: Wrong, *, narrows: bool = True) -> type:
    """An eraser whose one edit answers a call by ``answer``; ``narrows`` says whether its ``select`` does what it is asked."""

    class Edit(kind):  # type: ignore[misc]
        def __init__(self, concepts: Any) -> None:
            self.concepts = tuple(concepts)
            self.module = "unet.mid_block"

        def select(self, columns: Any) -> Any:
            return Edit([self.concepts[column] for column in columns]) if narrows else self

        def __call__(self, call: Any) -> Any:
            return answer(call)

    class Wrong:
        api = (1, 0)
        name = "wrong"
        version = "1.0"
        seams = frozenset({Edit.seam})
        strengths = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}  # noqa: RUF012
        params: dict[str, Any] = {}  # noqa: RUF012

        def edits(self, concepts: Any, params: Any, pipeline: Any) -> list[Any]:
            return [Edit([one.id for one in concepts])]

    return Wrong


@pytest.fixture(scope="module")
def pipe() -> Any:
    return FAMILIES["sd1"]()


def refusal(pipe: Any, eraser: type) -> PluginError:
    chosen = policy(concept("blood", eraser="wrong"), concept("weapon", eraser="wrong"))
    with protecting() as protect, pytest.raises(PluginError) as raised:
        protect(pipe, chosen, erasers=[eraser])
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    return raised.value


WRONG: dict[str, tuple[type, Wrong, str]] = {
    "a tensor in place of an effect": (TextSiteEdit, lambda call: call.output, "gave back a Tensor, not a SiteEffect"),
    "a delta of another shape": (
        TextSiteEdit,
        lambda call: SiteEffect(call.output[:, :1]),
        "gave back a delta of the shape [1, 1, 16], not [1, 64, 16]",
    ),
    "a delta in whole numbers": (
        TextSiteEdit,
        lambda call: SiteEffect(call.output.long()),
        "gave back a delta of torch.int64, not torch.float32",
    ),
    "a delta on another device": (
        TextSiteEdit,
        lambda call: SiteEffect(call.output.to("meta")),
        "gave back a delta on meta, not cpu",
    ),
    "a mass of all concepts": (
        TextSiteEdit,
        lambda call: SiteEffect(call.output, call.query.new_ones(*call.query.shape[:3], 5)),
        "its select does not narrow what it keeps",
    ),
    "a site's strengths": (TextSiteEdit, lambda call: SiteEffect(call.output), "does the same at strength 0"),
    "an edit that fails": (TextSiteEdit, lambda call: SiteEffect(call.nothing), "failed (AttributeError: "),
    "no states": (TextStatesEdit, lambda call: None, "gave back a NoneType, not text states as a tensor"),
    "states of another length": (
        TextStatesEdit,
        lambda call: call.states[:, :3],
        "gave back text states of the shape [1, 3, 32], not [1, 77, 32]",
    ),
    "the strengths of states": (TextStatesEdit, lambda call: 2 * call.states, "does the same at strength 0"),
    "no prediction": (PredictionEdit, lambda call: "noise", "gave back a str, not a prediction as a tensor"),
    "a prediction's strengths": (PredictionEdit, lambda call: 2 * call.prediction, "does the same at strength 0"),
    "a feature of another shape": (FeatureEdit, lambda call: call.feature[:, :1], "gave back a feature of the shape [1, 1,"),
    "a feature's strengths": (FeatureEdit, lambda call: 2 * call.feature, "does the same at strength 0"),
}


@pytest.mark.parametrize(("kind", "answer", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_edit_is_its_erasers_fault(pipe: Any, kind: type, answer: Wrong, message: str) -> None:
    fault = refusal(pipe, eraser_of(kind, answer))
    assert message in str(fault)
    assert "eraser 'wrong' from erasers=[...]" in str(fault)
    assert (fault.eraser, fault.concept, fault.seam) == ("wrong", "blood, weapon", str(kind.seam))  # type: ignore[attr-defined]
    assert bool(fault.site) == (kind.seam in (Seam.TEXT_SITE, Seam.FEATURE))  # type: ignore[attr-defined]


def test_the_error_has_the_shape(pipe: Any) -> None:
    fault = refusal(pipe, eraser_of(TextStatesEdit, lambda call: call.states[:, :3]))
    assert fault.shape == (1, 3, 32)


def test_a_select_that_ignores_its_columns_is_refused(pipe: Any) -> None:
    fault = refusal(pipe, eraser_of(TextSiteEdit, lambda call: SiteEffect(call.output * call.strengths.sum()), narrows=False))
    assert "select([1]) gave back an edit of 'blood, weapon', not of 'weapon'" in str(fault)


def test_a_right_edit_is_let_through(pipe: Any) -> None:
    def answer(call: Any) -> torch.Tensor:
        return call.prediction + call.strengths.sum()  # type: ignore[no-any-return]

    with protecting() as protect:
        protect(pipe, policy(concept("blood", eraser="wrong")), erasers=[eraser_of(PredictionEdit, answer)])


def test_a_text_site_edit_is_tried_at_strength_0_at_one_site(pipe: Any) -> None:
    idle: list[bool] = []

    def answer(call: Any) -> SiteEffect:
        idle.append(not call.strengths.any())
        return SiteEffect(call.output * call.strengths.sum())

    chosen = policy(concept("blood", eraser="wrong", strength=0.0), concept("weapon", eraser="wrong"))
    with protecting() as protect:
        assert protect(pipe, chosen, erasers=[eraser_of(TextSiteEdit, answer)]).status().sites > 1
    assert idle.count(True) == 1
