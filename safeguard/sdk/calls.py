"""What an edit is called with at each seam, and what it gives back.

Shapes use these letters: R active rows, C concepts of the edit, H heads, N image tokens, L tokens of the prompt, T tokens of
all erasure prompts together, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

from safeguard.errors import CapabilityError
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.pipeline import Occlusion, TextSite

if TYPE_CHECKING:
    from torch import Tensor

SCORES: Final = 2**26  # of one attention held at once, where the sum over them has to be made here


@dataclass(frozen=True, slots=True, eq=False)
class EveryKey:
    """All keys that the image queries of a joint attention meet, [R, H, S, d], with their mask; and log sum exp of the scores
    over them, [R, H, N], float32, where the attention gave that with its output.
    """

    keys: Callable[[], Tensor]
    mask: Tensor | None = None
    log_mass: Tensor | None = None


class SiteCall:
    """What a text-site edit sees: queries, the prompt's keys and values, the output so far, and how strongly to act."""

    def __init__(
        self,
        site: TextSite,
        output: Tensor,
        query: Tensor,
        keys: Callable[[], Tensor],
        values: Callable[[], Tensor],
        mask: Tensor | None,
        strengths: Tensor,
        progress: float,
        every: EveryKey | None = None,
        memory: EditMemory | None = None,
    ) -> None:
        self.site = site
        self.output = output  # [R, N, H * d]
        self.query = query  # [R, H, N, d]
        self.mask = mask  # of the prompt's keys: additive, [R, 1 or H, 1 or N, L], or None
        self.strengths = strengths  # [R, C], >= 0; 0 where a concept is not active in a row
        self.progress = progress  # share of the schedule that lies behind, in [0, 1)
        self.memory = memory  # kept from call to call of a request; None where there is no request
        self._keys, self._values = keys, values
        self._every = every  # None where no keys stand beside the text's

    @property
    def joint(self) -> bool:
        """Whether the queries meet other keys besides the text's, the image's own, in one softmax."""
        return self._every is not None

    @cached_property
    def prompt_keys(self) -> Tensor:
        """Keys of the prompt, [R, H, L, d]. Projected when first asked for."""
        return self._keys()

    @cached_property
    def prompt_values(self) -> Tensor:
        """Values of the prompt, [R, H, L, d]. Projected when first asked for."""
        return self._values()

    @property
    def prompt(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt, each [R, H, L, d]."""
        return self.prompt_keys, self.prompt_values

    @cached_property
    def prompt_log_mass(self) -> Tensor:
        """log sum exp of the scaled scores over the prompt's keys: [R, H, N], float32. What a concept competes with."""
        return self._log_mass(self.prompt_keys, self.mask)

    @cached_property
    def log_mass(self) -> Tensor:
        """The same over every key that the image tokens meet: in joint attention they read each other beside the prompt."""
        if self._every is None:
            return self.prompt_log_mass
        given = self._every.log_mass
        return self._log_mass(self._every.keys(), self._every.mask) if given is None else given

    @property
    def from_text(self) -> tuple[Tensor, Tensor | None]:
        """What the prompt's tokens alone answer the image tokens, [R, H, N, d], and the share of their attention that these
        tokens have, [R, H, N], float32: the output holds the product of both.

        At an attention over text alone the answer is the output, and the share, all of it, is None.
        """
        return (self.heads_of_output, None) if self._every is None else self.answered(self.prompt_values)

    def answered(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same as if the prompt's tokens had these values, [R, H, L, d]."""
        from safeguard.sdk.attention import attention

        mask = None if self.mask is None else self.mask.to(self.query.dtype)
        answer, sums = attention(self.query, self.prompt_keys, values, mask, scale=self.site.scale)
        if self._every is None:
            return answer, None
        log_mass = self.prompt_log_mass if sums is None else sums.float()
        return answer, (log_mass - self.log_mass).exp()

    @property
    def heads_of_output(self) -> Tensor:
        """The output so far, head by head: [R, H, N, d]."""
        heads: Tensor = self.output.unflatten(-1, (self.site.heads, self.site.head_dim))
        return heads.transpose(1, 2)

    def _log_mass(self, keys: Tensor, mask: Tensor | None) -> Tensor:
        """In parts of the queries, so that not all scores of a large picture are held at once."""
        import torch

        rows, heads, pixels, _ = self.query.shape
        step = max(1, SCORES // (rows * heads * keys.shape[-2]))
        parts = []
        for first in range(0, pixels, step):
            part = slice(first, first + step)
            scores = self._scores(self.query[:, :, part], keys)
            bias = mask if mask is None or mask.shape[-2] == 1 else mask[..., part, :]
            parts.append((scores if bias is None else scores + bias).logsumexp(-1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def scores(self, keys: Tensor) -> Tensor:
        """Scaled scores of the image queries against keys [H, T, d] or [R, H, T, d]: [R, H, N, T], float32."""
        return self._scores(self.query, keys)

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        scaled: Tensor = ((query * self.site.scale).contiguous() @ keys.transpose(-1, -2)).float()
        return scaled

    def merge(self, heads: Tensor) -> Tensor:
        """[R, H, N, d] to [R, N, H * d], in the dtype of the output."""
        return heads.transpose(1, 2).flatten(2).to(self.output.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class SiteEffect:
    """What a text-site edit gives back: ``delta`` [R, N, H * d] to add to the output, and the evidence for it.

    ``mass`` [R, H, N, C] is the share of attention that each concept takes: what the record, the heat maps and whoever
    decides by evidence read. None where a method measures none.
    """

    delta: Tensor
    mass: Tensor | None = None


def _unable(text: str) -> Occlusion:
    raise CapabilityError("no text can be read without its words here", missing="texts without their words")


class Encode(Protocol):
    """Texts to untrimmed states, as the pipeline would encode them."""

    def __call__(self, texts: Sequence[str], behind: Sequence[str | None] = ()) -> Tensor:
        """[n, L, D] for n texts, each with the one of ``behind`` after it, where there are any. Raises CapabilityError where
        the encoder does not read all of a text; of what stands behind, it cuts off what does not fit, as of any prompt.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StatesCall:
    """What a text-states edit sees.

    ``states`` [R, L, D] of the rows that it is active in; ``pooled`` [R, P], the same texts as one vector each, where the
    denoiser reads that too (SDXL, Stable Diffusion 3, Flux); ``strengths`` [R, C]; ``texts`` the text of every row, None where
    none was given; ``unconditional`` whether the rows are the unconditional twins of the active ones. ``memory`` is kept from
    step to step of one request, for this edit: by row, and by image and concept.

    States that an edit gives back just as ``encode`` gave them are a text as a whole: these rows get everything else that the
    denoiser reads of the same texts besides.
    """

    states: Tensor
    pooled: Tensor | None
    strengths: Tensor
    texts: Sequence[str | None]
    unconditional: bool
    progress: float
    encode: Encode
    memory: EditMemory
    left_out: Callable[[str], Occlusion] = _unable


@dataclass(frozen=True, slots=True, eq=False)
class PredictionCall:
    """What a prediction edit sees: ``prediction`` [R, ...] of the active rows, that of their unconditional twins (None
    without classifier-free guidance), ``strengths`` [R, C], and a way to predict the same rows for other texts. ``memory`` is
    kept from step to step of one request, for this edit: by row, and by image and concept.
    """

    prediction: Tensor
    unconditional: Tensor | None
    strengths: Tensor
    progress: float
    predict: Callable[[Sequence[str]], Tensor]  # one text a row, all read -> prediction [R, ...]
    memory: EditMemory


@dataclass(frozen=True, slots=True, eq=False)
class FeatureCall:
    """What a feature edit sees: the output [R, ...] of its module in the active rows, and ``strengths`` [R, C]."""

    feature: Tensor
    strengths: Tensor
    progress: float
