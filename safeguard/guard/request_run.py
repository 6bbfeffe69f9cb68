"""One call of a pipeline under a plan: begun, run, and judged by what its erased concepts have left.

A policy says with ``on_residual`` what happens where that is too much: it stands on record, the call is run again from the same
noise and stronger, or its images are withheld.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from safeguard.errors import CapabilityError
from safeguard.guard.call_args import PipelineCall
from safeguard.guard.decide import CallVerdict, reading, watching
from safeguard.guard.enforce import require_protected
from safeguard.guard.request import Request
from safeguard.instrument import Attachment
from safeguard.plan.compile import Plan
from safeguard.plan.request_state import RequestCaches, RequestFacts, RequestState, request_scope

AGAIN: Final = 1.5  # times its strength is how strongly a concept acts in the second run


def begin(
    plan: Plan, call: PipelineCall, verdict: CallVerdict, attachment: Attachment, request: Request, pipe: Any
) -> RequestState:
    """The state of a call that has been decided and is about to run."""

    def an_image(values: Sequence[Any]) -> list[Any]:
        return [value for value in values for _ in range(call.per_prompt)]

    texts = an_image([row.texts[0] if row.texts else None for row in call.rows])
    negative = an_image([row.negative[0] if row.negative else None for row in call.rows])
    known = attachment.known_texts(texts, negative) if all(row.readable for row in call.rows) else ([], [])
    facts = RequestFacts(
        plan=plan,
        strengths=[image.strengths for image in verdict.images],
        host=attachment.number,
        texts=texts,
        negative_texts=negative,
        skip_errors=plan.policy.settings.on_error == "allow",
        guided=call.guided,
        scheduler=getattr(pipe, "scheduler", None),
        maps={} if request.wants_maps else None,
    )
    sites, last = len(attachment.watched_sites), request.only_looks == "last"
    probes = None if last else watching(plan, verdict, call.per_prompt, sites, only=bool(request.only_looks))
    left = None if request.only_looks == "first" else reading(plan, sites, only=last)
    return RequestState(facts, probes, left, caches=RequestCaches(positive=known[0], negative=known[1]))


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """A call that is done: what it gave, its last state, and by image the concepts that are ``withheld``."""

    output: Any
    state: RequestState
    withheld: Mapping[int, tuple[str, ...]]


def run(begun: Callable[[CallVerdict], RequestState], verdict: CallVerdict, call: PipelineCall, body: Callable[[], Any]) -> Ran:
    """Run a call; once more where too much is left of a concept whose policy says ``again``.

    Args:
        begun: Makes the state to run with.
        verdict: What was decided.
        call: What the call asks for.
        body: Runs the pipeline.

    Raises:
        CapabilityError: An image was not protected as the policy asks, or nobody can say what is left where it must be known.
    """
    state = begun(verdict)
    noise = _Noise(call) if any(item.concept.on_residual == "again" for item in state.plan.concepts) else None
    output = _protected(state, body)
    too_much = _too_much(state)
    repeated = {image: [name for name in names if _on_residual(state, name) == "again"] for image, names in too_much.items()}
    if noise is not None and any(repeated.values()):
        noise.restore()
        state = begun(_stronger(verdict, repeated, state.plan))
        output = _protected(state, body)
        too_much = _too_much(state)
    return Ran(output, state, {image: tuple(names) for image, names in too_much.items()})


def _protected(state: RequestState, body: Callable[[], Any]) -> Any:
    with request_scope(state):
        output = body()
    require_protected(state)
    return output


def _on_residual(state: RequestState, concept: str) -> str:
    return state.plan.policy.concepts[concept].on_residual


def _too_much(state: RequestState) -> dict[int, list[str]]:
    """By image, the concepts that acted, of which too much is left, and whose policy does not only put that on record."""
    found: dict[int, list[str]] = {}
    asked = [item.concept.id for item in state.plan.concepts if item.concept.on_residual != "record"]
    for image in range(len(state.facts.strengths)):
        for name in asked:
            if state.log.unmatched or state.acts_in(image, name):
                seen = None if state.residual is None else state.residual.seen.get((image, name))
                if seen is None:
                    raise CapabilityError(
                        f"what is left of concept {name!r} could not be read in the last step, so the image is withheld; give "
                        "the prompt as text and run the schedule to its end, or write 'on_residual: record'",
                        missing="residual",
                    )
                if seen.opened:
                    found.setdefault(image, []).append(name)
    return found


def _stronger(verdict: CallVerdict, concepts: Mapping[int, Sequence[str]], plan: Plan) -> CallVerdict:
    """The same decisions, with these concepts acting `AGAIN` times as strongly and from the first step on."""
    images = []
    for image, row in enumerate(verdict.images):
        strengths = list(row.strengths)
        for name in concepts.get(image, ()):
            strengths[plan.columns[name]] = AGAIN * plan.concepts[plan.columns[name]].strength.value
        images.append(replace(row, strengths=tuple(strengths)))
    return replace(verdict, images=tuple(images))


class _Noise:
    """Where the random numbers of a call begin: its generators, or those of the process where it has none."""

    def __init__(self, call: PipelineCall) -> None:
        import torch

        own = {id(generator): generator for generator in call.generators if generator is not None}
        self._own = [(generator, generator.get_state()) for generator in own.values()]
        self._shared = torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        import torch

        for generator, state in self._own:
            generator.set_state(state)
        torch.set_rng_state(self._shared)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
