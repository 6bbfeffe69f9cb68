"""``eiup``: training-free erasure at every place where image tokens read text (EIUP, arXiv 2408.01014).

An erasure prompt names the concept. At each text site its keys show *where* in the picture the concept grows, whatever the
user's prompt says, and its values show *what* grows there; the feature is put back with its sign turned. With O the output of
the attention, A_E the attention over the concept's words alone, A_Z the null answer (the token that ends the empty prompt) and
A_0 the attention over the whole empty prompt, there are four forms:

``general`` (default): ``projected`` where an attention reads the text alone. In joint attention O <- O - 3 s min(m, c) D, with
m the share of ``gated`` and c the component of ``projected``: no more than the concept wins of the attention, and no more than
the text has brought of it. A benign pixel has either in some place, and both in hardly any.

``projected``: O <- O - s max(0, t <A - A_0, D> / <D, D>) D with D = A_E - A_Z, all heads taken together. A is what the
prompt's tokens alone answer, and t the share of attention that they have: O and 1 at a cross-attention; in joint attention O
holds t A beside what the image brought. How far that goes the concept's way, and no more, is taken back. A benign pixel pays
for what its text has along D.

``gated``: O <- O - s m D. m is the share of attention that the concept wins in one softmax together with every key that the
image tokens meet: the prompt's, and in joint attention the image's own.

``published``: O <- O - s M_E V_E, with M_E the concept's columns of the erasure prompt's own softmax. It always sums to one
over the erasure prompt, so that a benign pixel pays as well.

Where the denoiser reads the text as one pooled vector p besides (SDXL, Stable Diffusion 3, Flux), that carries what lies over a
whole image, styles above all. There p <- p - 2 s max(0, <p - mu, d> / <d, d>) d, with d the mean difference that the concept's
phrase makes to some ordinary texts, and mu the mean of these.

The authors' released code also re-weights the prompt's own attention (the prompt's padding makes room for the concept's
columns) and needs a second, unprotected picture in the batch; that coupling is not offered here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from safeguard.erasing import (
    PROTOCOL,
    Edit,
    EncodedText,
    Pipeline,
    Seam,
    SiteCall,
    SiteEffect,
    StatesCall,
    TextSite,
    TextSiteEdit,
    TextStatesEdit,
    TokenKeys,
)
from safeguard.errors import CapabilityError
from safeguard.policy import Concept

if TYPE_CHECKING:
    from torch import Tensor

FORMS: Final = ("general", "projected", "gated", "published")
JOINT: Final = 3.0  # how far strength 1 goes in joint attention, and in a pooled text; chosen on the demo's dev prompts
POOLED: Final = 2.0
BEYOND: Final = 0.6  # how far a pooled text may be pushed past the ordinary ones, in lengths of the concept's direction
SELECTIONS: Final = 32  # of the concepts that are active together, whose terms are kept
ORDINARY: Final = ("a picture of a person", "a picture of a house in the mountains", "a tree", "a dog on a street at night")


class _Tokens:
    """The tokens of some concepts' erasure prompts, one after another, and their keys and values."""

    def __init__(self, keys: TokenKeys, places: Sequence[Sequence[int]], words: Sequence[Sequence[bool]]) -> None:
        self.keys = keys
        self.places = places  # per concept, into the tokens of all concepts
        self.words = words  # per concept: whether a token is a word, or opens or closes a text

    def select(self, columns: Sequence[int]) -> _Tokens:
        return _Tokens(self.keys, [self.places[c] for c in columns], [self.words[c] for c in columns])

    @property
    def end(self) -> int:
        """The first place behind all of these tokens."""
        return 1 + max(max(places) for places in self.places)

    def layout(self, *, every: bool, others: int) -> tuple[Tensor, Tensor]:
        """The words, or with ``every`` all tokens, as [E, C + 1] = T: of each its place, and what it is: a word 2, a token that
        opens or closes a text 1, nothing 0 (a concept that has fewer than E repeats its last one). The last column holds
        ``others`` tokens that stand behind all of these: the empty prompt's.
        """
        import torch

        rows = [
            [(place, 1 + word) for place, word in zip(places, words, strict=True) if word or every]
            for places, words in zip(self.places, self.words, strict=True)
        ]
        rows.append([(self.end + place, 1) for place in range(others)])
        laid = [row[spot] if spot < len(row) else (row[-1][0], 0) for spot in range(max(map(len, rows))) for row in rows]
        places, kinds = (torch.tensor(column) for column in zip(*laid, strict=True))
        return places, kinds


