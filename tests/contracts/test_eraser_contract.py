"""What every eraser promises, whatever its method: run for each registered one on each family of pipelines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from safeguard.plan.registry import GROUP, Registry
from safeguard.testing import eraser_checks
from safeguard.testing.trial import Trial
from tests.support.acme_erasers import ONE_PER_SEAM
from tests.support.contract_policies import UNTRAINED, always, concept, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, TOKENS, generate
from tests.support.guarded import Guarded

Plain = Callable[..., torch.Tensor]
ActsOrRefuses = Callable[[Callable[[], torch.Tensor], torch.Tensor], None]
EVERYWHERE = (
    eraser_checks.acts,
    eraser_checks.strength_zero,
    eraser_checks.only_active_rows,
    eraser_checks.interrupted,
    eraser_checks.released,
)
ONCE_A_MECHANISM = (
    eraser_checks.strength_scale,
    eraser_checks.nothing_active,
    eraser_checks.same_again,
    eraser_checks.swapped_and_back,
    eraser_checks.rows_apart,
    eraser_checks.memory_of_rows,
    eraser_checks.recorded,
)
SEAMS = pytest.mark.in_sample("eiup", *ONE_PER_SEAM)
MECHANISMS = ("sd1", "sdxl", "sd3")  # the other families read text as the first of these does


def test_strength_words_are_numbers_that_never_fall(eraser: str) -> None:
    eraser_checks.require_strength_words(Registry().get(eraser))


def test_it_keeps_the_contract_that_authors_check(eraser: str, family: str, pipe: Any) -> None:
    """The checks of `safeguard.testing.check_eraser`, one after another under one guard."""
    checks = (*(ONCE_A_MECHANISM if family in MECHANISMS else ()), *EVERYWHERE)
    with Trial(Registry().get(eraser), pipe, UNTRAINED.get(eraser, {}), run=generate) as trial:
        for check in checks:
            check(trial)


def test_no_negative_prompt_pushes_a_concept_out(eraser: str, family: str, guarded: Guarded, plain: Plain) -> None:
    """The encoder reads a text up to a length, and the user's own may take all of it."""
    long = ["x" * TOKENS] * 3
    found = guarded.under(always(eraser), negative_prompt=long)
    assert rows_changed(found, plain(family, negative_prompt=long)) == [True, True, True]


@SEAMS
def test_images_of_one_prompt_share_its_activation(eraser: str, family: str, guarded: Guarded, plain: Plain) -> None:
    found = guarded.under(policy(concept("blood", eraser=eraser)), num_images_per_prompt=2)
    assert rows_changed(found, plain(family, num_images_per_prompt=2)) == [False, False, True, True, False, False]


def test_without_guidance_it_acts_or_refuses(
    eraser: str, family: str, guarded: Guarded, plain: Plain, acts_or_refuses: ActsOrRefuses
) -> None:
    guarded.swap(always(eraser))
    acts_or_refuses(lambda: generate(guarded.pipe, PROMPTS, guidance_scale=1.0), plain(family, guidance_scale=1.0))


@SEAMS
@pytest.mark.only_families(*MECHANISMS)
def test_without_guidance_an_inactive_concept_costs_nothing(eraser: str, family: str, guarded: Guarded, plain: Plain) -> None:
    found = guarded.under(policy(concept("weapon", eraser=eraser)), guidance_scale=1.0)
    assert same(found, plain(family, guidance_scale=1.0))


def test_a_negative_prompt_equal_to_the_prompt_hides_nothing(
    eraser: str, family: str, guarded: Guarded, plain: Plain, acts_or_refuses: ActsOrRefuses
) -> None:
    given = list(PROMPTS)
    guarded.swap(always(eraser))
    acts_or_refuses(lambda: generate(guarded.pipe, PROMPTS, negative_prompt=given), plain(family, negative_prompt=given))


