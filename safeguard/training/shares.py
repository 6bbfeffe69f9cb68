"""What the first call of the denoiser shows of a concept's tokens, measured on a pipeline that is not guarded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from safeguard.attaching import OFFERED, Attachment
from safeguard.erasing import (
    GROUP,
    PROTOCOL,
    ConceptTokens,
    Edit,
    Looked,
    Memory,
    Pipeline,
    Registry,
    Seam,
    SiteCall,
    SiteEffect,
    TextSiteEdit,
    compile_plan,
)
from safeguard.erasing.activation import Running, running
from safeguard.evaluation.studio import Studio
from safeguard.evaluation.suites import Case
from safeguard.policy import Concept, Policy, derive

NAME: Final = "shares"


class _Look(TextSiteEdit):
    """The constant term of ``gie``, that keeps what it reads, by site: [R, C, E]."""

    def __init__(self, tokens: ConceptTokens) -> None:
        self.concepts = tokens.concepts
        self.seen: dict[int, Tensor] = {}
        self.words: Tensor | None = None
        self._tokens = tokens

    def select(self, columns: Sequence[int]) -> _Look:
        return self  # of one concept there is no other choice

    def __call__(self, call: SiteCall) -> SiteEffect:
        reading = self._tokens.read(call)
        self.words = reading.words
        self.seen[call.site.index] = reading.shares()
        return SiteEffect(reading.taken(call.strengths[:, None, None, :]))

    def learns(self, memory: Memory) -> bool:
        raise Looked


class Shares:
    """An eraser for looking, which no policy names but those made here."""

    protocol: ClassVar[int] = PROTOCOL
    name: ClassVar[str] = NAME
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}
    params: ClassVar[Mapping[str, Any]] = {}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Look(ConceptTokens.of(concepts, pipeline, whole=True, plain=True))]


def shares_of(
    attachment: Attachment,
    studio: Studio,
    policy: Policy,
    concept: str,
    cases: Sequence[Case],
    constant: float,
    batch: int,
) -> Tensor:
    """The mean share of each word of a concept at each text site of the denoiser that makes the image, with the constant
    weight acting: [n, words, S]. The studio's pipeline carries the hooks of ``attachment`` (`attached`).
    """
    own = derive(policy, name=NAME, concepts=[concept], eraser=NAME, strength=constant, params={}, activation="always")
    bare = replace(studio, guidance=1.0)  # one row a case, in their order
    found = []
    plan = compile_plan(own, attachment, Registry([EntryPoint(NAME, f"{__name__}:Shares", GROUP)]), OFFERED)
    (edit,) = plan.site_edits
    assert isinstance(edit, _Look)
    for start in range(0, len(cases), batch):
        with running(Running(plan, (), attachment.number)), contextlib.suppress(Looked), torch.no_grad():
            bare.paint(cases[start : start + batch])
        assert edit.words is not None
        sites = [edit.seen[site.index][:, 0, edit.words[:, 0] > 0] for site in attachment.main_sites]
        found.append(torch.stack(sites, -1).float().cpu())
    return torch.cat(found)


@contextlib.contextmanager
def attached(pipe: Any) -> Iterator[Attachment]:
    """Inside, a pipeline that is not guarded carries hooks, and does what the running plan says."""
    attachment = Attachment(pipe)
    attachment.install()
    try:
        yield attachment
    finally:
        attachment.remove()
