"""Learned words (textual inversion, arXiv 2208.01618): rows of the text encoders' embedding tables, under names of their own.

What is kept is what diffusers loads (``pipe.load_textual_inversion(FILE, token="<blood>")``), so a learned word stands in any
text that the pipeline is given, a policy's phrases among them. A word of k rows is k tokens: ``<blood>``, ``<blood>_1`` and so
on, in whose place diffusers has the first one written.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from safeguard._io import write_whole
from safeguard._tensor_files import load, to_bytes
from safeguard.errors import CapabilityError
from safeguard.instrument.discover.tokens import LEARNED
from safeguard.sdk.fingerprint import CLOSE
from safeguard.training.frozen_pipeline import weights_frozen

_CLIPS: Final = ("clip_l", "clip_g")  # as diffusers' own scripts name the encoders of a word in a file
_COLUMNS: Final = 16  # of an embedding table, by whose means it is known

Rows = Mapping[str, Tensor]
"""[k, width] by the key of a text encoder."""

Marks = Mapping[str, Sequence[float]]
"""By the key of a text encoder, what its embedding table is known by in whatever dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingTable:
    """A text encoder with its tokenizer, and the ``key`` under which a word's file has its rows."""

    key: str
    tokenizer: Any
    encoder: Any

    @property
    def table(self) -> Any:
        return self.encoder.get_input_embeddings()

    @property
    def marks(self) -> list[float]:
        """The means of the table's first columns, without the rows of words that were added."""
        rows: Tensor = self.table.weight.detach()[: self.tokenizer.vocab_size, :_COLUMNS]
        return [float(mean) for mean in rows.double().mean(0)]

    def numbers(self, token: str, count: int) -> list[int]:
        """Those of the tokens that make up a word of ``count`` rows."""
        numbers: list[int] = self.tokenizer.convert_tokens_to_ids([token, *(f"{token}_{row}" for row in range(1, count))])
        return numbers


def embedding_tables(pipe: Any) -> list[EmbeddingTable]:
    """The text encoders of a pipeline that can be given words. Raises CapabilityError where it cannot load any."""
    tables: list[EmbeddingTable] = []
    for end in ("", "_2", "_3"):
        encoder, tokenizer = (getattr(pipe, f"{part}{end}", None) for part in ("text_encoder", "tokenizer"))
        if encoder is not None and tokenizer is not None:
            kind, taken = str(encoder.config.model_type), {table.key for table in tables}
            names = (*(_CLIPS if kind.startswith("clip") else ()), kind, f"{kind}{end}")
            tables.append(EmbeddingTable(next(name for name in names if name not in taken), tokenizer, encoder))
    if not tables or not hasattr(pipe, "load_textual_inversion"):
        name = type(pipe).__name__
        raise CapabilityError(
            f"{name} has no load_textual_inversion(), so it can be given no learned word; learn it beside another pipeline",
            pipeline=name,
            missing="load_textual_inversion",
        )
    return tables


