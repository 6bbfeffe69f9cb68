"""Encoding texts as the pipeline itself does: by running it up to its denoiser, and taking what it would call that with."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.call_values import TextArguments, TextRow, Values, is_text_list, leaves, pick, put, row_count
from safeguard.instrument.discover.dry_run import (
    SIDES,
    SWAPPED,
    TEXTS,
    TOKEN_STATES,
    Catch,
    NeverCalledError,
    catch_call,
    takes_more_pictures,
    text_arguments,
    watching_encoders,
)
from safeguard.instrument.discover.token_substitution import TokenSubstitution
from safeguard.instrument.discover.tokens import MORE, cut_off, is_filled_up, is_padded, places_of, require_known, tokenizer_of
from safeguard.instrument.row_matching import stamp_of
from safeguard.plan.request_state import quiet
from safeguard.sdk.pipeline import EncodedText, TokenizedText, TokenSpan, TokenVariant

BATCH: Final = 32  # texts encoded at a time
KEPT: Final = 64  # untrimmed texts: some are users' own, and none is kept longer than it is useful
Tokens = list[tuple[str, list[int]]]  # of one text, as each encoder gets them


@dataclass(frozen=True, slots=True)
class TextPath:
    """How a pipeline is run to see what it calls a denoiser with, and in which block of its rows, of how many, the texts
    stand, and every how many rows the next.
    """

    name: str
    how: Catch
    block: int = 0
    blocks: int = 1
    stride: int = 1


def find_text_path(
    pipe: Any, base: type, name: str, runs: Callable[[Values], None], example: Mapping[str, Any]
) -> tuple[TextPath, Values, TextArguments]:
    """A way to run the pipeline up to its denoiser ``name``, the call that it gives for `TEXTS`, and what of it is text.

    ``runs`` raises where the denoiser itself cannot be run on such a call. Raises CapabilityError (of the first try) where
    there is no way.
    """
    fault: CapabilityError | None = None
    asked = (False, True) if takes_more_pictures(pipe, base, example) else (False,)
    for alone, pictures, side, guidance in itertools.product((False, True), asked, (*SIDES, None), (1.0, None)):
        way = TextPath(name, Catch(side, guidance, pictures=pictures, alone=alone, example=example))
        try:
            return _found(pipe, base, way, runs)
        except NeverCalledError:
            raise
        except CapabilityError as error:
            if error.missing in (TOKEN_STATES, "rows"):
                raise  # no other size would change it
            fault = fault or error
    assert fault is not None
    raise fault


def _found(pipe: Any, base: type, way: TextPath, runs: Callable[[Values], None]) -> tuple[TextPath, Values, TextArguments]:
    noise = replace(way, how=replace(way.how, seed=1000))
    plain, swapped, noisy = (run(pipe, base, by, texts)[0] for by, texts in ((way, TEXTS), (way, SWAPPED), (noise, TEXTS)))
    way = _placed(plain, swapped, way, len(TEXTS))
    plain, swapped, noisy = (_rows(values, way, len(TEXTS)) for values in (plain, swapped, noisy))
    arguments = text_arguments(plain, swapped, noisy, len(TEXTS), way.stride, who=base.__name__)
    try:
        runs(plain)
    except Exception as fault:
        raise CapabilityError(
            f"the {way.name} of {base.__name__} cannot be run for a test ({type(fault).__name__}: {fault})",
            pipeline=base.__name__,
            missing="a self-test",
        ) from fault
    return way, plain, arguments


def run(pipe: Any, base: type, way: TextPath, texts: Sequence[str]) -> tuple[Values, list[tuple[str, Tensor]]]:
    """What the denoiser would be called with, and the numbers of the tokens that went into each encoder, [n, l]."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.inference_mode(False), torch.no_grad(), quiet(), torch.random.fork_rng(devices):  # some draw without a generator
        if not way.how.alone:
            with watching_encoders(pipe) as seen:
                return catch_call(pipe, base, way.name, texts, way.how), seen
        calls, ids = [], []
        for text in texts:
            with watching_encoders(pipe) as seen:
                calls.append(catch_call(pipe, base, way.name, [text], way.how))
            ids.append(seen)
    joined = (
        [(name, torch.cat([tokens[place][1] for tokens in ids])) for place, (name, _) in enumerate(ids[0])]
        if _alike(ids)
        else []
    )
    return _joined(calls), joined


