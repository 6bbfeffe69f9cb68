"""How long a training takes on this machine as it is now, and whether that is within what it was given."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from safeguard.errors import SafeguardError

FEW: Final = 3
"""Updates or pictures, after the first, from which the rest is told."""


class TimeBudget:
    """An `Advance` that says once of each part about how long its rest takes, from when a few updates are done.

    Raises SafeguardError where that, and what has passed since it was made, is more than ``within`` minutes; ``less`` says what
    to do then. ``clock`` is in seconds.
    """

    def __init__(
        self,
        within: float | None = None,
        *,
        say: Callable[[str], None],
        less: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._within, self._say, self._less, self._clock = within, say, less, clock
        self._start = clock()
        self._part, self._begun, self._done = "", self._start, 0
        self._first: tuple[float, int] | None = None  # when it was done, and how much was then
        self._told = False

    def __call__(self, what: str, more: int, whole: int | None = None, anew: int | None = None) -> None:
        now = self._clock()
        if what != self._part:
            self._part, self._begun, self._done, self._first, self._told = what, now, 0, None, False
        if not more:
            return
        self._done += more
        if self._first is None:
            self._first = now, self._done
        elif whole is not None and not self._told:
            done = self._first[1]
            if self._done < whole and self._done - done >= min(_window(anew), max(1, (whole - done) // 2)):
                self._told = True
                self._tell(self._rest(now, self._first, whole, anew), now - self._start, whole)

    def _rest(self, now: float, first: tuple[float, int], whole: int, anew: int | None) -> float:
        """Seconds that are left of the part. What the first update took longer than another, each turn of pictures takes."""
        at, done = first
        each = (now - at) / (self._done - done)
        turns = 0 if anew is None or anew <= FEW else -(-whole // anew) - -(-self._done // anew)
        return (whole - self._done) * each + turns * max(0.0, at - self._begun - each)

    def _tell(self, rest: float, passed: float, whole: int) -> None:
        left = f"{self._part}: {whole - self._done} of {whole} left, about {_spoken(rest)} on this machine as it is now"
        if self._within is not None and passed + rest > 60 * self._within:
            over = f"with {_spoken(passed)} that have passed, that is more than the {self._within:g} min of --within"
            raise SafeguardError(f"{left}; {over}: {self._less}")
        self._say(left)


def _window(anew: int | None) -> int:
    """Updates after the first to go by: whole turns of pictures where these are short."""
    return FEW if anew is None or anew > FEW else -(-FEW // anew) * anew


def _spoken(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
