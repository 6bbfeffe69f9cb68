"""What image tokens read of concepts that no prompt names: the common ground of erasers and of the evidence that opens them.

A concept's erasure prompts have keys and values at every text site. Asked with the image's own queries they say how much of
the attention the concept would win there, and what it would bring; and what the prompt itself brings can be measured along
that.

Shapes, besides those of `safeguard.sdk.seams`: E places of one concept's tokens, P = R * N. Rows and image tokens are one
axis behind the heads inside: few large products instead of many small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from safeguard.policy import Concept
from safeguard.sdk.calls import SiteCall
from safeguard.sdk.overlap import overlap_factors
from safeguard.sdk.pipeline import EncodedText, Pipeline, TextSite, TokenKeys

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
SELECTIONS: Final = 32  # of the concepts that are active together, whose tokens are kept laid out
LOUDEST: Final = 16.0  # log odds beyond which nothing is left beside a concept


def kept_selection(known: dict[tuple[int, ...], T], columns: Sequence[int], make: Callable[[], T]) -> T:
    """What was made of these columns before, or what ``make`` makes of them now. Beyond `SELECTIONS`, all are forgotten."""
    chosen = tuple(columns)
    if chosen not in known:
        if len(known) >= SELECTIONS:
            known.clear()
        known[chosen] = make()
    return known[chosen]


@dataclass(frozen=True, slots=True)
class _Places:
    """Per concept its tokens' places among the tokens of all concepts; whether each is a word, or opens or closes a text."""

    tokens: Sequence[Sequence[int]]
    words: Sequence[Sequence[bool]]

    @classmethod
    def of(cls, encoded: Sequence[Sequence[EncodedText]]) -> _Places:
        start = 0
        tokens: list[list[int]] = []
        words: list[list[bool]] = []
        for texts in encoded:
            tokens.append([])
            words.append([])
            for text in texts:
                length = len(text.states)
                tokens[-1] += range(start, start + length)
                words[-1] += [place in text.content for place in range(length)]
                start += length
        return cls(tokens, words)

    def select(self, columns: Sequence[int]) -> _Places:
        return _Places([self.tokens[c] for c in columns], [self.words[c] for c in columns])

    @property
    def end(self) -> int:
        """The first place behind all of these tokens."""
        return 1 + max(max(places) for places in self.tokens)

    def layout(self, *, whole: bool, others: int) -> tuple[Tensor, Tensor]:
        """The words, or with ``whole`` all tokens, as [E, C + 1] = T: of each its place, and what it is: a word 2, a token that
        opens or closes a text 1, nothing 0 (a concept that has fewer than E repeats its last one). The last column holds
        ``others`` tokens that stand behind all of these: the empty prompt's.
        """
        import torch

        rows = [
            [(place, 1 + word) for place, word in zip(places, words, strict=True) if word or whole]
            for places, words in zip(self.tokens, self.words, strict=True)
        ]
        rows.append([(self.end + place, 1) for place in range(others)])
        laid = [row[spot] if spot < len(row) else (row[-1][0], 0) for spot in range(max(map(len, rows))) for row in rows]
        places, kinds = (torch.tensor(column) for column in zip(*laid, strict=True))
        return places, kinds


@dataclass(frozen=True, slots=True, eq=False)
class _AtSite:
    """What one site's layers make of the tokens, laid out as [E, C + 1] = T, the empty prompt's in the last column; copies that
    only fill up have no part in any sum. Values are 0 where a token's do not count.
    """

    rest: tuple[Tensor, ...]  # the values that this was made from, and the empty prompt's keys and values
    keys: Tensor  # [H, d, T], scaled
    bias: Tensor  # [1, 1, T], of the scores: -inf where nothing stands
    words: Tensor  # [E, C], 1 where a word stands
    back: Tensor  # [H, E * C, d], the values with their sign turned
    across: Tensor  # [H, d, E * C], the values
    columns: Tensor  # [E * C, C], 1 where a token is of a concept
    gram: Tensor  # [H, E * C, E * C], products of the values of one concept, 0 between concepts
    empty_along: Tensor  # [H, E, E * C], products of the empty prompt's values with the values


