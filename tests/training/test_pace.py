"""The time that a training takes: what is said of it by a clock of the test's own, and what is stopped."""

from __future__ import annotations

import pytest

from safeguard.errors import SafeguardError
from safeguard.training.time_budget import TimeBudget


class Told:
    """A pace with a clock that a test moves, and what it said."""

    def __init__(self, within: float | None = None) -> None:
        self.now, self.lines = 0.0, list[str]()
        self._pace = TimeBudget(within, say=self.lines.append, less="do less", clock=lambda: self.now)

    def after(self, seconds: float, what: str, more: int, whole: int | None = None, anew: int | None = None) -> None:
        self.now += seconds
        self._pace(what, more, whole, anew)

    def updates(self, count: int, seconds: float, whole: int, first: float = 0.0, anew: int | None = None) -> None:
        """A part, of which each update takes so long, and the first of every ``anew`` so much more."""
        self.after(0, "updates", 0)
        for done in range(count):
            self.after(seconds + (0 if done % (anew or whole) else first), "updates", 1, whole, anew)


def test_the_rest_of_a_part_is_told_once_when_a_few_updates_are_done() -> None:
    told = Told()
    told.updates(3, 2.0, 64)
    assert not told.lines
    told.after(2, "updates", 1, 64)
    told.after(2, "updates", 1, 64)
    assert told.lines == ["updates: 60 of 64 left, about 2 min on this machine as it is now"]


def test_what_only_the_first_update_takes_does_not_count() -> None:
    told = Told()
    told.updates(4, 1.0, 34, first=1000)
    assert told.lines == ["updates: 30 of 34 left, about 30 s on this machine as it is now"]


@pytest.mark.parametrize(("anew", "seconds"), [(20, 56 + 2 * 10), (4, 56 + 14 * 10), (3, 56 + 56 / 3 * 10), (1, 56 * 11)])
def test_pictures_that_are_painted_anew_count(anew: int, seconds: float) -> None:
    told = Told()
    told.updates(4, 1.0, 60, first=10, anew=anew)
    spoken = f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
    assert told.lines == [f"updates: 56 of 60 left, about {spoken} on this machine as it is now"]


def test_a_training_that_goes_on_is_told_of_by_what_is_left() -> None:
    told = Told()
    told.after(0, "updates", 0)
    told.after(5, "updates", 41, 60)
    for _ in range(3):
        told.after(2, "updates", 1, 60)
    assert told.lines == ["updates: 16 of 60 left, about 32 s on this machine as it is now"]


def test_each_part_is_told_of() -> None:
    told = Told()
    for part in ("probe", "erase"):
        told.after(0, part, 0)
        for _ in range(10):
            told.after(1, part, 1, 10)
    assert [line.partition(":")[0] for line in told.lines] == ["probe", "erase"]


def test_of_few_updates_the_rest_is_told_as_early_as_it_can_be() -> None:
    told = Told()
    told.updates(2, 7.0, 3)
    assert told.lines == ["updates: 1 of 3 left, about 7 s on this machine as it is now"]


def test_what_cannot_be_done_in_time_is_stopped() -> None:
    told = Told(within=10)
    told.after(300, "pictures", 8)
    with pytest.raises(
        SafeguardError, match=r"about 6 min .*; with 5 min that have passed, .* the 10 min of --within: do less"
    ):
        told.updates(4, 6.0, 60)
    assert not told.lines


def test_what_can_be_is_not() -> None:
    told = Told(within=12)
    told.after(300, "pictures", 8)
    told.updates(60, 6.0, 60)
    assert len(told.lines) == 1
