"""What an edit is called with at each seam, and what it gives back.

Shapes use these letters: R active rows, C concepts of the edit, H heads, N image tokens, L tokens of the prompt, T tokens of
all erasure prompts together, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

from safeguard.errors import CapabilityError
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.pipeline import TextSite, TokenEncoder, TokenizedText, TokenVariant

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


@dataclass(frozen=True, eq=False, kw_only=True)
class EditCall:
    """What an edit is handed at every seam.

    Attributes:
        strengths: [R, C], >= 0; 0 where a concept is not active in a row.
        progress: Share of the schedule that lies behind, in [0, 1).
        memory: What this edit keeps from call to call of one request, by image and concept, and by row. Empty where the call
            belongs to no request.
    """

    strengths: Tensor
    progress: float
    memory: EditMemory = field(default_factory=EditMemory.empty)


@dataclass(frozen=True, slots=True, eq=False)
class PromptTokens:
    """How an attention sees the prompt: its keys and values, each [R, H, L, d], projected when first asked for; and their mask,
    additive, [R, 1 or H, 1 or N, L], or None.
    """

    keys: Callable[[], Tensor]
    values: Callable[[], Tensor]
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SiteCall(EditCall):
    """What a text-site edit sees of one attention.

    Attributes:
        site: The text site.
        output: [R, N, H * d], as the edits before this one left it.
        query: [R, H, N, d], of the image tokens.
        tokens: The prompt's keys and values.
        beside: Every key that the queries meet, where there are others besides the prompt's; None where there are none.
    """

    site: TextSite
    output: Tensor
    query: Tensor
    tokens: PromptTokens
    beside: EveryKey | None = None

    @property
    def joint(self) -> bool:
        """Whether the queries meet other keys besides the text's, the image's own, in one softmax."""
        return self.beside is not None

    @property
    def mask(self) -> Tensor | None:
        """Of the prompt's keys: additive, [R, 1 or H, 1 or N, L], or None."""
        return self.tokens.mask

    @cached_property
    def prompt_keys(self) -> Tensor:
        """Keys of the prompt, [R, H, L, d]. Projected when first asked for."""
        return self.tokens.keys()

    @cached_property
    def prompt_values(self) -> Tensor:
        """Values of the prompt, [R, H, L, d]. Projected when first asked for."""
        return self.tokens.values()

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
        if self.beside is None:
            return self.prompt_log_mass
        known = self.beside.log_mass
        return self._log_mass(self.beside.keys(), self.beside.mask) if known is None else known

    @cached_property
    def from_text(self) -> tuple[Tensor, Tensor | None]:
        """What the prompt's tokens alone answer the image tokens, [R, H, N, d], and the share of their attention that these
        tokens have, [R, H, N], float32: the output holds the product of both.

        At an attention over text alone the answer is the output, and the share, all of it, is None.
        """
        return (self.heads_of_output, None) if self.beside is None else self.answered(self.prompt_values)

    def answered(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same as if the prompt's tokens had these values, [R, H, L, d]."""
        from safeguard.sdk.attention import attention

        mask = None if self.mask is None else self.mask.to(self.query.dtype)
        answer, sums = attention(self.query, self.prompt_keys, values, mask, scale=self.site.scale)
        if self.beside is None:
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


class NoTokens:
    """In the place of a `TokenEncoder`, where texts cannot be encoded token by token."""

    def read(self, text: str) -> TokenizedText:
        raise CapabilityError("no text can be encoded token by token here", missing="texts with other tokens")

    def encode(self, text: TokenizedText, variants: Sequence[Sequence[Sequence[int]]]) -> list[TokenVariant]:
        raise CapabilityError("no text can be encoded token by token here", missing="texts with other tokens")


class Encode(Protocol):
    """Texts to untrimmed states, as the pipeline would encode them."""

    def __call__(self, texts: Sequence[str], behind: Sequence[str | None] = ()) -> Tensor:
        """[n, L, D] for n texts, each with the one of ``behind`` after it, where there are any. Raises CapabilityError where
        the encoder does not read all of a text; of what stands behind, it cuts off what does not fit, as of any prompt.
        """
        ...


@dataclass(frozen=True, eq=False)
class StatesCall(EditCall):
    """What a text-states edit sees.

    States that an edit gives back just as ``encode`` gave them are a text as a whole: these rows get everything else that the
    denoiser reads of the same texts besides.

    Attributes:
        states: [R, L, D], of the rows that it is active in.
        pooled: [R, P], the same texts as one vector each, where the denoiser reads that too (SDXL, Stable Diffusion 3, Flux).
        texts: The text of every row; None where none was given.
        unconditional: Whether the rows are the unconditional twins of the active ones.
        encode: Texts to states, as the pipeline would encode them.
        tokens: Texts as the numbers of their tokens, and what the pipeline makes of other numbers.
    """

    states: Tensor
    pooled: Tensor | None
    texts: Sequence[str | None]
    unconditional: bool
    encode: Encode
    tokens: TokenEncoder = field(default_factory=NoTokens)


@dataclass(frozen=True, eq=False)
class PredictionCall(EditCall):
    """What a prediction edit sees.

    Attributes:
        prediction: [R, ...], of the active rows.
        unconditional: [R, ...], of their unconditional twins; None without classifier-free guidance.
        predict: One text a row, all read, to the prediction [R, ...] of the same rows for these.
    """

    prediction: Tensor
    unconditional: Tensor | None
    predict: Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, eq=False)
class LinearCall(EditCall):
    """What an edit of a linear layer sees: the layer's ``inputs`` [R, ..., in] in the active rows."""

    inputs: Tensor


@dataclass(frozen=True, eq=False)
class FeatureCall(EditCall):
    """What a feature edit sees: the output, ``feature`` [R, ...], of its module in the active rows."""

    feature: Tensor
