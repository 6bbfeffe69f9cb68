"""The five seams: the places of a denoiser at which an eraser may act, and what it sees there.

Everything is said in *rows*: one row is one image on one guidance branch. An edit is called with the rows that it is active
in, and nothing else; it never learns which pipeline it works for. Shapes use these letters: R active rows, C concepts of the
edit, H heads, N image tokens, L tokens of the prompt, T tokens of all erasure prompts together, d width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from torch import Tensor


SCORES: Final = 2**26  # of one attention held at once, where the sum over them has to be made here


class Seam(StrEnum):
    """Where an edit acts. Within a denoiser call the seams come in this order; within a seam, the policy's order."""

    TEXT_STATES = "text states"
    LINEAR = "linear"
    TEXT_SITE = "text site"
    FEATURE = "feature"
    PREDICTION = "prediction"


@dataclass(frozen=True, slots=True)
class TextSite:
    """One attention at which image tokens read text: its place in the denoiser, number of heads, width of a head, and the
    factor on its scores.
    """

    index: int
    name: str
    heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """A text as the pipeline's own encoders give it to the denoiser.

    ``states`` [L, D] is trimmed to real tokens, which stood at ``places``; ``content`` says which of them are words, and not
    tokens that open and close every text. ``pooled`` [P] is the text as one vector, where the denoiser reads that too.
    """

    text: str
    states: Tensor
    content: Sequence[int]
    places: Sequence[int]
    pooled: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TextLayers:
    """Linear layers that are given the same: a text, before anything else than itself has had a part in it.

    ``modules`` as `LinearEdit` names them. With ``tokens`` they read tokens, [B, L, in], else one vector a text, [B, in].
    """

    modules: tuple[str, ...]
    tokens: bool = True


class TokenKeys(Protocol):
    """Keys and values of a fixed set of tokens, as one site sees them in the denoiser call that is under way."""

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        """Keys and values, each [H, T, d], in the denoiser's dtype; the same tensors as long as nothing has changed."""
        ...


class Pipeline(Protocol):
    """What an eraser may ask of the pipeline while it makes its edits."""

    @property
    def name(self) -> str: ...

    @property
    def sites(self) -> Sequence[TextSite]: ...

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encode texts with the pipeline's own encoders. The empty text is allowed."""
        ...

    def keys(self, texts: Sequence[EncodedText]) -> TokenKeys:
        """Keys and values of the tokens of texts, one text after another, at every site."""
        ...

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        """Texts as one vector each, [n, P], as the denoiser reads them beside their tokens. None where it reads none."""
        ...

    @property
    def text_layers(self) -> Sequence[TextLayers]:
        """The linear layers that are the first to read the text, in groups that are given the same. At cross-attention these
        make its keys and values. Empty where no layer reads the text alone.
        """
        ...

    def weight(self, module: str) -> Tensor:
        """The weight of such a layer as it works now, adapters included: [out, in], float64, a copy."""
        ...

    def inputs(self, layers: TextLayers, texts: Sequence[str]) -> list[Tensor]:
        """What the layers of a group are given of each text: [L, in], float64, untrimmed (`EncodedText.places` are places
        in it); [1, in] where they read one vector.
        """
        ...


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
    ) -> None:
        self.site = site
        self.output = output  # [R, N, H * d]
        self.query = query  # [R, H, N, d]
        self.mask = mask  # of the prompt's keys: additive, [R, 1 or H, 1 or N, L], or None
        self.strengths = strengths  # [R, C], >= 0; 0 where a concept is not active in a row
        self.progress = progress  # share of the schedule that lies behind, in [0, 1)
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
        from safeguard.erasing.attention import attention

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