def _alike(ids: Sequence[Sequence[tuple[str, Tensor]]]) -> bool:
    return len({tuple((name, part.shape) for name, part in tokens) for tokens in ids}) == 1


def _joined(calls: Sequence[Values]) -> Values:
    """Calls for one text each as one call for all."""
    joined = calls[0]
    for path, value in leaves(calls[0], 1):
        parts = [pick(call, path) for call in calls]
        if isinstance(value, Tensor) and value.dim() and len(value) == 1 and len({part.shape for part in parts}) == 1:
            joined = put(joined, path, torch.cat(parts))
        elif isinstance(value, list) and len(value) == 1:
            joined = put(joined, path, [part[0] for part in parts])
    return joined


def _placed(left: Values, right: Values, way: TextPath, count: int) -> TextPath:
    """The way, with the rows at which the texts stand: behind their unconditional twins, or once a frame."""
    for path, value in leaves(left, count):
        mate = pick(right, path)
        rows = isinstance(value, Tensor) and isinstance(mate, Tensor) and value.shape == mate.shape and value.dim() > 2
        if rows or (is_text_list(value) and is_text_list(mate) and len(value) == len(mate)):
            pairs = enumerate(zip(value, mate, strict=True))
            changed = [row for row, (a, b) in pairs if a.shape != b.shape or not torch.equal(a, b)]
            run = [row for place, row in enumerate(changed) if row == changed[0] + place]  # a perturbed copy may follow later
            stride = len(run) // (count - 1)
            if changed and stride and changed[0] >= stride:
                taken = count * stride
                return replace(way, block=(changed[0] - stride) // taken, blocks=max(1, len(value) // taken), stride=stride)
    return way


def _rows(values: Values, way: TextPath, count: int) -> Values:
    """The rows of the prompts, where there are others besides."""
    if way.blocks == 1:
        return values
    taken = count * way.stride
    for path, value in leaves(values, taken * way.blocks):
        if row_count(value) == taken * way.blocks:
            values = put(values, path, value[way.block * taken : (way.block + 1) * taken])
        elif row_count(value) == count * way.blocks:
            values = put(values, path, value[way.block * count : (way.block + 1) * count])
    return values


class TextEncoding:
    """A pipeline's own way from texts to what its denoisers are called with. Threads take turns.

    ``ways`` has one for each denoiser, of which the first is the one whose token states stand for a text.
    """

    def __init__(self, pipe: Any, base: type, ways: Mapping[str, tuple[TextPath, TextArguments]]) -> None:
        self.base: Final = base
        self._pipe, self._ways = pipe, ways
        self._trim: dict[str, EncodedText] = {}
        self._whole: OrderedDict[tuple[str, str], TextRow] = OrderedDict()
        self._empty: Tokens = []  # the tokens of the empty text, as each encoder gets them
        self._taken: dict[str, int] = {}  # by text of a policy, how many states from the first on hold it
        self._first: int | None = None  # where the words of a text begin among the first one's, if it fills up what is behind
        self._stamp: tuple[Any, ...] | None = ()
        self.lock = threading.RLock()  # a tokenizer keeps padding and truncation as state: threads take turns

    @property
    def main(self) -> str:
        return next(iter(self._ways))

    def rows(self, name: str, texts: Sequence[str]) -> list[TextRow]:
        """What each text is in the arguments of denoiser ``name``, untrimmed."""
        with self.lock:
            self._forget_if_changed()
            wanted = {text: self._whole[name, text] for text in texts if (name, text) in self._whole}
            new = [text for text in dict.fromkeys(texts) if text not in wanted]
            for text, (row, _) in self._run(name, new).items():
                wanted[text] = self._whole[name, text] = row
            for text in wanted:
                self._whole.move_to_end((name, text))
            while len(self._whole) > KEPT:
                self._whole.popitem(last=False)
        return [wanted[text] for text in texts]

    def states(self, texts: Sequence[str | None]) -> list[Any]:
        """The untrimmed token states that stand for each text, [L, D]; of the empty text where there is none."""
        path = self._ways[self.main][1].states
        return [row[path] for row in self.rows(self.main, [text or "" for text in texts])]

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        """Texts as one vector each, [n, P]. None where none of them has one."""
        vectors = [text.pooled for text in self.encode(texts) if text.pooled is not None]
        return torch.stack(vectors) if vectors else None

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """States trimmed to real tokens. Raises CapabilityError for a text too long, or with a learned word not loaded."""
        with self.lock:
            self._forget_if_changed()
            new = [text for text in dict.fromkeys(("", *texts)) if text not in self._trim]
            encoded = self._run(self.main, new)
            if "" in encoded:
                self._empty = encoded[""][1]
                ids = self._run(self.main, [MORE])[MORE][1]  # alone: no other text makes it longer
                words = self.words(ids, 0)[1] if ids else []
                self._first = words[0] if words and is_filled_up(ids[0][1][words[0] :]) else None
            fresh = {}
            for text, (row, ids) in encoded.items():
                self._require_all_read(text, ids)
                fresh[text] = self._trimmed(text, row, ids)
            self._trim |= fresh  # none of them where one is refused: beside that, others were cut off or filled up as well
            return [self._trim[text] for text in texts]

    def taken(self, texts: Sequence[str]) -> list[int]:
        """How many states, from the first on, it takes to hold each text. Raises as `encode` does; no states are kept."""
        with self.lock:
            self.encode([""])  # which shows what opens and closes every text
            new = [text for text in dict.fromkeys(texts) if text not in self._taken]
            for text, (row, ids) in self._run(self.main, new).items():
                self._require_all_read(text, ids)
                self._taken[text] = max(self._trimmed(text, row, ids).places, default=-1) + 1
            return [self._taken[text] for text in texts]

    def read_tokens(self, name: str, text: str) -> TokenizedText:
        """A text as the numbers of its tokens, and as denoiser ``name`` is given it."""
        with self.lock:
            self.encode([""])  # which shows what opens and closes every text
            row, ids = self._run(name, [text])[text]
        states = _tokens_first(row[self._ways[name][1].states], ids)
        words = [self.words(ids, place)[1] for place in range(len(ids))]
        return TokenizedText(text, [numbers for _, numbers in ids], words, self.spans(ids, len(states)), states)

    def encode_tokens(self, name: str, text: TokenizedText, variants: Sequence[Sequence[Sequence[int]]]) -> list[TokenVariant]:
        """What denoiser ``name`` would be given of a text with other numbers.

        Raises CapabilityError where the encoders cannot be given anything but the text, or a variant has another length.
        """
        lengths = [len(numbers) for numbers in text.numbers]
        if any([len(numbers) for numbers in variant] != lengths for variant in variants):
            raise CapabilityError("other tokens of a text must be as many as it has", missing="texts with other tokens")
        found: list[TokenVariant] = []
        with self.lock:
            way, arguments = self._ways[name]
            ids = self._run(name, [text.text])[text.text][1]
            substitution = TokenSubstitution(ids)
            step = 1 if way.how.alone else BATCH
            for start in range(0, len(variants), step):
                batch = variants[start : start + step]
                count = len(batch)
                with substitution.within(self._pipe, batch):
                    given = _rows(run(self._pipe, self.base, way, [text.text] * count)[0], way, count)
                for place in range(count):
                    row = {path: _one(pick(given, path), place, count) for path in arguments.every}
                    found.append(TokenVariant(_tokens_first(row[arguments.states], ids), pooled_in(row, arguments)))
        return found

    def _run(self, name: str, texts: Sequence[str]) -> dict[str, tuple[TextRow, Tokens]]:
        way, arguments = self._ways[name]
        encoded: dict[str, tuple[TextRow, Tokens]] = {}
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            values, seen = run(self._pipe, self.base, way, batch)
            if seen and all(len(ids) < len(batch) for _, ids in seen):  # they are encoded one by one
                encoded |= {text: self._run(name, [text])[text] for text in batch}
                continue
            rows = _rows(values, way, len(batch))
            for place, text in enumerate(batch):
                row = {path: _one(pick(rows, path), place, len(batch)) for path in arguments.every}
                encoded[text] = (row, [(name, ids[place].tolist()) for name, ids in seen if len(ids) == len(batch)])
        return encoded

    def _require_all_read(self, text: str, ids: Tokens) -> None:
        """Raises CapabilityError for a text of which an encoder may not get the end: what stands behind it changes nothing."""
        if not text or all(is_padded(numbers, self._empty_at(place)) for place, (_, numbers) in enumerate(ids)):
            return
        tried = [tokens for _, tokens in self._run(self.main, ["", text, text + MORE]).values()]
        if len({len(tokens) for tokens in tried}) > 1:
            return  # read in as many pieces as it takes
        for (_, empty), (_, numbers), (_, more) in zip(*tried, strict=True):
            if numbers == more != empty:
                raise cut_off(text, len(numbers), self.base)

    def _empty_at(self, place: int) -> list[int]:
        """The empty text as an encoder gets it."""
        return self._empty[place][1] if place < len(self._empty) else []

    def _trimmed(self, text: str, row: TextRow, ids: Tokens) -> EncodedText:
        arguments = self._ways[self.main][1]
        states = _tokens_first(row[arguments.states], ids)
        keep: list[int] = []
        content: list[int] = []
        closing: list[int] = []
        for span in self.spans(ids, len(states)):
            if states.dim() == 2 and len(span.words) < len(self.words(ids, span.encoder)[1]):
                raise cut_off(text, len(states), self.base)
            content += [len(keep) + k for k, spot in enumerate(span.places) if spot in span.words]
            keep += span.places
            closing.append(len(keep) - 1)
        if not keep:
            content = keep = list(range(len(states)))
            closing = keep[-1:]
        require_known(self._pipe, self.base, text)
        return EncodedText(text, states[keep].clone(), content, keep, pooled_in(row, arguments), closing)

    def spans(self, ids: Sequence[tuple[str, Sequence[int]]], length: int) -> list[TokenSpan]:
        """Where the encoders' real tokens stand in ``length`` states: from what the encoders were given."""
        spans = []
        for place, start in _segments([len(numbers) for _, numbers in ids], length, self._first):
            real, words = self.words(ids, place)
            inside = range(max(0, -start), length - start)
            places, spots = ([spot + start for spot in spots if spot in inside] for spots in (real, words))
            if places:
                spans.append(TokenSpan(place, places, spots))
        return spans

    def words(self, ids: Sequence[tuple[str, Sequence[int]]], place: int) -> tuple[list[int], list[int]]:
        """The places of real tokens among the numbers that one encoder was given, and which of these are words."""
        name, numbers = ids[place]
        return places_of(numbers, self._empty_at(place), tokenizer_of(self._pipe, name))

    def _forget_if_changed(self) -> None:
        """Drop what was kept when an encoder's weights may have changed (LoRA, textual inversion, another device)."""
        encoders = [
            part for name, part in self._pipe.components.items() if name.startswith("text_encoder") and part is not None
        ]
        stamps = [(id(encoder), *map(stamp_of, encoder.parameters())) for encoder in encoders if hasattr(encoder, "parameters")]
        stamp = None if any(None in part_stamp for part_stamp in stamps) else tuple(stamps)
        if stamp is None or stamp != self._stamp:
            self._trim.clear()
            self._taken.clear()
            self._whole.clear()
            self._stamp = stamp


def pooled_in(row: TextRow, arguments: TextArguments) -> Tensor | None:
    """A text as one vector [P]; None where the denoiser reads none."""
    pooled = [row[path].flatten() for path in arguments.pooled]
    return torch.cat(pooled) if pooled else None


def _tokens_first(states: Tensor, ids: Tokens) -> Tensor:
    """The states of a text as [L, D]. Where the denoiser reads several layers of an encoder, these are beside or behind one
    another, [N, L, d] or [L, N, d]: tokens are on the axis that is as long as what an encoder was given, else on the first.
    """
    if states.dim() < 3:
        return states
    lengths = [len(numbers) for _, numbers in ids]
    axes = [axis for axis, length in enumerate(states.shape[:-1]) if length in lengths]
    return states.movedim(axes[0] if axes else 0, 0).flatten(1)


def _one(value: Any, place: int, count: int) -> Any:
    """One text's own row: the first of its rows where each frame has one."""
    rows = row_count(value)
    return value[place * (rows // count)] if rows >= count else value


def _segments(lengths: Sequence[int], length: int, first: int | None) -> list[tuple[int, int]]:
    """Which encoders' tokens, one after another, make up ``length`` states: (encoder, where its first token stands).

    Encoders whose lengths add up to it; else the first of them, and where it was given more, its last tokens (the head of a
    template is often cut off); where it was filled up behind its words, which begin with the ``first`` one, no later ones than
    that (what filled it up, or the tail of the template, is cut off too).
    """
    for place, count in enumerate(lengths):
        if count == length:
            return [(place, 0)]
    for place, count in enumerate(lengths):
        for later in range(place + 1, len(lengths)):
            if count + lengths[later] == length:
                return [(place, 0), (later, count)]
    if not lengths:
        return []
    start = length - lengths[0]
    return [(0, min(0, start if first is None else max(start, -first)))]
