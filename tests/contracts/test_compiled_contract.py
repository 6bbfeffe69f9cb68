"""What every eraser promises on a compiled denoiser.

After each `protect` and each release, torch compiles every graph again. So these tests share their guards.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.acme_erasers import ONE_PER_SEAM
from tests.support.contract_policies import CLOSE, adaptive, always, close, concept, no_recompilation, policy
from tests.support.families import PROMPTS, generate
from tests.support.guarded import Guarded

Plain = Callable[..., torch.Tensor]
OfFamily = Callable[[str], Guarded]
pytestmark = [pytest.mark.only_families("sd1", "sd3"), pytest.mark.in_sample("eiup", *ONE_PER_SEAM)]


def test_a_compiled_denoiser_swaps_without_recompiling(
    eraser: str, family: str, watched: OfFamily, plain: Plain, compiled: OfFamily
) -> None:
    first, second = always(eraser), policy(concept("weapon", eraser=eraser, activation="always", strength=1.0))
    expected = [watched(family).under(first), watched(family).under(second)]
    own = compiled(family)
    torch.testing.assert_close(own.under(first), expected[0], **CLOSE)
    with no_recompilation():
        torch.testing.assert_close(own.under(second), expected[1], **CLOSE)
        torch.testing.assert_close(own.under(adaptive("bird", eraser)), plain(family), **CLOSE)
        torch.testing.assert_close(own.under(first), expected[0], **CLOSE)


def test_a_compiled_denoiser_erases_what_is_seen_from_the_first_step_on(
    eraser: str, family: str, watched: OfFamily, plain: Plain, compiled: OfFamily
) -> None:
    erased = watched(family).under(policy(concept("blood", eraser=eraser, activation="always")))
    guarded = compiled(family)
    guarded.swap(adaptive("blood", eraser))
    with guarded.guard.request() as request:
        found = generate(guarded.pipe, PROMPTS)
    (applied,) = request.decisions[2].applied
    assert applied.steps == (0, 1)
    torch.testing.assert_close(found, torch.stack([*plain(family)[:2], erased[2]]), **CLOSE)
    assert torch.dist(found[2], erased[2]) < torch.dist(found[2], plain(family)[2]) / 10
    with no_recompilation():
        generate(guarded.pipe, PROMPTS)


def test_a_compiled_denoiser_erases_in_its_only_step(eraser: str, family: str, plain: Plain, compiled: OfFamily) -> None:
    expected = plain(family, num_inference_steps=1)
    blood = adaptive("blood", eraser, strength=4.0)  # at less, sld warms up first
    found = compiled(family).under(blood, num_inference_steps=1)
    assert [close(one, other) for one, other in zip(found, expected, strict=True)] == [True, True, False]
