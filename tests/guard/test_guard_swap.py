"""A swap is all or nothing: on any failure the last good policy stays, and the status says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeguard.audit import AuditLog, MemorySink
from safeguard.errors import AuditError, CapabilityError, PluginError, PolicyError, ScreenError
from tests.support.contract_policies import Words, concept, policy, same
from tests.support.families import PROMPTS, generate

Pipe = Any
Protect = Callable[..., Any]
GOOD = policy(concept("blood", activation="always"))
OTHER = policy(concept("weapon", activation="always"))


class FillingSink(MemorySink):
    """Has room for one policy."""

    def store_policy(self, revision: str, canonical: bytes) -> None:
        if self.policies:
            raise AuditError("no space left on device")
        super().store_policy(revision, canonical)


class Unprepared(Words):
    """A screener that cannot take in a policy with a weapon in it."""

    def prepare(self, concepts: Any) -> None:
        if "weapon" in concepts:
            raise ScreenError("the weapon cannot be encoded")


FAILURES: dict[str, tuple[Any, type[Exception], dict[str, Any]]] = {
    "no file": (Path("missing.yaml"), PolicyError, {}),
    "no built-in of that name": ("builtin://nothing", PolicyError, {}),
    "no policy": (None, PolicyError, {}),
    "no such eraser": (policy(concept("blood", eraser="none")), PluginError, {}),
    "no such parameter": (policy(concept("blood", params={"shape": 1})), CapabilityError, {}),
    "too long a phrase": (policy(concept("blood", phrases=("blood " * 40,))), CapabilityError, {}),
    "numbers that are not finite": (policy(concept("blood", strength=1e38)), CapabilityError, {}),
    "no room in the archive": (OTHER, AuditError, {"audit": FillingSink()}),
    "a screener that fails": (OTHER, ScreenError, {"screener": Unprepared()}),
}


@pytest.mark.parametrize(("bad", "kind", "options"), FAILURES.values(), ids=FAILURES)
def test_a_failed_swap_keeps_the_last_good_policy(
    bad: Any, kind: type[Exception], options: dict[str, Any], pipe: Pipe, protect: Protect
) -> None:
    guard = protect(pipe, GOOD, **options)
    expected, activated = generate(pipe, PROMPTS), guard.status().last_successful_activation
    with pytest.raises(kind):
        guard.swap(bad)
    status = guard.status()
    assert guard.policy.revision == status.active_revision == GOOD.revision
    assert status.last_error.startswith(f"{kind.__name__}: ")
    assert status.last_successful_activation == activated
    assert same(generate(pipe, PROMPTS), expected)


def test_a_good_swap_takes_the_error_out_of_the_status(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, GOOD)
    with pytest.raises(PolicyError):
        guard.swap("builtin://nothing")
    assert guard.swap(OTHER) == OTHER.revision
    assert guard.status().last_error is None


def test_a_swap_is_what_a_fresh_guard_does(pipe: Pipe, protect: Protect) -> None:
    fresh = protect(pipe, OTHER)
    expected = generate(pipe, PROMPTS)
    fresh.release()
    guard = protect(pipe, GOOD)
    guard.swap(OTHER)
    assert same(generate(pipe, PROMPTS), expected)


def test_swapped_policies_are_archived(pipe: Pipe, protect: Protect, tmp_path: Path) -> None:
    from safeguard.audit import load_snapshot

    guard = protect(pipe, GOOD, audit=tmp_path)
    guard.swap(OTHER)
    assert [load_snapshot(tmp_path, one.revision) for one in (GOOD, OTHER)] == [GOOD.canonical, OTHER.canonical]


def test_the_callers_own_log_outlives_the_guard(pipe: Pipe, protect: Protect, tmp_path: Path) -> None:
    with AuditLog(tmp_path) as log:
        guard = protect(pipe, GOOD, audit=log)
        guard.release()
        protect(pipe, OTHER, audit=log)
        generate(pipe, PROMPTS)
        assert log.head is not None


def test_an_empty_policy_protects_from_nothing(pipe: Pipe, protect: Protect, plain: Any) -> None:
    guard = protect(pipe, policy())
    assert same(generate(pipe, PROMPTS), plain)
    assert guard.status().erasers == ()


def test_the_self_test_notices_weights_that_were_exchanged(pipe: Pipe, protect: Protect) -> None:
    """What the unedited denoiser gave is kept between swaps, and must not outlive its weights."""
    import torch

    guard = protect(pipe, GOOD)
    weight = pipe.unet.conv_in.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        assert guard.swap(OTHER) == OTHER.revision
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_status_says_how_the_guard_stands(pipe: Pipe, protect: Protect) -> None:
    guard = protect(
        pipe,
        policy(
            concept("blood", activation="always"),
            concept("gore", activation="adaptive", eraser="negative_prompt"),
            concept("weapon", activation="off"),
            name="shop",
        ),
    )
    generate(pipe, PROMPTS)
    status = guard.status().to_dict()
    assert (status["name"], status["pipeline"], status["screener"]) == ("shop", "StableDiffusionPipeline", "words")
    assert status["erasers"] == ("eiup 1.5", "negative_prompt 1.1")
    assert status["activations"]["gore"].startswith("adaptive")
    assert status["activations"]["weapon"] == "off"
    assert status["sites"] == 4
    assert status["last_request"] >= status["last_successful_activation"]
