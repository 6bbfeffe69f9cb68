"""What activation by evidence promises, for every eraser on every family: it only looks until something is seen, and then it is
as if the concept had been active all along.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.contract_policies import adaptive, concept, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, generate
from tests.support.guarded import Guarded

Plain = Callable[..., torch.Tensor]
OfFamily = Callable[[str], Guarded]


def test_where_nothing_is_seen_the_image_is_the_unprotected_one(
    eraser: str, family: str, watched: OfFamily, plain: Plain
) -> None:
    assert same(watched(family).under(adaptive("bird", eraser)), plain(family))


@pytest.mark.only_families(*(family for family in FAMILIES if family != "controlnet"))
def test_what_is_seen_is_erased_from_the_first_step_on(eraser: str, family: str, watched: OfFamily) -> None:
    guarded = watched(family)
    expected = guarded.under(policy(concept("weapon", eraser=eraser, activation="always")))
    assert same(guarded.under(adaptive("weapon", eraser)), expected)


def test_only_the_rows_in_which_it_is_seen_change(eraser: str, family: str, watched: OfFamily, plain: Plain) -> None:
    guarded = watched(family)
    guarded.swap(adaptive("blood", eraser))
    with guarded.guard.request() as request:
        found = generate(guarded.pipe, PROMPTS)
    assert rows_changed(found, plain(family)) == [False, False, True]
    assert [decision.evidence.concepts["blood"].opened for decision in request.decisions] == [False, False, True]
    assert [[one.concept for one in decision.applied] for decision in request.decisions] == [[], [], ["blood"]]
    assert [decision.result for decision in request.decisions] == ["pass", "pass", "erase"]
