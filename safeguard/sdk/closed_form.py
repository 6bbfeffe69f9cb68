"""Erasing in closed form: the linear layers that read a text are solved anew, so that a concept's words say something else.

For one layer with weight W_0, rows c_i of a concept's text that shall give v_i, and rows p_j of texts to keep (UCE, arXiv
2308.14761):

    J(W) = a sum_i |W c_i - v_i|^2 + b sum_j |W p_j - W_0 p_j|^2 + l |W - W_0|^2

is least where W = W_0 + (V - W_0 C) H, with A = l I + b P P^T and H = (I / a + C^T A^-1 C)^-1 C^T A^-1: as many rows as C has
columns. So the change is of low rank, and asks for one factorization of A however many layers read the same.

Concepts are solved *together for those that are active in a row*: H for any set of them needs A^-1 and products of their rows
alone, so it is made when the set first turns up, and kept. A row in which one concept is active gets the solution for this one.

Here rows are rows: C is [n, D], and a layer's answer to it [n, D'] is C W^T. Everything is solved in float64.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.sdk.calls import LinearCall
from safeguard.sdk.eraser import Eraser, param_choice, param_number
from safeguard.sdk.pair_texts import EncodedPair, encoded_pairs, text_parts, wants_pairs
from safeguard.sdk.pipeline import EncodedText, Pipeline, TextLayers
from safeguard.sdk.seams import LinearEdit

if TYPE_CHECKING:
    from torch import Tensor

SETS: Final = 32  # of concepts that are active together, whose solutions are kept
WINDOWS: Final = ("last", "aligned", "whole")
_NOTHING: Final = 1e-6  # of the largest singular value: what is smaller is rounding of the text encoder


class Answers(Protocol):
    """What one method makes of the rows of all concepts that are active together."""

    def answer(self, rows: Tensor) -> Tensor:
        """H [n, D] for rows C [n, D], with W = W_0 + (V - C W_0^T)^T H."""
        ...


class Kept:
    """A = l I + b P^T P for rows P [m, D] of texts to keep, and H for any rows to erase."""

    def __init__(self, rows: Tensor, *, erase: float, preserve: float, lamb: float) -> None:
        import torch

        self.erase = erase
        whole = lamb * torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device) + preserve * rows.T @ rows
        self._factor = torch.linalg.cholesky(whole)

    def answer(self, rows: Tensor) -> Tensor:
        """H [n, D] for rows C [n, D], with W = W_0 + (V - C W_0^T)^T H."""
        import torch

        known = torch.cholesky_solve(rows.T, self._factor).T  # C A^-1
        inner = torch.eye(len(rows), dtype=rows.dtype, device=rows.device) / self.erase + rows @ known.T
        solution: Tensor = torch.linalg.solve(inner, known)
        return solution


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """What one concept says, rows C [n, D], and what shall be added to each, E = G - C [n, D], so that it says the guide text.

    ``left`` [texts' rows, n] makes these of the rows that they were given as.
    """

    rows: Tensor
    change: Tensor
    left: Tensor

    @classmethod
    def of(cls, rows: Tensor, guide: Tensor) -> Pairs:
        """In as few rows as there are dimensions: with C = U S V^T, S V^T and U^T E have the same sums C^T C and C^T E."""
        import torch

        left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
        some = sizes > _NOTHING * sizes[0]
        return cls(sizes[some, None] * right[some], left[:, some].T @ (guide - rows), left[:, some])

    @property
    def none(self) -> Pairs:
        return Pairs(self.rows[:0], self.change[:0], self.left[:, :0])


class Solved:
    """Pairs of several concepts, epoch after epoch; and what any set of the concepts changes in a text.

    An epoch is solved from the weights that those before it left: W_k+1 = W_k (I + E_k H_k), so that all together make
    W_0 (x + sum_k E_k z_k) of a row x. ``of`` gives the map from x to all z.
    """

    def __init__(self, kept: Answers, epochs: Sequence[Sequence[Pairs]]) -> None:
        self._kept, self._epochs = kept, epochs
        self._sets: OrderedDict[tuple[int, ...], tuple[list[int], Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        sizes = [[len(pairs.rows) for pairs in epoch] for epoch in epochs]
        self.owners = [place for epoch in sizes for place, count in enumerate(epoch) for _ in range(count)]

    @property
    def change(self) -> Tensor:
        """E of all epochs and concepts, one under another: [n, D]."""
        import torch

        return torch.cat([pairs.change for epoch in self._epochs for pairs in epoch])

    def of(self, active: tuple[int, ...]) -> tuple[list[int], Tensor]:
        """For a set of concepts: which of all n rows are theirs, and what gives z for a row x: down [those, D]."""
        with self._lock:
            if active not in self._sets:
                places = [place for place, owner in enumerate(self.owners) if owner in active]
                self._sets[active] = places, self._solve(active)
                while len(self._sets) > SETS:
                    self._sets.popitem(last=False)
            self._sets.move_to_end(active)
            return self._sets[active]

    def map(self) -> Tensor:
        """What all concepts together make of a text: T [D, D], for which the solved layer gives W_0 T x."""
        import torch

        _, down = self.of(tuple(range(len(self._epochs[0]))))
        return torch.eye(down.shape[-1], dtype=down.dtype, device=down.device) + self.change.T @ down

    def edits(self, concepts: Sequence[Concept], ups: Mapping[str, Tensor]) -> list[SolvedEdit]:
        """One edit a layer: ``ups`` [out, n] by module, what it makes of every change."""
        ids = tuple(concept.id for concept in concepts)
        down = self.of(tuple(range(len(concepts))))[1].float()
        return [SolvedEdit(module, ids, down, up.float(), solved=self) for module, up in ups.items()]

    def _solve(self, active: Sequence[int]) -> Tensor:
        """z_k = H_k (x + sum_(j > k) E_j z_j): the last epoch's factor meets a text first."""
        import torch

        behind: Tensor | None = None  # sum_(j > k) E_j z_j as a map of x, [D, D] by rows
        downs: list[Tensor] = []
        for epoch in reversed(self._epochs):
            chosen = [pairs if place in active else pairs.none for place, pairs in enumerate(epoch)]
            answer = self._kept.answer(torch.cat([pairs.rows for pairs in chosen]))
            down = answer if behind is None else answer + answer @ behind
            step = torch.cat([pairs.change for pairs in chosen]).T @ down
            behind = step if behind is None else behind + step
            downs.insert(0, down)
        return torch.cat(downs)


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """What rows of equal strengths get: ``down`` [n, in] and ``up`` [out, n], or ``down`` [out, in] alone."""

    rows: Tensor
    down: Tensor
    up: Tensor | None = None

    def of(self, inputs: Tensor) -> Tensor:
        product = inputs @ self.down.T
        return product if self.up is None else product @ self.up.T


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvedEdit(LinearEdit):
    """The change of one layer, as the concepts that are active in a row have it together.

    ``up`` [out, n] is what the layer makes of every change; ``down`` [n, in] is that of all concepts at once.
    """

    solved: Solved
    _kept: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        object.__setattr__(self, "_kept", WeakTensorKeyDictionary())  # by the strengths of a request's rows

    def __call__(self, call: LinearCall) -> Tensor:
        """[R, ..., out]: the shares of a row's concepts in their solution, each times its strength."""
        import torch

        inputs, strengths = call.inputs, call.strengths
        shares: list[_Share] | None = self._kept.get(strengths)
        if shares is None or shares[0].down.dtype != inputs.dtype or shares[0].down.device != inputs.device:
            shares = self._kept[strengths] = self._shares(inputs, strengths)
        if len(shares) == 1:
            return shares[0].of(inputs)
        delta = torch.empty(*inputs.shape[:-1], self._width, dtype=inputs.dtype, device=inputs.device)
        for share in shares:
            delta[share.rows] = share.of(inputs[share.rows])
        return delta

    @property
    def _width(self) -> int:
        assert self.up is not None
        return len(self.up)

    def _shares(self, inputs: Tensor, strengths: Tensor) -> list[_Share]:
        """One for each set of strengths; of ordinary tensors, whatever mode the asking call runs in."""
        import torch

        assert self.up is not None
        lines: dict[tuple[float, ...], list[int]] = {}
        for row, line in enumerate(strengths.tolist()):
            lines.setdefault(tuple(line), []).append(row)
        shares = []
        with torch.inference_mode(False), torch.no_grad():
            for line, rows in lines.items():
                places, down = self.solved.of(tuple(place for place, strength in enumerate(line) if strength))
                scale = torch.tensor([line[self.solved.owners[place]] for place in places], dtype=down.dtype)
                up = self.up[:, places].to(inputs.device, down.dtype) * scale.to(inputs.device)
                down = down.to(inputs.device)
                index = torch.tensor(rows, device=inputs.device)
                if len(places) < min(down.shape[-1], len(up)):
                    shares.append(_Share(index, down.to(inputs.dtype), up.to(inputs.dtype)))
                else:  # of full rank: one product costs less than two
                    shares.append(_Share(index, (up @ down).to(inputs.dtype)))
        return shares


class PhraseInputs:
    """What one group of layers is given of texts, and which of its rows stand for what a text says."""

    def __init__(self, pipeline: Pipeline, layers: TextLayers, window: str) -> None:
        self._pipeline, self._layers, self._window = pipeline, layers, window

    def pairs(self, phrases: Sequence[str], guide: str) -> tuple[Tensor, Tensor]:
        """Rows of the phrases [n, D], and of the guide text that stands against them [n, D].

        ``last``: the last word of a text (of an empty one the token that opens it), one in each encoder's part. ``aligned``:
        all from there to the end of the part, both texts cut to equal length. ``whole``: every row, by its place. A text
        that is one vector has one row.
        """
        import torch

        texts = [*phrases, guide]
        *texts_given, against = [
            self._windows(text, rows)
            for text, rows in zip(self._pipeline.encode(texts), self._pipeline.inputs(self._layers, texts), strict=True)
        ]
        cut = [
            (part[: len(target)], target[: len(part)])
            for parts in texts_given
            for part, target in zip(parts, against, strict=False)
        ]
        return torch.cat([part for part, _ in cut]), torch.cat([target for _, target in cut])

    def in_context(self, concept: Concept) -> tuple[Tensor, Tensor]:
        """What the concept adds to a text, rows [n, D]; and the words of its pairs' texts without it, to be kept, [m, D].

        The rows are mean differences over the pairs: that of the words which both texts have, and that of the words which name
        the concept to the mean word of the text without it; where ``aligned``, also that of what follows the words. Each
        is so long as if it stood there once for each pair. A text that is one vector has one row.
        """
        import torch

        pairs = encoded_pairs(concept, self._pipeline)
        shown, without = (
            self._pipeline.inputs(self._layers, [getattr(pair, side).text for pair in pairs]) for side in ("shown", "without")
        )
        changes: list[list[Tensor]] = [[], [], []]
        kept = []
        for pair, one, other in zip(pairs, shown, without, strict=True):
            if not self._layers.tokens:
                kept.append(other)
                changes[0].append(one - other)
                continue
            mine, its = torch.tensor(pair.shown.places), torch.tensor(pair.without.places)
            kept.append(other[its[list(pair.without.content)]])
            changes[0] += [(one[mine[spot]] - other[its[its_spot]])[None] for spot, its_spot in pair.same]
            usual = [other[its[list(spots)]].mean(0) for spots in pair.beside]
            changes[1] += [(one[mine[spot]] - bare)[None] for spot, bare in zip(pair.own, usual, strict=True)]
            if self._window != "last":
                changes[2] += _behind_words(pair, one, other)
        parts = [torch.cat(rows) for rows in changes if sum(map(len, rows))]
        return torch.stack([rows.mean(0) for rows in parts]) * len(pairs) ** 0.5, torch.cat(kept)

    def kept(self, texts: Sequence[str]) -> Tensor:
        """Rows of texts to keep, [m, D]: their last words where those are erased; else all of their rows, and those of the
        empty text.
        """
        import torch

        if self._window != "last":
            texts = ["", *texts]
        if not texts:
            return self._pipeline.inputs(self._layers, [""])[0][:0]
        encoded, row_inputs = self._pipeline.encode(texts), self._pipeline.inputs(self._layers, texts)
        if self._window != "last":
            return torch.cat(row_inputs)
        return torch.cat([row for text, rows in zip(encoded, row_inputs, strict=True) for row in self._windows(text, rows)])

    def _windows(self, text: EncodedText, rows: Tensor) -> list[Tensor]:
        if self._window == "whole" or not self._layers.tokens:
            return [rows]
        windows = []
        for last, end in last_words(text, len(rows)):
            windows.append(rows[last : last + 1 if self._window == "last" else end])
        return windows


def _behind_words(pair: EncodedPair, one: Tensor, other: Tensor) -> list[Tensor]:
    """What follows the words of each part, less the same of the text without the concept, counted from the words' end."""
    texts = ((pair.shown, one), (pair.without, other))
    changes = []
    for (last, end), (its_last, its_end) in zip(*(last_words(text, len(rows)) for text, rows in texts), strict=False):
        count = min(end - last, its_end - its_last)
        changes.append(one[last + 1 : last + count] - other[its_last + 1 : its_last + count])
    return changes


def last_words(text: EncodedText, length: int) -> list[tuple[int, int]]:
    """For each encoder's part of an untrimmed text: the place of its last word (of a text without words that of the token
    before the one that closes it), and where the part ends. Padding sets the parts apart.
    """
    places, spans = text.places, []
    for part in text_parts(text):
        last = part.words[-1] if part.words else max(part.tokens[0], part.tokens[-1] - 1)
        behind = part.tokens[-1] + 1
        spans.append((places[last], places[behind] if behind < len(places) else length))
    return spans


def layers_of(concepts: Sequence[Concept], eraser: Eraser, pipeline: Pipeline) -> Sequence[TextLayers]:
    """The layers to solve. Raises CapabilityError where no linear layer reads the text alone."""
    layers = pipeline.text_layers
    if not layers:
        raise CapabilityError(
            f"concept {concepts[0].id!r}: {pipeline.name} has no linear layer that reads the text alone, which {eraser.name!r} "
            "solves anew; choose another eraser",
            pipeline=pipeline.name,
            eraser=eraser.name,
            missing="a linear layer that reads the text alone",
        )
    return layers


@dataclass(frozen=True, slots=True)
class ClosedFormTargets:
    """What a policy says to every method of this kind: the guide text, texts to preserve, which states stand for a text, the
    factors a, b and l as `Kept` takes them, and whether pairs of texts stand in the place of phrases and guide.
    """

    guide: str
    preserve: Sequence[str]
    window: str
    scales: Mapping[str, float]
    in_context: bool

    @classmethod
    def of(cls, concept: Concept, eraser: Eraser, params: Mapping[str, Any]) -> ClosedFormTargets:
        """Raises CapabilityError for a parameter that is none."""
        guide = params["guide"]
        if not isinstance(guide, str):
            raise CapabilityError(
                f"concept {concept.id!r}: params.guide of {eraser.name!r} is one text", eraser=eraser.name, missing="guide"
            )
        scales = {
            "erase": param_number(concept, eraser, params, "erase_scale", least=1e-6),
            "preserve": param_number(concept, eraser, params, "preserve_scale", least=0),
            "lamb": param_number(concept, eraser, params, "lamb", least=1e-6),
        }
        preserve = texts_of(concept, eraser, params["preserve"], "preserve")
        window, in_context = param_choice(concept, eraser, params, "window", WINDOWS[:2]), wants_pairs(concept, eraser, params)
        if in_context and guide:
            raise CapabilityError(
                f"concept {concept.id!r}: params.guide of {eraser.name!r} stands against phrases; with texts: pairs, the "
                "concept's anchor says what stands in its place",
                eraser=eraser.name,
                missing="guide",
            )
        return cls(guide, preserve, window, scales, in_context)

    def read(self, concepts: Sequence[Concept], texts: PhraseInputs) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Of each concept, the rows to edit and those that stand against them; and all rows to keep."""
        import torch

        kept = texts.kept(self.preserve)
        if not self.in_context:
            return [texts.pairs(concept.phrases, self.guide) for concept in concepts], kept
        found = [texts.in_context(concept) for concept in concepts]
        return [(rows, torch.zeros_like(rows)) for rows, _ in found], torch.cat([kept, *(without for _, without in found)])


def texts_of(concept: Concept, eraser: Eraser, value: Any, name: str) -> list[str]:
    """A parameter that lists texts. Raises CapabilityError for anything else."""
    texts: list[Any] = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise CapabilityError(
            f"concept {concept.id!r}: params.{name} of {eraser.name!r} is a list of texts", eraser=eraser.name, missing=name
        )
    return texts