@dataclass(frozen=True, slots=True, eq=False)
class _AtSite:
    """What one site's layers make of the tokens, laid out as [E, C + 1] = T, the empty prompt's in the last column; copies that
    only fill up have no part in any sum. Values are the words' alone, beside the null answer unless the form is the published
    one, and 0 elsewhere.
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


class _Term(TextSiteEdit):
    """The term of one form for several concepts, in one pass. ``empty`` is the empty prompt of ``length`` tokens, its closing
    one last.

    Inside, rows and image tokens are one axis, P = R * N, behind the heads: few large products instead of many small ones.
    """

    def __init__(self, form: str, concepts: Sequence[str], tokens: _Tokens, empty: TokenKeys, length: int) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self.form = form
        self.concepts = tuple(concepts)
        self._tokens = tokens
        self._empty, self._length = empty, length
        self._layout = tokens.layout(every=form == "published", others=length)
        self._kept: Any = WeakTensorKeyDictionary()  # by the keys that it was made from: one a site and time
        self._narrowed: dict[tuple[int, ...], _Term] = {}

    def select(self, columns: Sequence[int]) -> _Term:
        chosen = tuple(columns)
        if chosen not in self._narrowed:
            if len(self._narrowed) >= SELECTIONS:
                self._narrowed.clear()
            concepts = [self.concepts[column] for column in chosen]
            tokens = self._tokens.select(chosen)
            self._narrowed[chosen] = _Term(self.form, concepts, tokens, self._empty, self._length)
        return self._narrowed[chosen]

    def __call__(self, call: SiteCall) -> SiteEffect:
        import torch

        at = self._at(call.site)
        rows, _, pixels, _ = call.query.shape
        scores = torch.baddbmm(at.bias, call.query.transpose(0, 1).flatten(1, 2), at.keys).float()
        scores = scores.unflatten(-1, (-1, 1 + len(self.concepts)))
        top = scores.amax(-2, keepdim=True)
        raw = (scores - top).exp()  # each concept against its own loudest token: [H, P, E, C + 1]
        total = raw.sum(-2, keepdim=True)
        weights = raw / total  # a softmax for each concept, and one for the empty prompt; torch's own is slow over so few
        own, null = weights[..., :-1], weights[..., -1]
        won = (raw[..., :-1] * at.words).sum(-2) if self.form == "published" else total[..., 0, :-1]  # [H, P, C]
        both = self.form == "general" and call.joint
        rival = call.log_mass if both or self.form == "gated" else call.prompt_log_mass
        mass = (won.log() + (top[..., 0, :-1] - rival.transpose(0, 1).flatten(1)[..., None])).sigmoid()
        amount = call.strengths[:, None, :]
        if self.form == "gated":
            amount = amount * mass.unflatten(1, (rows, pixels))
        elif self.form != "published":
            part = self._component(call, at, own.flatten(-2), null)
            amount = (JOINT * amount if both else amount) * (mass.minimum(part) if both else part).unflatten(1, (rows, pixels))
        taken = own.unflatten(1, (rows, pixels)) * amount[..., None, :]
        heads = taken.flatten(-2).flatten(1, 2).to(at.back.dtype) @ at.back
        delta = call.merge(heads.unflatten(1, (rows, pixels)).transpose(0, 1))
        return SiteEffect(delta, mass.unflatten(1, (rows, pixels)).transpose(0, 1))

    def _component(self, call: SiteCall, at: _AtSite, own: Tensor, null: Tensor) -> Tensor:
        """max(0, t <A - A_0, D> / <D, D>) of each image token and concept, over all heads: [1, P, C]. A is what the prompt's
        tokens answer, t their share of the attention; where the attention reads text alone, they are O and 1.

        D is never formed: with D = a V, the products are a (V A) and a (V V^T) a, small in the number of words.
        """
        answer, share = call.from_text
        along = (answer.transpose(0, 1).flatten(1, 2) @ at.across).float() - null @ at.empty_along
        if share is not None:
            along = along * share.transpose(0, 1).flatten(1)[..., None]
        numerator = (along * own).sum(0) @ at.columns  # [P, C]; sums over a short axis are slower than products
        denominator = ((own @ at.gram) * own).sum(0) @ at.columns
        component: Tensor = (numerator / denominator.clamp_min(1e-12)).clamp_min(0)
        return component[None]

    def _at(self, site: TextSite) -> _AtSite:
        keys, *rest = source = (*self._tokens.keys.at(site), *self._empty.at(site))
        kept: _AtSite | None = self._kept.get(keys)
        if kept is None or any(one is not other for one, other in zip(kept.rest, rest, strict=True)):
            kept = self._kept[keys] = self._make(site, source)
        return kept

    def _make(self, site: TextSite, source: tuple[Tensor, ...]) -> _AtSite:
        """Made of ordinary tensors, whatever mode the asking call runs in: others will ask too."""
        import torch

        keys, values, empty_keys, empty_values = source
        width = 1 + len(self.concepts)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
            places, kinds = (column.to(keys.device) for column in self._layout)
            end = self._tokens.end
            keys = torch.cat([keys[:, :end], empty_keys], 1)[:, places].transpose(-1, -2) * site.scale
            bias = torch.zeros(kinds.shape, device=keys.device).masked_fill(kinds == 0, float("-inf"))
            laid = places.unflatten(0, (-1, width))
            words = (kinds == 2).unflatten(0, (-1, width))[:, :-1]
            values = values[:, laid[:, :-1].flatten()]
            if self.form != "published":
                values = values - empty_values[:, -1:]  # so that D = A_E V
            values = values * words.flatten()[:, None]
            across = values.float().transpose(-1, -2)
            same = torch.arange(width - 1, device=keys.device).repeat(len(laid))
            gram = (values.float() @ across) * (same[:, None] == same)
            columns = (same[:, None] == same[: len(self.concepts)]).float()
            empty = empty_values[:, laid[:, -1] - end].float() @ across
            bias, across = bias.to(keys.dtype)[None, None], across.to(values.dtype)
            return _AtSite(source[1:], keys, bias, words.float(), -values, across, columns, gram, empty)


class _PooledTerm(TextStatesEdit):
    """Takes each concept's direction out of the pooled vectors as far as it is in them, and up to `BEYOND` further."""

    def __init__(self, concepts: Sequence[str], directions: Tensor, mean: Tensor) -> None:
        self.concepts = tuple(concepts)
        self._directions, self._mean = directions, mean  # [C, P], [P]

    def __call__(self, call: StatesCall) -> Tensor | tuple[Tensor, Tensor | None]:
        if call.pooled is None:
            return call.states
        pooled = call.pooled.float()
        mean = self._mean.to(pooled)
        for column, direction in enumerate(self._directions.to(pooled)):
            part = ((pooled - mean) @ direction / direction.square().sum().clamp_min(1e-12)).clamp_min(0)
            taken = (POOLED * call.strengths[:, column] * part).minimum(part + BEYOND)
            pooled = pooled - taken[:, None] * direction
        return call.states, pooled.to(call.pooled.dtype)


