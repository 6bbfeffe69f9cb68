"""What the tests of erasers, attachment and guard share: policies made on the spot, a screener that goes by words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

import safeguard
from safeguard.plan.calibration import Calibration, Detector
from safeguard.plan.detectors import FIRST
from safeguard.policy import Concept, Policy
from safeguard.testing import WordScreener as Words
from safeguard.testing.eraser_checks import InterruptedRunError
from safeguard.testing.trial import rows_changed, same
from safeguard.testing.word_screener import policy_of as policy
from tests.support.families import PROMPTS, call_of

__all__ = [
    "CLOSE",
    "UNTRAINED",
    "InterruptedRunError",
    "Words",
    "adaptive",
    "always",
    "calibrated",
    "close",
    "concept",
    "no_recompilation",
    "policy",
    "protecting",
    "rows_changed",
    "same",
]

UNTRAINED = {"geom_erasing": {"word": "none"}, "gie": {"adapter": "none"}}
"""What erasers that are trained for a pipeline need to be told on one for which nobody trained them."""


def concept(name: str, **fields: Any) -> Concept:
    """A concept called ``name`` that says ``name``; it acts when the screener says so, unless told otherwise."""
    params = UNTRAINED.get(fields.get("eraser", ""), {})
    return Concept(name, **{"phrases": (name,), "activation": "screened", "strength": 2.0, "params": params, **fields})


def always(eraser: str) -> Policy:
    """A policy of one concept that ``eraser`` takes out of every image."""
    return policy(concept("blood", eraser=eraser, activation="always"))


def adaptive(name: str, eraser: str, **fields: Any) -> Policy:
    """A policy of one concept that ``eraser`` takes out of the images in which it is seen."""
    return policy(concept(name, eraser=eraser, activation="adaptive", **fields))


def calibrated(pipe: Any, chosen: Policy, opens: Sequence[int] | Mapping[str, Sequence[int]]) -> Calibration:
    """A calibration by which the prompts of ``PROMPTS`` at these places open every adaptive concept, or each at its own, and
    the others none.
    """
    adaptive = [one for one in chosen.concepts.values() if one.activation == "adaptive"]
    blank = Calibration.blank(adaptive, 0.01, chosen.revision)
    with safeguard.protect(pipe, chosen, screener=None, calibration=blank) as guard:
        seen = np.array([shown[FIRST] for shown in guard.look(**call_of(pipe, PROMPTS))])  # [prompts, concepts, features]
        fingerprint = guard.attachment.fingerprint
    gauges = {}
    for column, one in enumerate(adaptive):
        places = opens.get(one.id, ()) if isinstance(opens, Mapping) else opens
        wanted = np.array([1.0 if place in places else -1.0 for place in range(len(PROMPTS))])
        table = np.concatenate([seen[:, column], np.ones((len(PROMPTS), 1))], 1)
        *weights, offset = np.linalg.lstsq(table, wanted)[0].tolist()
        gauges[one.id] = Detector(one.phrases, tuple(weights), offset, 0.0)
    return Calibration(fingerprint, gauges, 0.01, chosen.revision)


CLOSE: Final = {"rtol": 1e-4, "atol": 2e-2}
"""How near a compiled denoiser comes to itself uncompiled: latents of these random pipelines reach 600."""


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, **CLOSE)


@contextmanager
def no_recompilation() -> Iterator[None]:
    """Whatever is compiled inside must have been compiled before."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@contextmanager
def protecting() -> Iterator[Callable[..., safeguard.Guard]]:
    """``safeguard.protect`` with the word screener; released at the end."""
    guards: list[safeguard.Guard] = []

    def protect(pipe: Any, policy: Any, **options: Any) -> safeguard.Guard:
        guards.append(safeguard.protect(pipe, policy, **{"screener": Words(), **options}))
        return guards[-1]

    yield protect
    for guard in guards:
        guard.release()