@dataclass(frozen=True, slots=True, eq=False)
class StatesCall:
    """What a text-states edit sees.

    ``states`` [R, L, D] of the rows that it is active in; ``pooled`` [R, P], the same texts as one vector each, where the
    denoiser reads that too (SDXL, Stable Diffusion 3, Flux); ``strengths`` [R, C]; ``texts`` the text of every row, None where
    none was given; ``unconditional`` whether the rows are the unconditional twins of the active ones.

    States that an edit gives back just as ``encode`` gave them are a text as a whole: these rows get everything else that the
    denoiser reads of the same texts besides.
    """

    states: Tensor
    pooled: Tensor | None
    strengths: Tensor
    texts: Sequence[str | None]
    unconditional: bool
    progress: float
    encode: Callable[[Sequence[str]], Tensor]  # texts to untrimmed states [n, L, D]


@dataclass(frozen=True, slots=True, eq=False)
class PredictionCall:
    """What a prediction edit sees: ``prediction`` [R, ...] of the active rows, that of their unconditional twins (None
    without classifier-free guidance), ``strengths`` [R, C], and a way to predict the same rows for other texts. ``memory`` is
    kept from step to step of one request, for the edit and these rows alone.
    """

    prediction: Tensor
    unconditional: Tensor | None
    strengths: Tensor
    progress: float
    predict: Callable[[Sequence[str]], Tensor]  # one text a row -> prediction [R, ...]
    memory: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureCall:
    """What a feature edit sees: the output [R, ...] of its module in the active rows, and ``strengths`` [R, C]."""

    feature: Tensor
    strengths: Tensor
    progress: float


class Edit(ABC):
    """An act of one eraser at one seam for ``concepts``, which are the columns of every ``strengths``."""

    seam: Seam
    concepts: tuple[str, ...]


class TextSiteEdit(Edit):
    """Acts at every text site. ``select`` narrows it to concepts that are active in some row, so that others cost nothing."""

    seam = Seam.TEXT_SITE

    @abstractmethod
    def select(self, columns: Sequence[int]) -> TextSiteEdit:
        """The same edit for some of its concepts, in that order."""

    @abstractmethod
    def __call__(self, call: SiteCall) -> SiteEffect: ...


class TextStatesEdit(Edit):
    """Acts on the text that the denoiser is given: on the active rows, or on their unconditional twins."""

    seam = Seam.TEXT_STATES
    unconditional: bool = False

    @abstractmethod
    def __call__(self, call: StatesCall) -> Tensor | tuple[Tensor, Tensor | None]:
        """The states to use instead, [R, L, D]; or these with the pooled vectors, [R, P]."""


class PredictionEdit(Edit):
    """Acts on what the denoiser predicts."""

    seam = Seam.PREDICTION

    @abstractmethod
    def __call__(self, call: PredictionCall) -> Tensor:
        """The prediction to use instead, [R, ...]."""


class FeatureEdit(Edit):
    """Acts on the output of the named ``module``."""

    seam = Seam.FEATURE
    module: str

    @abstractmethod
    def __call__(self, call: FeatureCall) -> Tensor:
        """The feature to use instead, [R, ...]."""


@dataclass(frozen=True, eq=False)
class LinearEdit(Edit):
    """A weight delta of the named linear ``module``: ``y + strength * (x @ down.T) @ up.T`` in the active rows.

    ``down`` [r, in] and ``up`` [out, r]; an exact delta is ``down`` = the delta itself with ``up`` None. What several concepts
    change together, a subclass says in ``delta``.
    """

    module: str
    concepts: tuple[str, ...]
    down: Tensor
    up: Tensor | None = None
    seam = Seam.LINEAR

    def delta(self, inputs: Tensor, strengths: Tensor) -> Tensor:
        """What is added to the output, [R, ..., out], for inputs [R, ..., in] of the active rows and strengths [R, C]."""
        delta = inputs @ self.down.to(inputs).T
        if self.up is not None:
            delta = delta @ self.up.to(inputs).T
        strength = strengths.amax(-1).to(delta.dtype)
        return strength.view(-1, *[1] * (delta.dim() - 1)) * delta