class EIUP:
    """The eraser; see the module."""

    protocol: ClassVar[int] = PROTOCOL
    name: ClassVar[str] = "eiup"
    version: ClassVar[str] = "1.3"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE, Seam.TEXT_STATES})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 0.5, "medium": 0.75, "strong": 1.0, "max": 1.5}
    params: ClassVar[Mapping[str, Any]] = {"form": "general"}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        if params["form"] not in FORMS:
            raise CapabilityError(
                f"concept {concepts[0].id!r}: params.form must be one of {', '.join(FORMS)}",
                eraser=self.name,
                missing="form",
            )
        phrases = pipeline.encode([phrase for concept in concepts for phrase in concept.phrases])
        empty = pipeline.encode([""])[0]
        tokens = _lay_out(concepts, phrases, pipeline)
        names = [concept.id for concept in concepts]
        edits: list[Edit] = [_Term(params["form"], names, tokens, pipeline.keys([empty]), len(empty.states))]
        bare = pipeline.pooled(ORDINARY) if empty.pooled is not None else None
        if bare is not None:
            edits.append(_PooledTerm(names, _directions(concepts, bare, pipeline), bare.float().mean(0)))
        return edits


def _directions(concepts: Sequence[Concept], bare: Tensor, pipeline: Pipeline) -> Tensor:
    """What each concept's phrases make of ordinary pooled texts ``bare``, in the mean: [C, P]."""
    import torch

    texts = [f"{text}, {phrase}" for concept in concepts for phrase in concept.phrases for text in ORDINARY]
    made = pipeline.pooled(texts)
    assert made is not None
    shifts = (made.float().unflatten(0, (-1, len(ORDINARY))) - bare.float()).mean(1)  # [phrases, P]
    return torch.stack([part.mean(0) for part in shifts.split([len(concept.phrases) for concept in concepts])])


def _lay_out(concepts: Sequence[Concept], encoded: Sequence[EncodedText], pipeline: Pipeline) -> _Tokens:
    texts, start = iter(encoded), 0
    places: list[list[int]] = []
    words: list[list[bool]] = []
    for concept in concepts:
        places.append([])
        words.append([])
        for text in (next(texts) for _ in concept.phrases):
            length = len(text.states)
            places[-1] += range(start, start + length)
            words[-1] += [place in text.content for place in range(length)]
            start += length
    return _Tokens(pipeline.keys(encoded), places, words)