class ConceptAttention:
    """The tokens of some concepts' erasure prompts, and those of the empty prompt, as every text site sees them. Stable.

    Make it with `of`, in `Eraser.edits`; read it with `read`, in an edit. A concept's values are taken relative to that of the
    end token of the empty prompt: D = A_E - A_Z.
    """

    def __init__(
        self,
        concepts: Sequence[str],
        places: _Places,
        keys: tuple[TokenKeys, TokenKeys],
        length: int,
        *,
        whole: bool,
        plain: bool,
        framed: bool,
    ) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self.concepts = tuple(concepts)
        self._places, self._length = places, length
        self._keys, self._empty = keys
        self._whole, self._plain, self._framed = whole, plain, framed
        self._layout = places.layout(whole=whole, others=length)
        self._kept: Any = WeakTensorKeyDictionary()  # by the keys that it was made from: one a site and time
        self._narrowed: dict[tuple[int, ...], ConceptAttention] = {}

    @classmethod
    def of(
        cls,
        concepts: Sequence[Concept],
        pipeline: Pipeline,
        *,
        whole: bool = False,
        plain: bool = False,
        framed: bool = False,
        texts: Sequence[Sequence[EncodedText]] | None = None,
    ) -> ConceptAttention:
        """The concepts' phrases, encoded by the pipeline's own encoders.

        Args:
            concepts: The concepts, in the order of the columns of strengths.
            pipeline: The pipeline that `Eraser.edits` was given.
            whole: Start and end tokens take part in a concept's softmax.
            plain: Values are taken as they are, not relative to the empty prompt.
            framed: As ``whole``, and the values of these tokens count, too.
            texts: Of each concept, encoded texts in the place of its phrases; their ``content`` is what counts as words.
        """
        if texts is None:
            encoded = iter(pipeline.encode([phrase for concept in concepts for phrase in concept.phrases]))
            texts = [[next(encoded) for _ in concept.phrases] for concept in concepts]
        empty = pipeline.encode([""])[0]
        names, places = [concept.id for concept in concepts], _Places.of(texts)
        keys = pipeline.keys([text for own in texts for text in own]), pipeline.keys([empty])
        return cls(names, places, keys, len(empty.states), whole=whole or framed, plain=plain, framed=framed)

    @property
    def width(self) -> int:
        """E of these concepts: the tokens of the one that has most. Of some of them, each has its own first."""
        return len(self._layout[0]) // (1 + len(self.concepts))

    def select(self, columns: Sequence[int]) -> ConceptAttention:
        """The same for some of the concepts.

        Args:
            columns: Which of them, in which order.
        """

        def narrowed() -> ConceptAttention:
            names = [self.concepts[column] for column in columns]
            places, keys = self._places.select(columns), (self._keys, self._empty)
            how = {"whole": self._whole, "plain": self._plain, "framed": self._framed}
            return ConceptAttention(names, places, keys, self._length, **how)

        return kept_selection(self._narrowed, columns, narrowed)

    def read(self, call: SiteCall) -> AttentionReading:
        """What the image tokens of a call read of the concepts.

        Args:
            call: The call of a text-site edit.
        """
        return AttentionReading(call, self._at(call.site), len(self.concepts))

    def _at(self, site: TextSite) -> _AtSite:
        keys, *rest = source = (*self._keys.at(site), *self._empty.at(site))
        known: _AtSite | None = self._kept.get(keys)
        if known is None or any(known_part is not part for known_part, part in zip(known.rest, rest, strict=True)):
            known = self._kept[keys] = self._make(site, source)
        return known

    def _make(self, site: TextSite, source: tuple[Tensor, ...]) -> _AtSite:
        """Made of ordinary tensors, whatever mode the asking call runs in: others will ask too."""
        import torch

        keys, values, empty_keys, empty_values = source
        width = 1 + len(self.concepts)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            places, kinds = (column.to(keys.device) for column in self._layout)
            end = self._places.end
            keys = torch.cat([keys[:, :end], empty_keys], 1)[:, places].transpose(-1, -2) * site.scale
            bias = torch.zeros(kinds.shape, device=keys.device).masked_fill(kinds == 0, float("-inf"))
            laid = places.unflatten(0, (-1, width))
            kinds = kinds.unflatten(0, (-1, width))[:, :-1]
            words = kinds == 2
            values = values[:, laid[:, :-1].flatten()]
            if not self._plain:
                values = values - empty_values[:, -1:]  # so that D = A_E V
            values = values * ((kinds > 0) if self._framed else words).flatten()[:, None]
            across = values.float().transpose(-1, -2)
            same = torch.arange(width - 1, device=keys.device).repeat(len(laid))
            gram = (values.float() @ across) * (same[:, None] == same)
            columns = (same[:, None] == same[: len(self.concepts)]).float()
            empty = empty_values[:, laid[:, -1] - end].float() @ across
            bias, across = bias.to(keys.dtype)[None, None], across.to(values.dtype)
            return _AtSite(source[1:], keys, bias, words.float(), -values, across, columns, gram, empty)


