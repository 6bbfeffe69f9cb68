"""Where in its schedule a denoiser call stands, and whether a call from outside every request begins a new run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safeguard.plan.request_state import RequestState

TRAIN_STEPS = 1000  # of a scheduler that does not say


def moment_of(timestep: Any) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


@dataclass(frozen=True, slots=True, eq=False)
class _Schedule:
    times: Tensor | None
    places: Mapping[float, int]  # of a time that comes twice, the first
    length: int


def locate(state: RequestState, timestep: Any, scheduler: Any) -> None:
    """Set the step and the progress of a call: from the schedule of its request, where the time stands in it or, for denoisers
    that are told the time in another measure, from the number of times that came before; without one, from its height.
    """
    state.timed = True
    schedule = _schedule(state)
    place = _place(timestep, schedule.times)
    if place is None and schedule.places:
        place = schedule.places.get(moment_of(timestep))
    if place is not None:
        state.step, state.progress = place, place / schedule.length
        return
    if schedule.places:
        seen: dict[float, int] = state.memory.setdefault("moments", {})
        place = min(seen.setdefault(moment_of(timestep), len(seen)), schedule.length - 1)
        state.step, state.progress = place, place / schedule.length
        return
    total = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or TRAIN_STEPS
    state.step, state.progress = state.step + 1, min(max(1.0 - moment_of(timestep) / total, 0.0), 0.999)


def follow(state: RequestState, moments: Sequence[float], times: Tensor | None = None) -> None:
    """Make ``moments`` the schedule of a request."""
    places = {moment: place for place, moment in reversed(list(enumerate(moments)))}
    state.memory["schedule"] = _Schedule(times, places, len(moments))


def _schedule(state: RequestState) -> _Schedule:
    """The timesteps of this request, read once: another request may set others on the same scheduler meanwhile."""
    if "schedule" not in state.memory:
        times = getattr(state.scheduler, "timesteps", None)
        follow(state, [] if times is None else [float(time) for time in times.tolist()], times)
    found: _Schedule = state.memory["schedule"]
    return found


def _place(timestep: Any, times: Tensor | None) -> int | None:
    """The place of a timestep that is itself a piece of the schedule: found without asking the device for its value."""
    if not isinstance(timestep, Tensor) or times is None or times.dim() != 1 or times.dtype != timestep.dtype:
        return None
    one = timestep.dim() == 0 or timestep.numel() == 1 or set(timestep.stride()) == {0}
    if not one or timestep.untyped_storage().data_ptr() != times.untyped_storage().data_ptr():
        return None
    place, rest = divmod(int(timestep.storage_offset()) - int(times.storage_offset()), max(int(times.stride(0)), 1))
    return place if rest == 0 and 0 <= place < len(times) else None


class DirectRuns(threading.local):
    """Tells runs apart, by thread, among calls from outside every request: a run goes down in time on the same texts.

    When in doubt a run counts as new, for then it is recorded once more rather than not at all.
    """

    def __init__(self) -> None:
        self._moment = float("-inf")
        self._texts: list[tuple[Tensor, float]] = []  # each text of the run with the moment it was last seen at

    def begins(self, states: Tensor, moment: float) -> bool:
        """Whether this call begins a run. A second text at the same moment is another branch of the same run."""
        known = next((place for place, (text, _) in enumerate(self._texts) if _same(text, states)), None)
        new = moment != self._moment if known is None else moment >= self._texts[known][1]
        if new:
            self._texts.clear()
        elif known is not None:
            del self._texts[known]
        self._moment = moment
        self._texts.append((states, moment))
        return new


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.device == other.device and torch.equal(one, other))
