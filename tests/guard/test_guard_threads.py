"""Requests side by side: each has the policy that it began with, and the image that it would have alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from safeguard.audit import MemorySink
from safeguard.policy import Policy
from tests.support.contract_policies import concept, policy, same
from tests.support.families import PROMPTS, generate

Pipe = Any
Protect = Callable[..., Any]
FIRST = policy(concept("blood", activation="always"), name="first")
SECOND = policy(concept("weapon", activation="always", strength=1.0), name="second")
SOLVED = policy(concept("blood", activation="always", eraser="rece"), name="solved")


def gated(pipe: Pipe, here: threading.Event, go: threading.Event) -> dict[str, Any]:
    """A callback that says after the first step that it is here, and waits until it may go."""

    def callback(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 0:
            here.set()
            assert go.wait(60)
        return {}

    return {"callback_on_step_end": callback}


def test_a_swap_between_two_requests_leaves_each_its_own_policy(pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    guard = protect(pipe, FIRST, audit=sink)
    alone_first = generate(pipe, PROMPTS)
    guard.swap(SECOND)
    alone_second = generate(pipe, PROMPTS)
    guard.swap(FIRST)
    sink.records.clear()
    here_a, here_b, go = threading.Event(), threading.Event(), threading.Event()

    def ask(name: str, here: threading.Event) -> torch.Tensor:
        with guard.request(name):
            found: torch.Tensor = generate(pipe, PROMPTS, **gated(pipe, here, go))
        return found

    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(ask, "before", here_a)
        assert here_a.wait(60)
        guard.swap(SECOND)
        after = pool.submit(ask, "after", here_b)
        assert here_b.wait(60)
        go.set()
        assert same(before.result(), alone_first)
        assert same(after.result(), alone_second)
    named = {(record["request_id"], record["policy"]["revision"]) for record in sink.records}
    assert named == {("before", FIRST.revision), ("after", SECOND.revision)}


@pytest.mark.parametrize("first", [FIRST, SOLVED], ids=["attention to attention", "weights to attention"])
def test_many_requests_under_swaps_are_each_what_they_are_alone(first: Policy, pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, first)
    alone = {first.revision: generate(pipe, PROMPTS)}
    guard.swap(SECOND)
    alone[SECOND.revision] = generate(pipe, PROMPTS)
    assert not same(*alone.values())

    def ask() -> None:
        with guard.request() as request:
            found = generate(pipe, PROMPTS)
        (revision,) = {decision.policy_revision for decision in request.decisions}
        assert same(found, alone[revision])

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(ask) for _ in range(6)]
        for place in range(4):
            guard.swap((first, SECOND)[place % 2])
        for job in jobs:
            job.result()


def test_hooks_mended_by_two_requests_at_once_act_once(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, FIRST)
    expected = generate(pipe, PROMPTS)
    for module in pipe.unet.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    barrier = threading.Barrier(2)

    def ask() -> torch.Tensor:
        barrier.wait()
        found: torch.Tensor = generate(pipe, PROMPTS)
        return found

    with ThreadPoolExecutor(2) as pool:
        assert all(same(job.result(), expected) for job in [pool.submit(ask), pool.submit(ask)])


def test_an_unguarded_thread_gets_the_whole_policy(pipe: Pipe, protect: Protect) -> None:
    """What runs for a request in one thread means nothing to another."""
    guard = protect(pipe, policy(concept("weapon")))
    call = (torch.ones(1, 4, 16, 16), 500, torch.ones(1, 7, 32))
    here, go = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        job = pool.submit(generate, pipe, PROMPTS, **gated(pipe, here, go))
        assert here.wait(60)
        protected = pipe.unet(*call).sample
        go.set()
        job.result()
        guard.release()
        assert not torch.equal(protected, pipe.unet(*call).sample)
