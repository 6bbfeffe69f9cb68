"""What erasers and trainers see of a pipeline that is there: its text sites, its encoders, its layers at the text."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from safeguard.instrument.apply.probing import fingerprint_of
from safeguard.instrument.apply.text_kv import RecordedTexts, TextKVCache
from safeguard.instrument.discover.denoisers import find_denoisers
from safeguard.instrument.discover.mid_block import find_mid_block
from safeguard.instrument.discover.prompt_branches import PromptBranches
from safeguard.instrument.discover.sites import Site, mechanism_of
from safeguard.instrument.discover.text_encoding import TextEncoding
from safeguard.instrument.discover.text_layers import LinearTextLayers
from safeguard.plan.request_state import quiet
from safeguard.sdk.fingerprint import Fingerprint
from safeguard.sdk.pipeline import EncodedText, FeatureSite, TextLayers, TextSite


class LivePipeline:
    """What was found in one pipeline, as `safeguard.sdk.pipeline.Pipeline` asks for it.

    Args:
        pipe: The pipeline. It is not kept alive.
        example: What a call of one prompt needs besides the prompt, for the trials by which everything is found.

    Raises:
        CapabilityError: Where no denoiser reads text, or text reaches the image in a way that no eraser can get at.
    """

    def __init__(self, pipe: Any, example: Mapping[str, Any] | None = None) -> None:
        self.base: type = type(pipe)
        self._pipe = weakref.ref(pipe)
        with quiet():  # a denoiser may carry the hooks of another guard
            denoisers = find_denoisers(pipe, self.base, example or {})
            self.parts, self.every_site = denoisers.parts, denoisers.sites
            self.encoding = TextEncoding(pipe, self.base, denoisers.ways)
            self.roles = PromptBranches.find(pipe, self.base, *denoisers.ways[self.encoding.main])
        self._linears, self._recorded = LinearTextLayers(self.parts, self.encoding), RecordedTexts()
        self.weight, self.inputs = self._linears.weight, self._linears.inputs

    @property
    def pipe(self) -> Any:
        """The pipeline itself; None when it is gone."""
        return self._pipe()

    @property
    def name(self) -> str:
        return self.base.__name__

    @property
    def denoisers(self) -> dict[str, Any]:
        """The denoisers that were found, by name, as far as they still exist."""
        return {name: part.module for name, part in self.parts.items() if part.exists}

    @property
    def sites(self) -> Sequence[TextSite]:
        return [site.info for site in self.every_site]

    @property
    def mechanism(self) -> str:
        """How its text sites are served, with their number: "4 separate", "5 joint"."""
        return mechanism_of(self.every_site)

    @property
    def reads_pooled(self) -> bool:
        """Whether a denoiser reads the text as one vector besides."""
        return any(part.text.pooled for part in self.parts.values())

    @property
    def main(self) -> str:
        """The denoiser that makes the image."""
        return self.encoding.main

    @property
    def main_sites(self) -> Sequence[TextSite]:
        return [site.info for site in self.watched_sites]

    @property
    def watched_sites(self) -> list[Site]:
        """The text sites at which evidence is taken: those of the main denoiser."""
        return [site for site in self.every_site if site.owner == self.main]

    @cached_property
    def middle(self) -> FeatureSite | None:
        return find_mid_block(self.parts[self.main])

    @property
    def fingerprint(self) -> Fingerprint:
        return fingerprint_of(self.name, self.watched_sites)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return self.encoding.encode(texts)

    def pooled(self, texts: Sequence[str]) -> Tensor | None:
        return self.encoding.pooled(texts) if self.reads_pooled else None

    @property
    def text_layers(self) -> Sequence[TextLayers]:
        return self._linears.found

    def keys(self, texts: Sequence[EncodedText]) -> TextKVCache:
        return TextKVCache(texts, self.encoding.rows, lambda: self.every_site, self._recorded)
