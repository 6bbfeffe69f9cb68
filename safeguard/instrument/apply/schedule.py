"""Where in its schedule a denoiser call stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from safeguard.plan.request_state import RequestState, Schedule

TRAIN_STEPS = 1000  # of a scheduler that does not say


def moment_of(timestep: Any) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def locate(state: RequestState, timestep: Any, scheduler: Any) -> None:
    """Set the step and the progress of a call: from the schedule of its request, where the time stands in it or, for denoisers
    that are told the time in another measure, from the number of times that came before; without one, from its height.
    """
    schedule = _schedule(state)
    place = _place(timestep, schedule.times)
    if place is None and schedule.places:
        place = schedule.places.get(moment_of(timestep))
    if place is not None:
        state.log.step, state.log.progress = place, place / schedule.length
        return
    if schedule.places:
        seen = state.caches.moments
        place = min(seen.setdefault(moment_of(timestep), len(seen)), schedule.length - 1)
        state.log.step, state.log.progress = place, place / schedule.length
        return
    total = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or TRAIN_STEPS
    state.log.step, state.log.progress = state.log.step + 1, min(max(1.0 - moment_of(timestep) / total, 0.0), 0.999)


def is_last(state: RequestState) -> bool:
    """Whether the call that is under way is of the last time of its schedule: in doubt, of its last tenth."""
    schedule = state.caches.schedule
    if schedule is None or not schedule.places:
        return state.log.progress >= 0.9
    return state.log.step >= max(schedule.places.values())


def follow(state: RequestState, moments: Sequence[float], times: Tensor | None = None) -> Schedule:
    """Make ``moments`` the schedule of a request."""
    places = {moment: place for place, moment in reversed(list(enumerate(moments)))}
    state.caches.schedule = schedule = Schedule(times, places, len(moments))
    return schedule


def _schedule(state: RequestState) -> Schedule:
    """The timesteps of this request, read once: another request may set others on the same scheduler meanwhile."""
    if state.caches.schedule is not None:
        return state.caches.schedule
    times = getattr(state.facts.scheduler, "timesteps", None)
    return follow(state, [] if times is None else [float(time) for time in times.tolist()], times)


def _place(timestep: Any, times: Tensor | None) -> int | None:
    """The place of a timestep that is itself a piece of the schedule: found without asking the device for its value."""
    if not isinstance(timestep, Tensor) or times is None or times.dim() != 1 or times.dtype != timestep.dtype:
        return None
    scalar = timestep.dim() == 0 or timestep.numel() == 1 or set(timestep.stride()) == {0}
    if not scalar or timestep.untyped_storage().data_ptr() != times.untyped_storage().data_ptr():
        return None
    place, rest = divmod(int(timestep.storage_offset()) - int(times.storage_offset()), max(int(times.stride(0)), 1))
    return place if rest == 0 and 0 <= place < len(times) else None