@functools.cache
def embedded(family: str) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
    """``PROMPTS`` as a caller would encode them, and what they give unprotected."""
    pipe = FAMILIES[family]()
    more = {name: None for name in inspect.signature(pipe.encode_prompt).parameters if name in ("prompt_2", "prompt_3")}
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True, **more}
    with torch.no_grad():
        made = pipe.encode_prompt(list(PROMPTS), **options)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, made, strict=False))
    return given, generate(pipe, None, **given)


def test_embeddings_get_the_whole_policy(eraser: str, family: str, guarded: Guarded) -> None:
    """And the same images as the text that they were made from, were it always active."""
    given, unprotected = embedded(family)
    found = guarded.under(policy(concept("blood", eraser=eraser)), None, **given)
    assert rows_changed(found, unprotected) == [True, True, True]
    assert same(guarded.under(always(eraser), None, **given), found)


def latents_after_each_step(pipe: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return {}

    generate(pipe, PROMPTS, callback_on_step_end=keep)
    return seen


@SEAMS
@pytest.mark.only_families("sd1", "controlnet", "sd3")
def test_it_keeps_to_its_steps(eraser: str, family: str, guarded: Guarded) -> None:
    guarded.swap(policy(concept("weapon", eraser=eraser)))
    unprotected = latents_after_each_step(guarded.pipe)
    guarded.swap(policy(concept("blood", eraser=eraser, activation="always", steps=(0.5, 1.0))))
    protected = latents_after_each_step(guarded.pipe)
    assert same(protected[0], unprotected[0])
    assert rows_changed(protected[-1], unprotected[-1]) == [True, True, True]


@SEAMS
@pytest.mark.only_families("sd1", "controlnet", "sd3")
def test_a_run_keeps_the_policy_that_it_began_with(eraser: str, family: str, guarded: Guarded) -> None:
    second = policy(concept("weapon", eraser=eraser, activation="always", strength=1.0))
    expected = guarded.under(always(eraser))

    def swap(*_: Any) -> dict[str, Any]:
        guarded.guard.swap(second)
        return {}

    with guarded.guard.request() as request:
        found = generate(guarded.pipe, PROMPTS, callback_on_step_end=swap)
    assert same(found, expected)
    assert {decision.policy_revision for decision in request.decisions} == {always(eraser).revision}
    assert not same(generate(guarded.pipe, PROMPTS), expected)


@pytest.mark.only_families(*MECHANISMS)
@pytest.mark.in_sample("torch.bfloat16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_keeps_the_dtype(
    eraser: str, family: str, dtype: torch.dtype, lasting: Callable[..., Guarded], plain: Plain
) -> None:
    found = lasting(family, dtype).under(policy(concept("blood", eraser=eraser)), PROMPTS[:2])
    assert found.dtype == dtype
    assert rows_changed(found, plain(family, PROMPTS[:2], dtype=dtype)) == [False, True]


@SEAMS
@pytest.mark.only_families(*MECHANISMS)
def test_it_works_in_inference_mode(eraser: str, family: str, guarded: Guarded) -> None:
    expected = guarded.under(policy(concept("blood", eraser=eraser)))
    with torch.inference_mode():
        assert same(generate(guarded.pipe, PROMPTS), expected)
    assert same(generate(guarded.pipe, PROMPTS), expected)


@SEAMS
@pytest.mark.only_families(*MECHANISMS)
def test_two_erasers_share_a_policy(eraser: str, family: str, guarded: Guarded) -> None:
    """Each acts in its own rows, as it does alone."""
    prompts = ["blood on snow", "a weapon", "a green tree"]
    other = "eiup" if eraser != "eiup" else "acme_slide"
    alone = guarded.under(policy(concept("blood", eraser=eraser)), prompts)
    both = guarded.under(policy(concept("blood", eraser=eraser), concept("weapon", eraser=other)), prompts)
    assert rows_changed(both, alone) == [False, True, False]


def test_third_party_erasers_come_through_an_entry_point() -> None:
    found = {info.name: info for info in Registry().inventory()}
    assert found["acme_push"].distribution == "acme-erasers 1.0"
    assert found["acme_push"].error == ""
    assert GROUP == "safeguard.erasers"
