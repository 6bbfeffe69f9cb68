"""What every eraser promises, whatever its method: run for each registered one on each family of pipelines."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeguard.plan.registry import GROUP, Registry
from safeguard.testing import eraser_checks
from safeguard.testing.trial import Trial
from tests.support.contract_policies import UNTRAINED, InterruptedRunError, concept, policy, rows_changed, same
from tests.support.families import PROMPTS, TOKENS, denoiser, generate

Pipe = Any
Plain = Callable[..., torch.Tensor]
Protect = Callable[..., Any]
ActsOrRefuses = Callable[[Callable[[], torch.Tensor], torch.Tensor], None]
EVERYWHERE = (
    eraser_checks.acts,
    eraser_checks.strength_zero,
    eraser_checks.strength_scale,
    eraser_checks.nothing_active,
    eraser_checks.only_active_rows,
    eraser_checks.same_again,
    eraser_checks.swapped_and_back,
)
BY_ROWS = (eraser_checks.rows_apart, eraser_checks.memory_of_rows, eraser_checks.recorded)
ROWS_ON = ("sd1", "sdxl", "sd3")


def test_strength_words_are_numbers_that_never_fall(eraser: str) -> None:
    eraser_checks.require_strength_words(Registry().get(eraser))


def test_it_keeps_the_contract_that_authors_check(eraser: str, family: str, pipe: Pipe) -> None:
    """The checks of `safeguard.testing.check_eraser`, one after another under one guard."""
    checks = (*EVERYWHERE, *(BY_ROWS if family in ROWS_ON else ()))
    with Trial(Registry().get(eraser), pipe, UNTRAINED.get(eraser, {}), run=generate) as trial:
        for check in checks:
            check(trial)


def test_no_negative_prompt_pushes_a_concept_out(eraser: str, family: str, pipe: Pipe, protect: Protect) -> None:
    """The encoder reads a text up to a length, and the user's own may take all of it."""
    long = ["x" * TOKENS] * 3
    unprotected = generate(pipe, PROMPTS, negative_prompt=long)
    protect(pipe, policy(concept("blood", eraser=eraser, activation="always")))
    assert rows_changed(generate(pipe, PROMPTS, negative_prompt=long), unprotected) == [True, True, True]


def test_released_it_is_the_pipeline_that_it_was(eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect) -> None:
    expected = plain(family)
    kind, weights = type(pipe), copy.deepcopy(denoiser(pipe).state_dict())
    guard = protect(pipe, policy(concept("blood", eraser=eraser, activation="always")))
    generate(pipe, PROMPTS)
    guard.release()
    assert same(generate(pipe, PROMPTS), expected)
    assert type(pipe) is kind
    assert all(torch.equal(weights[name], value) for name, value in denoiser(pipe).state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser(pipe).modules())


def test_an_exception_in_the_middle_leaves_no_trace(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect
) -> None:
    expected = plain(family)
    guard = protect(pipe, policy(concept("blood", eraser=eraser)))
    protected = generate(pipe, PROMPTS)

    def interrupt(*_: Any) -> dict[str, Any]:
        raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        generate(pipe, PROMPTS, callback_on_step_end=interrupt)
    assert same(generate(pipe, PROMPTS), protected)
    guard.release()
    assert same(generate(pipe, PROMPTS), expected)


def test_images_of_one_prompt_share_its_activation(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect
) -> None:
    expected = plain(family, num_images_per_prompt=2)
    protect(pipe, policy(concept("blood", eraser=eraser)))
    found = generate(pipe, PROMPTS, num_images_per_prompt=2)
    assert rows_changed(found, expected) == [False, False, True, True, False, False]


def test_without_guidance_it_acts_or_refuses(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    expected = plain(family, guidance_scale=1.0)
    protect(pipe, policy(concept("blood", eraser=eraser, activation="always")))
    acts_or_refuses(lambda: generate(pipe, PROMPTS, guidance_scale=1.0), expected)


@pytest.mark.only_families("sd1", "sdxl", "sd3")
def test_without_guidance_an_inactive_concept_costs_nothing(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect
) -> None:
    expected = plain(family, guidance_scale=1.0)
    protect(pipe, policy(concept("weapon", eraser=eraser)))
    assert same(generate(pipe, PROMPTS, guidance_scale=1.0), expected)


def test_a_negative_prompt_equal_to_the_prompt_hides_nothing(
    eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect, acts_or_refuses: ActsOrRefuses
) -> None:
    expected = generate(pipe, PROMPTS, negative_prompt=list(PROMPTS))
    protect(pipe, policy(concept("blood", eraser=eraser, activation="always")))
    acts_or_refuses(lambda: generate(pipe, PROMPTS, negative_prompt=list(PROMPTS)), expected)


def embeddings(pipe: Pipe) -> dict[str, torch.Tensor]:
    """``PROMPTS`` as a caller would encode them."""
    more = {name: None for name in inspect.signature(pipe.encode_prompt).parameters if name in ("prompt_2", "prompt_3")}
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True, **more}
    with torch.no_grad():
        made = pipe.encode_prompt(list(PROMPTS), **options)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, made, strict=False))


