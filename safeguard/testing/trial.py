"""One eraser on one tiny pipeline: what the checks of the contract are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from safeguard.guard import Guard, protect
from safeguard.policy import Concept
from safeguard.sdk.eraser import Eraser
from safeguard.testing.tiny_pipelines import PROMPTS, generate
from safeguard.testing.word_screener import WordScreener, policy_of

if TYPE_CHECKING:
    from torch import Tensor

STRENGTH: Final = 2.0


class BreachError(Exception):
    """A check found that an eraser breaks the contract."""

    def __init__(self, message: str, *, concept: str = "", shape: Sequence[int] = ()) -> None:
        self.concept, self.shape = concept, tuple(shape)
        super().__init__(message)


class Trial:
    """An eraser under trial on a pipeline. A context manager: at its end the pipeline is released.

    Args:
        eraser: An instance of the eraser.
        pipe: The pipeline that it acts on.
        params: What the policies say in ``params``.
        erasers: What `protect` is told of erasers that no distribution registers.
        run: Runs the pipeline on prompts, each image with a seed of its own; gives latents [images, ...].
        adapters: The file of each concept, for an eraser that is trained.
    """

    def __init__(
        self,
        eraser: Eraser,
        pipe: Any,
        params: Mapping[str, Any],
        erasers: Sequence[type] = (),
        run: Callable[..., Tensor] = generate,
        adapters: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.eraser, self.pipe, self._run = eraser, pipe, run
        self.untouched = copy.deepcopy(pipe)  # it is never protected
        self._params, self._erasers, self._adapters = dict(params), tuple(erasers), dict(adapters)
        self._unprotected: dict[str, Tensor] = {}
        self._guard: Guard | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def on(self, pipe: Any) -> Trial:
        """The same eraser under trial on another pipeline."""
        return Trial(self.eraser, pipe, self._params, self._erasers, self._run, self._adapters)

    def concept(self, name: str, **fields: Any) -> Concept:
        """A concept called ``name`` for this eraser. It acts where a prompt names it, unless ``fields`` say otherwise."""
        params = {**self._params, **({"adapter": self._adapters[name]} if name in self._adapters else {})}
        usual = {"phrases": (name,), "activation": "screened", "strength": STRENGTH, "params": params}
        return Concept(name, **{**usual, "eraser": self.eraser.name, **fields})

    def always(self, name: str, **fields: Any) -> Concept:
        """The same, but it acts in every image."""
        return self.concept(name, activation="always", **fields)

    def serve(self, *concepts: Concept) -> Guard:
        """Put the pipeline under a policy of these concepts, in place of the last one. Its edits are made anew."""
        policy = policy_of(*concepts)
        if self._guard is None:
            self._guard = protect(self.pipe, policy, screener=WordScreener(), erasers=self._erasers)
        else:
            self._guard.swap(policy)
        return self._guard

    def release(self) -> None:
        """Take the protection off the pipeline."""
        if self._guard is not None:
            self._guard.release()
            self._guard = None

    def under(self, concepts: Sequence[Concept], prompts: Sequence[str] = PROMPTS, **changes: Any) -> Tensor:
        """Latents of these prompts under a policy of these concepts: [images, ...]."""
        self.serve(*concepts)
        return self.paint(prompts, **changes)

    def paint(self, prompts: Sequence[str] = PROMPTS, **changes: Any) -> Tensor:
        """Latents of these prompts as the pipeline is now, each from its own seed: [images, ...]."""
        return self._run(self.pipe, prompts, **changes)

    def unprotected(self, prompts: Sequence[str] = PROMPTS, **changes: Any) -> Tensor:
        """The same without protection, made once."""
        key = repr((tuple(prompts), sorted(changes.items())))
        if key not in self._unprotected:
            self._unprotected[key] = self._run(self.untouched, prompts, **changes)
        return self._unprotected[key]


def same(latents: Tensor, expected: Tensor) -> bool:
    """Whether both are equal to the bit."""
    import torch

    return latents.dtype == expected.dtype and torch.equal(latents, expected)


def rows_changed(latents: Tensor, expected: Tensor) -> list[bool]:
    """Of each image, whether it differs."""
    import torch

    return [not torch.equal(new, old) for new, old in zip(latents, expected, strict=True)]


def alike(latents: Tensor, expected: Tensor) -> bool:
    """Whether both are equal but for the order in which a batch of another size is summed."""
    import torch

    return torch.allclose(latents, expected, rtol=1e-4, atol=1e-3)


def require_rows(latents: Tensor, unprotected: Tensor, wanted: Sequence[bool], concept: str) -> None:
    """Raises BreachError unless just the rows of ``wanted`` differ, and all numbers are finite."""
    changed = rows_changed(latents, unprotected)
    idle = [row for row, (did, should) in enumerate(zip(changed, wanted, strict=True)) if should and not did]
    touched = [row for row, (did, should) in enumerate(zip(changed, wanted, strict=True)) if did and not should]
    if idle:
        what = f"nothing changes in row {idle[0]}, in which the concept is active"
        raise BreachError(what, concept=concept, shape=latents.shape)
    if touched:
        what = f"row {touched[0]} changes, in which the concept is not active"
        raise BreachError(what, concept=concept, shape=latents.shape)
    if not bool(latents.isfinite().all()):
        raise BreachError("the latents are not all finite", concept=concept, shape=latents.shape)
