"""A pipeline of words for the tests of terms: every word a token, one attention, everything small enough to write out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from safeguard.policy import Concept
from safeguard.sdk.calls import EveryKey, LinearCall, PromptTokens, SiteCall
from safeguard.sdk.eraser import Eraser
from safeguard.sdk.fingerprint import Fingerprint
from safeguard.sdk.pipeline import EncodedText, TextLayers, TextSite
from safeguard.sdk.seams import LinearEdit

HEADS, WIDTH, TEXT, LENGTH = 2, 4, 8, 7
SITE = TextSite(0, "site", HEADS, WIDTH, WIDTH**-0.5)


class Keys:
    """Tokens projected by two fixed matrices, as an attention's own layers would."""

    def __init__(self, states: Tensor, lengths: Sequence[int] = ()) -> None:
        self._texts = states.split(list(lengths)) if lengths else (states,)
        generator = torch.Generator().manual_seed(1)
        k, v = (torch.randn(TEXT, HEADS * WIDTH, generator=generator) for _ in range(2))
        self._pair = tuple((states @ m).unflatten(-1, (HEADS, WIDTH)).transpose(0, 1) for m in (k, v))

    def at(self, site: TextSite) -> tuple[Tensor, Tensor]:
        return self._pair[0], self._pair[1]

    def select(self, texts: Sequence[int]) -> Keys:
        chosen = [self._texts[place] for place in texts]
        return Keys(torch.cat(chosen), [len(text) for text in chosen])


class WordPipeline:
    """Words are tokens; every text opens and closes with a token of its own."""

    name = "words"
    sites = main_sites = (SITE,)
    fingerprint = Fingerprint(name, ((SITE.name, HEADS),), (1.0,))

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return [self.one(["<", *text.split(), ">"]) for text in texts]

    def one(self, words: list[str]) -> EncodedText:
        rows = [torch.randn(TEXT, generator=torch.Generator().manual_seed(sum(map(ord, word)))) for word in words]
        return EncodedText(" ".join(words[1:-1]), torch.stack(rows), range(1, len(words) - 1), range(len(words)))

    def keys(self, texts: Sequence[EncodedText]) -> Keys:
        return Keys(torch.cat([text.states for text in texts]), [len(text.states) for text in texts])

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        return None

    # what the linear layers that read the text are: keys and values of it, and texts of `LENGTH` tokens

    text_layers = (TextLayers(("net.k", "net.v")),)

    def weight(self, module: str) -> Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, module)))
        return torch.randn(HEADS * WIDTH, TEXT, generator=generator, dtype=torch.float64)

    def inputs(self, layers: TextLayers, texts: Sequence[str]) -> list[Tensor]:
        """Behind the real tokens stands padding, which is another for each text, as CLIP's is."""
        given = []
        for text in self.encode(texts):
            generator = torch.Generator().manual_seed(1 + sum(map(ord, text.text)))
            padding = torch.randn(LENGTH - len(text.states), TEXT, generator=generator)
            given.append(torch.cat([text.states, padding]).double())
        return given


def concepts_of(*phrases: str) -> list[Concept]:
    return [Concept(id=f"c{place}", phrases=(phrase,)) for place, phrase in enumerate(phrases)]


def edit_of(eraser: Eraser, *phrases: str, pipeline: Any = None, **params: Any) -> Any:
    """The one edit that an eraser makes for these phrases, one concept each, on a pipeline of words."""
    (edit,) = eraser.edits(concepts_of(*phrases), {**eraser.params, **params}, pipeline or WordPipeline())
    return edit


def site_call_of(
    output: Tensor, query: Tensor, keys: Tensor, values: Tensor, strengths: Tensor, beside: EveryKey | None = None
) -> SiteCall:
    """A call with these tensors at `SITE`, as the run begins."""
    return SiteCall(SITE, output, query, PromptTokens(lambda: keys, lambda: values), beside, strengths=strengths, progress=0.0)


def delta_of(edit: LinearEdit, inputs: Tensor, strengths: Tensor) -> Tensor:
    """What an edit of a layer adds to the layer's output."""
    return edit(LinearCall(inputs, strengths=strengths, progress=0.0))


def site_call(strengths: list[list[float]], seed: int = 0, sharpness: float = 1.0) -> SiteCall:
    generator = torch.Generator().manual_seed(seed)
    rows, tokens = len(strengths), 6
    query = torch.randn(rows, HEADS, tokens, WIDTH, generator=generator)
    keys, values = (torch.randn(rows, HEADS, 5, WIDTH, generator=generator) for _ in range(2))
    if sharpness != 1.0:  # the prompt's keys look the same way as the queries: nothing is left for a concept
        keys = sharpness * query[:, :, :5]
    output = torch.randn(rows, tokens, HEADS * WIDTH, generator=generator)
    return site_call_of(output, query, keys, values, torch.tensor(strengths))


def attended(call: SiteCall, *, joint: bool = False) -> SiteCall:
    """The same call with the output that its attention gives: over the prompt, or with ``joint`` over image tokens as well."""
    keys, values = call.prompt
    every = None
    whole, brought = keys, values
    if joint:
        others = site_call(call.strengths.tolist(), seed=99).prompt
        whole, brought = torch.cat([others[0], keys], 2), torch.cat([others[1], values], 2)
        every = EveryKey(lambda: whole)
    output = call.merge((call.query @ whole.transpose(-1, -2) * SITE.scale).softmax(-1) @ brought)
    return site_call_of(output, call.query, keys, values, call.strengths, every)
