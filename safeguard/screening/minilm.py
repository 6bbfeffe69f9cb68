"""The forward pass of all-MiniLM-L6-v2, written out.

The same numbers as sentence-transformers gives (a test compares them), without its import: a process that screens is ready
in a second instead of six, and texts of different lengths share one matrix product without padding, so that a long text
in a batch costs its neighbours nothing and changes nothing in them.

Model: six post-norm BERT layers (Devlin et al. 2019), mean over tokens, unit length (Reimers & Gurevych 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

LAYERS, WIDTH, HEADS, EPS = 6, 384, 12, 1e-12
MAX_TOKENS = 256  # what the model was trained with
TOKENS_PER_PASS = 1024  # bounds memory: the widest activation is 1024 x 1536 floats


class MiniLM:
    """Weights and tokenizer of one folder in the layout of sentence-transformers."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        weights = load_file(folder / "model.safetensors")
        self._words = weights["embeddings.word_embeddings.weight"]
        self._places = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_Layer(weights, f"encoder.layer.{index}.") for index in range(LAYERS)]

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, float32 [len(texts), 384]."""
        import torch

        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        out = np.empty((len(ids), WIDTH), dtype=np.float32)
        with torch.inference_mode():
            for group in _passes(order, ids):
                out[group] = self._forward([ids[index] for index in group]).numpy()
        return out

    def _forward(self, ids: list[list[int]]) -> torch.Tensor:
        """Token ids of n texts -> [n, 384]. All tokens stand in one [tokens, 384] matrix; only attention knows texts."""
        import torch
        from torch.nn.functional import layer_norm, normalize

        lengths = [len(row) for row in ids]
        flat = torch.tensor([token for row in ids for token in row])
        places = torch.cat([torch.arange(length) for length in lengths])
        hidden = layer_norm(self._words[flat] + self._places[places], (WIDTH,), *self._norm, eps=EPS)
        for layer in self._layers:
            hidden = layer(hidden, lengths)
        means = torch.stack([part.mean(dim=0) for part in torch.split(hidden, lengths)])
        return normalize(means, dim=1)


class _Layer:
    def __init__(self, weights: dict[str, torch.Tensor], prefix: str) -> None:
        import torch

        heads = [_pair(weights, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
        self.qkv = torch.cat([weight for weight, _ in heads]), torch.cat([bias for _, bias in heads])
        self.out = _pair(weights, f"{prefix}attention.output.dense")
        self.out_norm = _pair(weights, f"{prefix}attention.output.LayerNorm")
        self.up = _pair(weights, f"{prefix}intermediate.dense")
        self.down = _pair(weights, f"{prefix}output.dense")
        self.down_norm = _pair(weights, f"{prefix}output.LayerNorm")

    def __call__(self, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        import torch
        from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

        qkv = linear(hidden, *self.qkv).view(-1, 3, HEADS, WIDTH // HEADS)
        mixed = []
        for part in torch.split(qkv, lengths):
            query, key, value = part.permute(1, 2, 0, 3).unsqueeze(1)  # three of [1, heads, tokens, 32]
            attended = scaled_dot_product_attention(query, key, value)[0]
            mixed.append(attended.transpose(0, 1).reshape(-1, WIDTH))
        hidden = layer_norm(hidden + linear(torch.cat(mixed), *self.out), (WIDTH,), *self.out_norm, eps=EPS)
        widened = gelu(linear(hidden, *self.up))
        return layer_norm(hidden + linear(widened, *self.down), (WIDTH,), *self.down_norm, eps=EPS)


def _pair(weights: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _passes(order: list[int], ids: list[list[int]]) -> list[list[int]]:
    """Texts in the given order, cut into groups of at most TOKENS_PER_PASS tokens."""
    groups: list[list[int]] = []
    room = 0
    for index in order:
        if not groups or len(ids[index]) > room:
            groups.append([])
            room = TOKENS_PER_PASS
        groups[-1].append(index)
        room -= len(ids[index])
    return groups
