"""``sld``: Safe Latent Diffusion (arXiv 2211.05105): guidance away from what the denoiser would predict for the concept.

With e_p the prediction for the prompt, e_S for the concept's words and e_0 the unconditional one, all element by element:

    d = e_p - e_S;  mu = min(s_S |d|, 1) where d < threshold, else 0                          (equations 5 and 6)
    gamma = mu (e_S - e_0) + s_m nu;  nu <- b_m nu + (1 - b_m) gamma;  e_p <- e_p - gamma     (equations 7 and 8)

``texts: pairs`` is a variant of ours: e_S is for an ordinary text with the concept, and e_0 in equation 7 for the same text
without it (the first pair of `safeguard.sdk.contrast_attention.pairs_of`; of several active concepts one after another).

The momentum nu moves from the first step on; the prediction is changed when the warm-up is over. The scale in equation 5 is
printed as a maximum and meant as a clamp, as in the authors' code. It costs one more pass of the denoiser (with
``pairs`` two), and needs classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk import Edit, Pipeline, PredictionCall, PredictionEdit, Seam
from safeguard.sdk.contrast_attention import pairs_of
from safeguard.sdk.pair_texts import wants_pairs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Preset:
    """One of the authors' four settings: ``warmup`` is a share of the schedule (they count steps of 50)."""

    scale: float
    threshold: float
    momentum: float
    decay: float
    warmup: float


PRESETS: Final = {
    "weak": Preset(200, 0.0, 0.0, 0.0, 0.3),
    "medium": Preset(1000, 0.01, 0.3, 0.4, 0.2),
    "strong": Preset(2000, 0.025, 0.5, 0.7, 0.14),
    "max": Preset(5000, 1.0, 0.5, 0.7, 0.0),
}


class _Away(PredictionEdit):
    """``texts``: of each concept what is predicted for it, and what for its absence; None for that is the unconditional one."""

    def __init__(self, concepts: Sequence[Concept], texts: Sequence[tuple[str, str | None]]) -> None:
        self.concepts = tuple(concept.id for concept in concepts)
        self._texts = texts

    @classmethod
    def of(cls, concepts: Sequence[Concept], *, pairs: bool) -> _Away:
        return cls(concepts, [pairs_of(each)[0] if pairs else (", ".join(each.phrases), None) for each in concepts])

    def __call__(self, call: PredictionCall) -> Tensor:
        """Each row away from the words of all its active concepts together, by the strongest of their settings."""
        import torch

        if call.unconditional is None:
            raise CapabilityError(
                f"concept {self.concepts[0]!r}: sld needs the unconditional branch; use guidance_scale > 1, or another eraser",
                missing="unconditional rows",
            )
        table = call.strengths.tolist()
        active = [[texts for texts, on in zip(self._texts, line, strict=True) if on] for line in table]
        concept = call.predict([", ".join(shown for shown, _ in texts) for texts in active]).float()
        bare = [", ".join(dict.fromkeys(without for _, without in texts if without is not None)) for texts in active]
        empty = (call.predict(bare) if any(bare) else call.unconditional).float()
        prompt = call.prediction.float()
        presets = [_preset(max(line)) for line in table]

        def column(name: str) -> Tensor:
            values = torch.tensor([getattr(preset, name) for preset in presets], device=prompt.device)
            return values.view(-1, *[1] * (prompt.dim() - 1))

        apart = prompt - concept
        amount = (column("scale") * apart.abs()).clamp(max=1) * (apart < column("threshold"))
        rows = [call.memory.of_row(place) for place in range(len(prompt))]
        past = torch.stack([row.get("momentum", torch.zeros_like(own)) for row, own in zip(rows, prompt, strict=True)])
        away = amount * (concept - empty) + column("momentum") * past
        for row, momentum in zip(rows, column("decay") * past + (1 - column("decay")) * away, strict=True):
            row["momentum"] = momentum
        changed: Tensor = prompt - away * (call.progress >= column("warmup"))
        return changed.to(call.prediction.dtype)


def _preset(strength: float) -> Preset:
    """The setting of this number, counted from 1; its scale grows or shrinks with what the number is beyond a whole one."""
    level = min(max(int(strength), 1), len(PRESETS))
    preset = list(PRESETS.values())[level - 1]
    return replace(preset, scale=preset.scale * strength / level)


class SLD:
    """The eraser; see the module. Its strengths are the numbers of the authors' settings, from 1 (weak) to 4 (max)."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = "sld"
    version: ClassVar[str] = "1.1"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.PREDICTION})
    strengths: ClassVar[Mapping[str, float]] = {word: float(place) for place, word in enumerate(PRESETS, 1)}
    params: ClassVar[Mapping[str, Any]] = {"texts": "phrases"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Away.of(concepts, pairs=wants_pairs(concepts[0], self, params))]