@dataclass(frozen=True, eq=False)
class LearnedWord:
    """A learned word: its ``token``, such as ``<blood>``, and its ``rows``. ``settings`` and ``report`` are those of its
    training, where that was all that was trained; ``marks`` are of the text encoders that it was learnt for, where these are
    known. Raises ValueError for another kind of name.
    """

    token: str
    rows: Rows = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)
    marks: Marks = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not LEARNED.fullmatch(self.token):
            raise ValueError(f"a learned word is named <NAME>, not {self.token!r}")

    def to_bytes(self) -> bytes:
        """Its file, as diffusers reads it: of one encoder the rows by the token, of several by their keys."""
        rows = {key: tensor.detach().float() for key, tensor in self.rows.items()}
        tensors = dict(zip([self.token], rows.values(), strict=True)) if len(rows) == 1 else rows
        parts = {"settings": self.settings, "report": self.report, "marks": self.marks}
        return to_bytes(
            tensors, {"token": self.token, "encoders": list(rows), **{name: dict(part) for name, part in parts.items() if part}}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all. The same word gives the same bytes."""
        write_whole(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LearnedWord:
        """Read a file that `save` wrote; reading runs no code. Raises CapabilityError for a file that is none."""
        name = os.fspath(path)
        try:
            metadata, tensors = load(path)
            keys, token = list(metadata["encoders"]), str(metadata["token"])
            rows = {key: tensors[token if len(keys) == 1 else key] for key in keys}
            marks = {key: [float(mark) for mark in metadata["marks"][key]] for key in keys} if "marks" in metadata else {}
            return cls(token, rows, dict(metadata.get("settings", {})), dict(metadata.get("report", {})), marks)
        except FileNotFoundError as fault:
            raise CapabilityError(f"{name}: there is no such file", missing="word") from fault
        except (ValueError, KeyError, TypeError, OSError) as fault:
            raise CapabilityError(f"{name}: this is no learned word ({fault})", missing="word") from fault

    @property
    def digest(self) -> str:
        """Names the word, whatever encoders it is for: hex SHA-256 of its file without the marks of these."""
        return hashlib.sha256(replace(self, marks={}).to_bytes()).hexdigest()

    def into(self, pipe: Any) -> None:
        """Teach it to every text encoder of a pipeline, by diffusers' own loader. Raises CapabilityError where the pipeline
        knows such a word already, has other encoders, or loads none.
        """
        tables = embedding_tables(pipe)
        widths = {table.key: table.table.embedding_dim for table in tables}
        same = {key: rows.shape[-1] for key, rows in self.rows.items()} == widths
        if not same or not all(_alike(self.marks[table.key], table.marks) for table in tables if self.marks):
            raise CapabilityError(
                f"{self.token} was learnt for other text encoders than this {type(pipe).__name__} has; learn one beside it",
                pipeline=type(pipe).__name__,
                missing="a word of its own encoders",
            )
        if any(self.token in table.tokenizer.get_vocab() for table in tables):
            raise CapabilityError(
                f"this {type(pipe).__name__} has a word {self.token} already; unload that: "
                f'pipe.unload_textual_inversion("{self.token}")',
                pipeline=type(pipe).__name__,
                missing="a new word",
            )
        for table in tables:
            with torch.random.fork_rng(devices=[]):  # a table that grows is filled at random before the rows are put in
                pipe.load_textual_inversion(
                    self.rows[table.key].to(table.encoder.dtype),
                    self.token,
                    tokenizer=table.tokenizer,
                    text_encoder=table.encoder,
                )


def _alike(left: Sequence[float], right: Sequence[float]) -> bool:
    return len(left) == len(right) and math.dist(left, right) <= CLOSE * max(math.hypot(*left), math.hypot(*right))


def marks_of(pipe: Any) -> Marks:
    """What the text encoders of a pipeline are known by. Raises CapabilityError where it cannot load any word."""
    return {table.key: table.marks for table in embedding_tables(pipe)}


def plain(pipe: Any, token: str, text: str, count: int = 0) -> LearnedWord:
    """A word to begin with, that says what a plain ``text`` does: its tokens' own rows where they are ``count``, or where that
    is 0; else as many times their mean.
    """
    rows = {}
    for table in embedding_tables(pipe):
        numbers = table.tokenizer(text, add_special_tokens=False).input_ids
        original = table.table.weight.detach()[numbers].float().clone()
        rows[table.key] = original if count in (0, len(original)) else original.mean(0, keepdim=True).repeat(count, 1)
    return LearnedWord(token, rows, marks=marks_of(pipe))


def beside(pipe: Any, words: Sequence[LearnedWord] = ()) -> Any:
    """A shallow copy of a pipeline with tokenizers and text encoders of its own, which know these words."""
    twin = copy.copy(pipe)
    for name, part in pipe.components.items():
        if part is not None and name.startswith(("tokenizer", "text_encoder")):
            twin.__dict__[name] = copy.deepcopy(part)
    for word in words:
        word.into(twin)
    return twin


class Lesson:
    """Words that are being learnt, in a pipeline that has them (`beside`). ``rows`` are what an optimiser changes, float32
    [k, width] by the token and the key of an encoder: ``<blood>:clip_l``. Nothing else of the encoders takes a gradient.
    """

    def __init__(self, pipe: Any, words: Sequence[LearnedWord]) -> None:
        self._readers, self._words = embedding_tables(pipe), words
        self.rows = {
            f"{word.token}:{reader.key}": word.rows[reader.key]
            .detach()
            .to(reader.table.weight.device, torch.float32, copy=True)
            for word in words
            for reader in self._readers
        }
        for row in self.rows.values():
            row.requires_grad_()

    @property
    def words(self) -> list[LearnedWord]:
        """As they are now."""
        return [
            replace(
                word, rows={reader.key: self.rows[f"{word.token}:{reader.key}"].detach().clone() for reader in self._readers}
            )
            for word in self._words
        ]

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Inside, every text is encoded with the words as they are now, and gradients reach them."""
        with ExitStack() as stack:
            for reader in self._readers:
                stack.enter_context(weights_frozen(reader.encoder))
                stack.callback(reader.table.register_forward_hook(self._hook(reader)).remove)
            yield

    def settle(self) -> None:
        """Put the words as they are now into the tables of the pipeline."""
        with torch.no_grad():
            for word in self.words:
                for reader in self._readers:
                    rows = word.rows[reader.key]
                    reader.table.weight[reader.numbers(word.token, len(rows))] = rows.to(reader.table.weight)

    def _hook(self, table: EmbeddingTable) -> Any:
        places = {
            number: (f"{word.token}:{table.key}", row)
            for word in self._words
            for row, number in enumerate(table.numbers(word.token, len(word.rows[table.key])))
        }

        def on_done(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            ids: Tensor = args[0]
            for number in set(ids.flatten().tolist()) & places.keys():
                name, row = places[number]
                output = torch.where((ids == number)[..., None], self.rows[name][row].to(output), output)
            return output

        return on_done
