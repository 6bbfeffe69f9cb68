"""The first call of an image as a trial: what ``gie`` learns from it acts, and what the trial itself gave does not stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from safeguard.instrument import Attachment
from safeguard.policy import Policy
from safeguard.sdk.adapter import Adapter
from tests.support.contract_policies import calibrated, concept, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, STEPS, generate

Pipe = Any
Protect = Callable[..., Any]
Fitted = Callable[..., str]
CLOSE = {"rtol": 1e-4, "atol": 1e-3}


@pytest.fixture
def fitted(pipe: Pipe, tmp_path: Path) -> Fitted:
    """An adapter for the pipeline in a file: each weight is slope * (sum of the token's features) + offset."""
    bound = Attachment(pipe).fingerprint

    def save(offset: float, slope: float = 0.0) -> str:
        tensors = {"0.weight": torch.full((1, len(bound.sites)), slope), "0.bias": torch.tensor([offset])}
        file = tmp_path / f"{offset}-{slope}.safetensors"
        Adapter("gie", bound, tensors, {"constant": 1.0, "highest": 4.0}).save(file)
        return str(file)

    return save


def gie(adapter: str, name: str = "blood", **fields: Any) -> Policy:
    options = {"activation": "always", "strength": 1.0, "params": {"adapter": adapter}, **fields}
    return policy(concept(name, eraser="gie", **options))


@contextmanager
def counted(pipe: Pipe) -> Iterator[list[int]]:
    """How many rows each call of the denoiser had."""
    calls: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


def test_the_first_call_is_made_twice_and_the_others_once(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    protect(pipe, gie(fitted(1.0)))
    with counted(pipe) as calls:
        generate(pipe, PROMPTS)
    assert len(calls) == STEPS + 1


def test_with_a_constant_no_call_is_made_twice(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, gie("none"))
    with counted(pipe) as calls:
        generate(pipe, PROMPTS)
    assert len(calls) == STEPS


def test_where_nothing_acts_no_call_is_made_twice(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    protect(pipe, gie(fitted(1.0), name="weapon", activation="screened"))
    with counted(pipe) as calls:
        generate(pipe, PROMPTS)
    assert len(calls) == STEPS


def test_weights_of_nothing_leave_every_picture_as_it_was(
    pipe: Pipe, protect: Protect, fitted: Fitted, plain: torch.Tensor
) -> None:
    """So nothing of the trial, in which the constant acted, is left."""
    protect(pipe, gie(fitted(0.0)))
    assert same(generate(pipe, PROMPTS), plain)


def test_a_trial_is_no_part_of_the_record(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    guard = protect(pipe, gie(fitted(0.0)))
    with guard.request() as request:
        generate(pipe, PROMPTS)
    (applied,) = request.decisions[0].applied
    assert applied.effect.relative_change == 0
    assert applied.steps == (0, STEPS - 1)


def test_a_weight_acts_as_the_same_constant_would(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    guard = protect(pipe, gie("none", strength=0.5))
    expected = generate(pipe, PROMPTS)
    guard.swap(gie(fitted(0.5)))
    torch.testing.assert_close(generate(pipe, PROMPTS), expected, **CLOSE)


def test_every_request_has_a_trial_of_its_own(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    protect(pipe, gie(fitted(0.0, slope=0.5)))
    first = generate(pipe, PROMPTS)
    generate(pipe, ["something else", "a tree", "a boat"])
    assert same(generate(pipe, PROMPTS), first)


def test_each_picture_is_what_it_is_alone(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    protect(pipe, gie(fitted(0.0, slope=0.5)))
    together = generate(pipe, PROMPTS)
    for place, prompt in enumerate(PROMPTS):
        alone = generate(pipe, [prompt], generator=[torch.Generator().manual_seed(100 + place)])
        torch.testing.assert_close(alone[0], together[place], **CLOSE)


def test_only_active_rows_change(pipe: Pipe, protect: Protect, fitted: Fitted, plain: torch.Tensor) -> None:
    protect(pipe, gie(fitted(1.0), activation="screened"))
    assert rows_changed(generate(pipe, PROMPTS), plain) == [False, True, False]


def test_a_concept_that_begins_late_has_its_trial_then(
    pipe: Pipe, protect: Protect, fitted: Fitted, plain: torch.Tensor
) -> None:
    guard = protect(pipe, gie(fitted(0.0), steps=(0.5, 1.0)))
    with counted(pipe) as calls:
        assert same(generate(pipe, PROMPTS), plain)
    assert len(calls) == STEPS + 1
    guard.swap(gie(fitted(1.0), steps=(0.5, 1.0)))
    assert rows_changed(generate(pipe, PROMPTS), plain) == [True, True, True]


def test_what_evidence_opens_has_its_trial_after_it(pipe: Pipe, protect: Protect, fitted: Fitted, plain: torch.Tensor) -> None:
    calibration = calibrated(pipe, gie("none", activation="adaptive"), opens=[1])
    guard = protect(pipe, gie(fitted(0.0), activation="adaptive"), screener=None, calibration=calibration)
    with counted(pipe) as calls, guard.request() as request:
        assert same(generate(pipe, PROMPTS), plain)
    assert [decision.result for decision in request.decisions] == ["pass", "erase", "pass"]
    assert len(calls) == STEPS + 2


def test_text_exchanged_by_a_callback_gets_the_constant(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    """Nothing tells its rows apart from one call to the next, so nothing is learnt of them."""

    def exchange(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        states = tensors["prompt_embeds"]
        return {"prompt_embeds": torch.randn(states.shape, generator=torch.Generator().manual_seed(9))}

    changes = {"callback_on_step_end": exchange, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    unprotected = generate(pipe, PROMPTS, **changes)
    protect(pipe, gie(fitted(0.0)))
    assert rows_changed(generate(pipe, PROMPTS, **changes), unprotected) == [True, True, True]


def test_a_denoiser_called_by_itself_gets_the_constant(pipe: Pipe, protect: Protect, fitted: Fitted) -> None:
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(2, 7, pipe.unet.config.cross_attention_dim, generator=generator)
    call = {"sample": torch.randn(2, 4, 16, 16, generator=generator), "timestep": 500, "encoder_hidden_states": text}
    with torch.no_grad():
        guard = protect(pipe, gie("none"))
        expected = pipe.unet(**call).sample
        guard.swap(gie(fitted(0.0)))
        assert same(pipe.unet(**call).sample, expected)


def test_a_compiled_denoiser_has_its_trial_past_the_graph(protect: Protect, fitted: Fitted, plain: torch.Tensor) -> None:
    own = FAMILIES["sd1"]()
    torch.compiler.reset()
    own.unet = torch.compile(own.unet, backend="eager", fullgraph=True)
    protect(own, gie(fitted(0.0)))
    torch.testing.assert_close(generate(own, PROMPTS), plain, **CLOSE)
    torch.compiler.reset()
