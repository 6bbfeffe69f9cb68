"""Where a call stands in its schedule, told from the timestep that it brings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safeguard.instrument.apply.schedule import locate
from safeguard.plan.compile import Plan
from safeguard.plan.request_state import RequestFacts, RequestState
from tests.support.contract_policies import policy

TIMES = torch.tensor([900, 600, 600, 300])  # a second-order scheduler asks twice at one time


def running(times: torch.Tensor | None = TIMES) -> RequestState:
    scheduler = None if times is None else SimpleNamespace(timesteps=times)
    return RequestState(RequestFacts(Plan(policy(), (), (), {}), [()], host=0, scheduler=scheduler))


@pytest.mark.parametrize(
    ("timestep", "step"),
    [
        (TIMES[0], 0),
        (TIMES[1], 1),
        (TIMES[2], 2),
        (TIMES[1:][2], 3),
        (TIMES[2].expand(6), 2),
        (TIMES[3:4], 3),
        (TIMES[3].clone(), 3),
        (torch.full((6,), 300), 3),
        (300, 3),
        (300.0, 3),
    ],
    ids=["first", "once", "again", "of a part", "one a row", "in a list", "copied", "written out", "int", "float"],
)
def test_a_timestep_of_the_schedule_names_its_step(timestep: Any, step: int) -> None:
    state = running()
    locate(state, timestep, None)
    assert (state.log.step, state.log.progress) == (step, step / 4)


def test_times_in_another_measure_than_the_schedules_are_counted() -> None:
    """Some denoisers are told the time in other numbers than those of the scheduler; each of two branches brings it."""
    state = running()
    for step, time in enumerate([0.9, 0.6, 0.3]):
        for _ in range(2):
            locate(state, time, None)
            assert (state.log.step, state.log.progress) == (step, step / 4)


def test_without_a_schedule_the_steps_are_counted() -> None:
    state = running(None)
    scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=100))
    for step, time in enumerate([100, 50, 0]):
        locate(state, time, scheduler)
        assert state.log.step == step
    assert state.log.progress == 0.999


def test_a_request_keeps_the_schedule_that_it_began_with() -> None:
    """Another request may set other timesteps on the same scheduler meanwhile."""
    state = running()
    locate(state, TIMES[0], None)
    state.facts.scheduler.timesteps = torch.tensor([300])
    locate(state, TIMES[3], None)
    assert (state.log.step, state.log.progress) == (3, 0.75)