def test_embeddings_get_the_whole_policy(eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect) -> None:
    """And the same images as the text that they were made from, were it always active."""
    given = embeddings(pipe)
    expected = generate(pipe, None, **given)
    guard = protect(pipe, policy(concept("blood", eraser=eraser)))
    found = generate(pipe, None, **given)
    assert rows_changed(found, expected) == [True, True, True]
    guard.swap(policy(concept("blood", eraser=eraser, activation="always")))
    assert same(generate(pipe, None, **given), found)


@pytest.mark.only_families("sd1", "controlnet", "sd3")
def test_it_keeps_to_its_steps(eraser: str, family: str, pipe: Pipe, protect: Protect) -> None:
    def latents_after_each_step() -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def keep(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(tensors["latents"].clone())
            return {}

        generate(pipe, PROMPTS, callback_on_step_end=keep)
        return seen

    unprotected = latents_after_each_step()
    protect(pipe, policy(concept("blood", eraser=eraser, activation="always", steps=(0.5, 1.0))))
    protected = latents_after_each_step()
    assert same(protected[0], unprotected[0])
    assert rows_changed(protected[-1], unprotected[-1]) == [True, True, True]


@pytest.mark.only_families("sd1", "controlnet", "sd3")
def test_a_run_keeps_the_policy_that_it_began_with(eraser: str, family: str, pipe: Pipe, protect: Protect) -> None:
    first = policy(concept("blood", eraser=eraser, activation="always"))
    second = policy(concept("weapon", eraser=eraser, activation="always", strength=1.0))
    guard = protect(pipe, first)
    expected = generate(pipe, PROMPTS)

    def swap(*_: Any) -> dict[str, Any]:
        guard.swap(second)
        return {}

    with guard.request() as request:
        found = generate(pipe, PROMPTS, callback_on_step_end=swap)
    assert same(found, expected)
    assert {decision.policy_revision for decision in request.decisions} == {first.revision}
    assert not same(generate(pipe, PROMPTS), expected)


@pytest.mark.only_families("sd1", "sdxl", "sd3")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_keeps_the_dtype(eraser: str, family: str, dtype: torch.dtype, pipe: Pipe, protect: Protect) -> None:
    lower = copy.deepcopy(pipe).to(dtype=dtype)
    prompts = PROMPTS[:2]
    expected = generate(lower, prompts)
    protect(lower, policy(concept("blood", eraser=eraser)))
    found = generate(lower, prompts)
    assert found.dtype == expected.dtype == dtype
    assert rows_changed(found, expected) == [False, True]


@pytest.mark.only_families("sd1", "sdxl", "sd3")
def test_it_works_in_inference_mode(eraser: str, family: str, pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood", eraser=eraser)))
    expected = generate(pipe, PROMPTS)
    with torch.inference_mode():
        assert same(generate(pipe, PROMPTS), expected)
    assert same(generate(pipe, PROMPTS), expected)


@pytest.mark.only_families("sd1", "sdxl", "sd3")
def test_two_erasers_share_a_policy(eraser: str, family: str, pipe: Pipe, plain: Plain, protect: Protect) -> None:
    """Each acts in its own rows, as it does alone."""
    prompts = ["blood on snow", "a weapon", "a green tree"]
    other = "eiup" if eraser != "eiup" else "acme_slide"
    guard = protect(pipe, policy(concept("blood", eraser=eraser)))
    alone = generate(pipe, prompts)
    guard.swap(policy(concept("blood", eraser=eraser), concept("weapon", eraser=other)))
    both = generate(pipe, prompts)
    assert rows_changed(both, alone) == [False, True, False]


def test_third_party_erasers_come_through_an_entry_point() -> None:
    found = {info.name: info for info in Registry().inventory()}
    assert found["acme_push"].distribution == "acme-erasers 1.0"
    assert found["acme_push"].error == ""
    assert GROUP == "safeguard.erasers"