class AttentionReading:
    """What the image tokens of one call read of some concepts. Made by `ConceptAttention.read`. Stable.

    Attributes:
        own: A softmax over each concept's tokens, of which there are at most E. P counts the image tokens of all rows.

    Shapes:
        own: [H, P, E, C].
    """

    def __init__(self, call: SiteCall, at: _AtSite, concepts: int) -> None:
        import torch

        self._call, self._at = call, at
        self._rows, _, self._pixels, _ = call.query.shape
        scores = torch.baddbmm(at.bias, call.query.transpose(0, 1).flatten(1, 2), at.keys).float()
        scores = scores.unflatten(-1, (-1, 1 + concepts))
        self._top = scores.amax(-2, keepdim=True)
        self._raw = (scores - self._top).exp()  # each concept against its own loudest token: [H, P, E, C + 1]
        self._total = self._raw.sum(-2, keepdim=True)
        weights = self._raw / self._total  # one for each concept, and one for the empty prompt; torch's own is slow over so few
        self.own: Tensor = weights[..., :-1]
        self._null: Tensor = weights[..., -1]

    def mass(self, rival: Tensor, *, words: bool = False) -> Tensor:
        """The share of attention that each concept gets next to other keys.

        Args:
            rival: The log sum exp of the scores over the other keys, as `SiteCall.log_mass`.
            words: Count a concept's words only, not start and end tokens.

        Shapes:
            rival: [R, H, N].
            returns: [R, H, N, C].
        """
        return self._log_odds(rival, words).sigmoid()

    def odds(self, rival: Tensor) -> Tensor:
        """The odds m / (1 - m) of `mass`.

        Args:
            rival: As of `mass`.

        Shapes:
            returns: [R, H, N, C].
        """
        return self._log_odds(rival, words=False).clamp(max=LOUDEST).exp()

    def _log_odds(self, rival: Tensor, words: bool) -> Tensor:
        won = (self._raw[..., :-1] * self._at.words).sum(-2) if words else self._total[..., 0, :-1]  # [H, P, C]
        odds = won.log() + (self._top[..., 0, :-1] - rival.transpose(0, 1).flatten(1)[..., None])
        apart: Tensor = odds.unflatten(1, (self._rows, self._pixels)).transpose(0, 1)
        return apart

    def component(self) -> Tensor:
        """max(0, t <A - A_0, D> / <D, D>) of each image token and concept, all heads taken together: [R, 1, N, C]. A is what
        the prompt's tokens answer, t their share of the attention, A_0 the attention over the whole empty prompt; where the
        attention reads text alone, A and t are O and 1.

        D is never formed: with D = a V, the products are a (V A) and a (V V^T) a, small in the number of words.
        """
        own = self._flat
        numerator = (self._along * own).sum(0) @ self._at.columns  # [P, C]; sums over a short axis are slower than products
        denominator = ((own @ self._at.gram) * own).sum(0) @ self._at.columns
        component = (numerator / denominator.clamp_min(1e-12)).clamp_min(0)
        apart: Tensor = component.unflatten(0, (self._rows, 1, self._pixels))
        return apart

    def components(self) -> Tensor:
        """The same head by head, with its sign and in the mean over the image tokens: [R, H, C]."""
        own, shape = self._flat, (self._rows, self._pixels)
        both = (self._along * own, (own @ self._at.gram) * own)
        numerator, denominator = ((part @ self._at.columns).unflatten(1, shape).mean(2) for part in both)
        components: Tensor = (numerator / denominator.clamp_min(1e-12)).transpose(0, 1)
        return components

    def together(self, amount: Tensor) -> Tensor:
        """Amounts that count only once what several concepts have in common. Apply it before strengths.

        Args:
            amount: How much of each concept would be removed alone.

        Shapes:
            amount: [R, H or 1, N or 1, C].
            returns: [R, H, N, C], or the shape of ``amount`` for one concept.
        """
        import torch

        width = amount.shape[-1]
        if width == 1:
            return amount
        weighed, products = self._weighed(amount), -(self._at.back.float() @ self._at.across.float())  # of all concepts
        shared = torch.stack(
            [
                ((weighed[..., column::width] @ products[:, column::width]) * weighed).sum(0) @ self._at.columns
                for column in range(width)
            ],
            -2,
        )
        apart: Tensor = amount * overlap_factors(shared).unflatten(0, (self._rows, 1, self._pixels))
        return apart

    @property
    def words(self) -> Tensor:
        """[E, C]: 1 where a token is a word, 0 where it opens or closes a text, or is none."""
        return self._at.words

    def shares(self) -> Tensor:
        """The share of each token in its concept's own softmax, in the mean over heads and image tokens: [R, C, E]."""
        shares: Tensor = self.own.unflatten(1, (self._rows, self._pixels)).mean((0, 2)).transpose(1, 2)
        return shares

    def taken(self, amount: Tensor) -> Tensor:
        """The change of the output that removes this much of each concept.

        Args:
            amount: One value for each concept, or one for each of its tokens.

        Shapes:
            amount: [R, H or 1, N or 1, C], or [R, H or 1, N or 1, E, C].
            returns: [R, N, H * d].
        """
        heads = self._weighed(amount).to(self._at.back.dtype) @ self._at.back
        return self._call.merge(heads.unflatten(1, (self._rows, self._pixels)).transpose(0, 1))

    def _weighed(self, amount: Tensor) -> Tensor:
        """Every token's weight in its concept's softmax, times its concept's amount, or its own: [H, P, E * C]."""
        amount = amount[..., None, :] if amount.dim() == 4 else amount
        own = self.own.unflatten(1, (self._rows, self._pixels)) * amount.transpose(0, 1)
        weighed: Tensor = own.flatten(-2).flatten(1, 2)
        return weighed

    @property
    def _flat(self) -> Tensor:
        return self.own.flatten(-2)  # [H, P, E * C]

    @cached_property
    def _along(self) -> Tensor:
        """t <A - A_0, V> of every token's value V: [H, P, E * C]."""
        answer, share = self._call.from_text
        along: Tensor = (answer.transpose(0, 1).flatten(1, 2) @ self._at.across).float() - self._null @ self._at.empty_along
        return along if share is None else along * share.transpose(0, 1).flatten(1)[..., None]
