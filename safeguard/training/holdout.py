"""How far a concept is erased, without a judge: by what a denoiser predicts for texts with it and without.

With f what it predicts, f_0 what the unchanged one does, for a text with the concept (p) and the same without (q):

    left = |f(p) - f_0(q)| / |f_0(p) - f_0(q)|       along = <f(p) - f_0(q), f_0(p) - f_0(q)> / |f_0(p) - f_0(q)|^2

Both are 1 before, and 0 where nothing is left of the concept. Guidance away from it makes ``along`` less than 0, and ``left``
large again: that of ``along`` says what a picture gets of the concept. f_0(q) is unchanged, as it is where deltas act in a
concept's rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from safeguard.training.delta_hooks import Deltas, added
from safeguard.training.frozen_pipeline import FrozenPipeline
from safeguard.training.randomness import step_rng
from safeguard.training.text_pairs import TextPair

DRAWS: Final = 6  # steps that are looked at, of each picture


class Holdout:
    """Pictures of one concept's pairs, which no update sees, on their way; painted by the denoiser as it is."""

    def __init__(
        self, frozen: FrozenPipeline, concept: str, pairs: Sequence[TextPair], *, count: int, steps: int, seed: int
    ) -> None:
        self._frozen = frozen
        rng, source = step_rng(seed, f"exam:{concept}", 0)
        some = [pairs[rng.randrange(len(pairs))] for _ in range(count)]
        self._values = frozen.arguments([text for pair in some for text in (pair.said, pair.shown)])
        course = frozen.course([pair.said for pair in some], [rng.getrandbits(48) for _ in some], steps, guidance=3.0)
        self._calls = []
        for _ in range(DRAWS):
            self._calls.append(course.at(*course.places(source)))
        self._said, self._shown = range(0, 2 * count, 2), range(1, 2 * count, 2)
        self._plain = [[self._say(call, texts) for texts in (self._said, self._shown)] for call in range(DRAWS)]

    def _say(self, call: int, texts: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return self._frozen.predict(self._values, texts, *self._calls[call]).float()

    def marks(self, deltas: Deltas) -> dict[str, float]:
        """``left`` and ``along`` with these deltas, and ``elsewhere``: how far they change what is predicted for texts without
        the concept, if they acted there, on the scale of ``left``.
        """
        whole = left = along = elsewhere = 0.0
        for call, (with_concept, shown) in enumerate(self._plain):
            with added(self._frozen.denoiser, deltas):
                now, beside = self._say(call, self._said), self._say(call, self._shown)
            was = with_concept - shown
            whole += float(was.square().sum())
            left += float((now - shown).square().sum())
            along += float(((now - shown) * was).sum())
            elsewhere += float((beside - shown).square().sum())
        whole = max(whole, 1e-12)
        return {"left": (left / whole) ** 0.5, "along": along / whole, "elsewhere": (elsewhere / whole) ** 0.5}
