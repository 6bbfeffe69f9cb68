"""How far people agree, against figures worked out by hand or by the books."""

from __future__ import annotations

import pytest

from safeguard.feedback import Judgement, agreement
from safeguard.feedback.agreement import pair_agreement, pairs_of


def _labels(*answers: str) -> dict[str, dict[str, str]]:
    """One picture a word: y, n, u or - for each of ana, ben, cleo."""
    words = {"y": "yes", "n": "no", "u": "unsure"}
    return {
        str(place): {who: words[said] for who, said in zip(("ana", "ben", "cleo"), row, strict=False) if said != "-"}
        for place, row in enumerate(answers)
    }


def test_one_person_agrees_with_nobody() -> None:
    assert agreement(_labels("y", "n")) == []


def test_cohens_kappa_of_two() -> None:
    # 20 both yes, 5 and 10 apart, 15 both no: observed 0.7, chance 0.5
    (found,) = agreement(_labels(*["yy"] * 20, *["yn"] * 5, *["ny"] * 10, *["nn"] * 15, "yu", "-n"))
    assert (found.who, found.pictures, found.share) == (("ana", "ben"), 50, 0.7)
    assert found.kappa == pytest.approx(0.4)


def test_kappa_of_people_who_say_one_thing_is_not_known() -> None:
    (found,) = agreement(_labels("yy", "yy"))
    assert (found.share, found.kappa) == (1.0, None)


def test_fleiss_kappa_of_three_and_cohens_of_each_two() -> None:
    found = agreement(_labels("yyy", "yyn", "nnn", "nny", "yy-"))
    assert [one.who for one in found] == [("ana", "ben"), ("ana", "cleo"), ("ben", "cleo"), ("ana", "ben", "cleo")]
    # four pictures, three raters: mean agreement (1 + 1/3 + 1 + 1/3) / 4 = 2/3, half yes, so (2/3 - 1/2) / (1/2)
    assert found[-1].kappa == pytest.approx(1 / 3)
    assert found[0].kappa == pytest.approx(1.0)


def _ranking(who: str, *images: str) -> Judgement:
    return Judgement(who + images[0], "blood", "ranking", tuple(letter * 64 for letter in images), who, "person", "")


def test_pairs_of_rankings_and_how_many_are_put_alike() -> None:
    ana, ben = _ranking("ana", "a", "b", "c"), _ranking("ben", "b", "a", "c")
    assert len(pairs_of([ana, ben])) == 6
    assert pairs_of([ana])[0] == ("a" * 64, "b" * 64)
    assert pair_agreement([ana, ben]) == (3, pytest.approx(2 / 3))
    assert pair_agreement([ana]) is None
