"""A pipeline as erasers see it while they make their edits: what it reads of texts, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from safeguard.sdk.fingerprint import Fingerprint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TextSite:
    """One attention at which image tokens read text. Stable.

    Attributes:
        index: Its number among all text sites.
        name: Of the module in the pipeline.
        heads: The number of heads, H.
        head_dim: The width of a head, d.
        scale: The factor on its scores.
    """

    index: int
    name: str
    heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True, slots=True)
class FeatureSite:
    """A module whose output a feature edit may change: its ``name`` in the pipeline, with ``#1`` behind it where that is the
    second of several outputs, and the ``shape`` of one row of that: (C, H, W) in a UNet, (N, C) where image tokens are rows.
    The shape is that of a small call: only C is the same in every one.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """A text as the pipeline's own encoders give it to the denoiser. Stable.

    Attributes:
        text: The text.
        states: The states of its real tokens, without padding.
        content: Which of ``states`` are words, not start or end tokens.
        places: Where the real tokens were in the untrimmed text.
        pooled: The text as one vector, or None if the denoiser reads none.
        closing: Which of ``states`` end the text: one for each encoder, if the tokens of several are concatenated.

    Shapes:
        states: [L, D].
        pooled: [P].
    """

    text: str
    states: Tensor
    content: Sequence[int]
    places: Sequence[int]
    pooled: Tensor | None = None
    closing: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Where the real tokens of one encoder stand in the untrimmed states of a text.

    Attributes:
        encoder: Which of the encoders of a `TokenizedText`.
        places: Places in the states; the last one is that of the token that closes the text.
        words: Those of ``places`` at which words stand.
    """

    encoder: int
    places: Sequence[int]
    words: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """A text as numbers of tokens, and what the denoiser is given of it.

    Attributes:
        text: The text.
        numbers: What each encoder is given: one list of numbers an encoder.
        words: Which places of these numbers hold words, for each encoder.
        spans: Where the tokens of encoders stand in ``states``. An encoder that gives only a pooled vector has no span.
        states: [L, D], untrimmed.
    """

    text: str
    numbers: Sequence[Sequence[int]]
    words: Sequence[Sequence[int]]
    spans: Sequence[TokenSpan]
    states: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenVariant:
    """A text with other tokens, as the denoiser would be given it: ``states`` [L, D], and ``pooled`` [P], where it reads that
    too.
    """

    states: Tensor
    pooled: Tensor | None


class TokenEncoder(Protocol):
    """Texts as the numbers of their tokens, and what the pipeline's own encoders make of other numbers in their place."""

    def read(self, text: str) -> TokenizedText:
        """The tokens of a text."""
        ...

    def encode(self, text: TokenizedText, variants: Sequence[Sequence[Sequence[int]]]) -> list[TokenVariant]:
        """What the text would be with other numbers.

        Args:
            text: The text, as `read` gave it.
            variants: For each variant, the numbers for each encoder, as many as ``text.numbers`` has.

        Raises:
            CapabilityError: The encoders cannot be given anything but the text, or a variant has another length.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TextLayers:
    """Linear layers with the same input: a text, not yet mixed with anything else.

    Attributes:
        modules: Their names, as `LinearEdit` takes them.
        tokens: Whether they read tokens, or one vector for each text.

    Shapes:
        input: [B, L, in] with ``tokens``, else [B, in].
    """

    modules: tuple[str, ...]
    tokens: bool = True


class TokenKeys(Protocol):
    """Keys and values of a fixed set of tokens, as each text site sees them in the present denoiser call. Stable."""

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        """Keys and values at one site, in the denoiser's dtype; the same tensors as long as nothing has changed.

        Args:
            site: The text site.

        Shapes:
            returns: two tensors, each [H, T, d].
        """
        ...

    def select(self, texts: Sequence[int]) -> TokenKeys:
        """Those of some of the texts, so that nothing is worked out for the others.

        Args:
            texts: Their places among the texts, in the order that is wanted.
        """
        ...


class Pipeline(Protocol):
    """What an eraser may ask of the pipeline in `Eraser.edits`. Stable."""

    @property
    def name(self) -> str: ...

    @property
    def sites(self) -> Sequence[TextSite]: ...

    @property
    def main_sites(self) -> Sequence[TextSite]:
        """The text sites of the denoiser that makes the image, in its order: the sites of the fingerprint."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Identifies the pipeline: adapters and calibrations are bound to it."""
        ...

    @property
    def middle(self) -> FeatureSite | None:
        """The middle of the denoiser: a UNet's middle block, or the image stream after a transformer's middle block. None
        if it has neither.
        """
        ...

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encode texts with the pipeline's own encoders.

        Args:
            texts: Any texts; the empty one is allowed.

        Returns:
            One result for each text.
        """
        ...

    def keys(self, texts: Sequence[EncodedText]) -> TokenKeys:
        """Keys and values of the tokens of some texts at every site.

        Args:
            texts: What `encode` returned. Their tokens are concatenated.
        """
        ...

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        """Texts as one vector each, for denoisers that read a pooled text besides tokens.

        Args:
            texts: Any texts.

        Returns:
            The vectors, or None if the denoiser reads none.

        Shapes:
            returns: [n, P].
        """
        ...

    @property
    def text_layers(self) -> Sequence[TextLayers]:
        """The linear layers that read the text first, in groups with the same input. At cross-attention these make keys and
        values. Empty if no layer reads the text alone.
        """
        ...

    def weight(self, module: str) -> Tensor:
        """A copy of the present weight of such a layer, adapters included.

        Args:
            module: One of the names in `TextLayers.modules`.

        Shapes:
            returns: [out, in], float64.
        """
        ...

    def inputs(self, layers: TextLayers, texts: Sequence[str]) -> list[Tensor]:
        """The input of the layers of a group for each text, with padding; `EncodedText.places` are places in it.

        Args:
            layers: A group of `text_layers`.
            texts: Any texts.

        Shapes:
            returns: [L, in] for each text, float64; [1, in] if the layers read one vector.
        """
        ...
