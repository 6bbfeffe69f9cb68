"""What the first call of the denoiser shows of a concept's tokens, measured on a pipeline that is not guarded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from safeguard.instrument import OFFERED, Attachment
from safeguard.plan.compile import compile_plan
from safeguard.plan.detectors import ProbeFinished
from safeguard.plan.registry import GROUP, Registry
from safeguard.plan.request_state import RequestFacts, RequestState, request_scope
from safeguard.policy import Concept, derive
from safeguard.sdk.calls import SiteCall, SiteEffect
from safeguard.sdk.concept_attention import ConceptAttention
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.pipeline import Pipeline
from safeguard.sdk.seams import Edit, Seam, TextSiteEdit
from safeguard.training.sources import SeededPrompt
from safeguard.training.task import Task

NAME: Final = "shares"


class _Look(TextSiteEdit):
    """The constant term of ``gie``, that keeps what it reads, by site: [R, C, E]."""

    def __init__(self, tokens: ConceptAttention) -> None:
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

    def learns(self, memory: EditMemory) -> bool:
        raise ProbeFinished


class Shares:
    """An eraser for looking, which no policy names but those made here."""

    api: ClassVar[tuple[int, int]] = (1, 0)
    name: ClassVar[str] = NAME
    version: ClassVar[str] = "1.0"
    seams: ClassVar[frozenset[Seam]] = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar[Mapping[str, float]] = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}
    params: ClassVar[Mapping[str, Any]] = {}

    def edits(self, concepts: Sequence[Concept], params: Mapping[str, Any], pipeline: Pipeline) -> Sequence[Edit]:
        return [_Look(ConceptAttention.of(concepts, pipeline, whole=True, plain=True))]


def shares_of(
    attachment: Attachment,
    task: Task,
    concept: str,
    cases: Sequence[SeededPrompt],
    constant: float,
) -> Tensor:
    """The mean share of each word of a concept at each text site of the denoiser that makes the image, with the constant
    weight acting: [n, words, S]. The task's pipeline carries the hooks of ``attachment`` (`attached`).
    """
    own = derive(task.policy, name=NAME, concepts=[concept], eraser=NAME, strength=constant, params={}, activation="always")
    shares = []
    plan = compile_plan(own, attachment, Registry([EntryPoint(NAME, f"{__name__}:Shares", GROUP)]), OFFERED)
    (edit,) = plan.site_edits
    assert isinstance(edit, _Look)
    for start in range(0, len(cases), task.batch):
        state = RequestState(RequestFacts(plan, (), attachment.number))
        with request_scope(state), contextlib.suppress(ProbeFinished), torch.no_grad():
            task.paint(cases[start : start + task.batch], guidance=1.0)  # one row a case, in their order
        assert edit.words is not None
        sites = [edit.seen[site.index][:, 0, edit.words[:, 0] > 0] for site in attachment.main_sites]
        shares.append(torch.stack(sites, -1).float().cpu())
    return torch.cat(shares)


@contextlib.contextmanager
def attached(pipe: Any) -> Iterator[Attachment]:
    """Inside, a pipeline that is not guarded carries hooks, and does what the running plan says."""
    attachment = Attachment(pipe)
    attachment.install()
    try:
        yield attachment
    finally:
        attachment.remove()
