"""The contract of an eraser, one function a check: what it has to do on any pipeline, whatever its method.

A check takes a `Trial` and raises `BreachError`, or what the guard raises for a wrong edit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

from safeguard.sdk.eraser import AUTO, Eraser
from safeguard.sdk.seams import Seam
from safeguard.testing.tiny_pipelines import PROMPTS, SIDE, denoiser
from safeguard.testing.trial import STRENGTH, BreachError, Trial, alike, require_rows, rows_changed, same

Check = Callable[[Trial], None]
WORDS: Final = ("weak", "medium", "strong", "max")
FIRST, SECOND = "blood", "weapon"
MIXED: Final = ("blood on snow", "a weapon", "a green tree")
ALL, NONE = (True,) * 3, (False,) * 3


class InterruptedRunError(RuntimeError):
    """What the callback of an interrupted run raises."""


def require_strength_words(eraser: Eraser) -> None:
    """The four words of a policy are numbers above 0 that never fall."""
    missing = [word for word in WORDS if word not in eraser.strengths]
    if missing:
        raise BreachError(f"strengths lacks {', '.join(missing)}; a policy may use {', '.join(WORDS)}")
    numbers = [float(eraser.strengths[word]) for word in WORDS]
    if numbers != sorted(numbers) or numbers[0] <= 0:
        raise BreachError(f"strengths must be above 0 and never fall from weak to max, and they are {numbers}")
    begins, most = float(eraser.strengths["strong"]), float(eraser.strengths.get(AUTO, eraser.strengths["strong"]))
    if most < begins:
        raise BreachError(
            f"strengths has {AUTO!r} {most:g}, up to where it may rise, below 'strong', {begins:g}, where it begins"
        )


def acts(trial: Trial) -> None:
    """A concept that is active in every image changes every image."""
    require_rows(trial.under([trial.always(FIRST)]), trial.unprotected(), ALL, FIRST)


def strength_zero(trial: Trial) -> None:
    """At strength 0 the output is that of the unprotected pipeline, to the bit."""
    require_rows(trial.under([trial.always(FIRST, strength=0.0)]), trial.unprotected(), NONE, FIRST)


def strength_scale(trial: Trial) -> None:
    """Another strength gives another output, unless the method has no scale: all words are one number then."""
    weak, most = (float(trial.eraser.strengths[word]) for word in ("weak", "max"))
    if weak == most:
        return
    faint = trial.under([trial.always(FIRST, strength="weak")])
    full = trial.under([trial.always(FIRST, strength="max")])
    if not all(rows_changed(full, faint)):
        what = f"strength weak ({weak:g}) and max ({most:g}) give the same images; use the values of call.strengths"
        raise BreachError(what, concept=FIRST, shape=full.shape)


def nothing_active(trial: Trial) -> None:
    """Where no concept is active the output is that of the unprotected pipeline, to the bit."""
    require_rows(trial.under([trial.concept(SECOND)]), trial.unprotected(), NONE, SECOND)


def only_active_rows(trial: Trial) -> None:
    """Only the image in which a concept is active changes."""
    latents = trial.under([trial.concept(FIRST), trial.concept(SECOND)])
    require_rows(latents, trial.unprotected(), (False, True, False), FIRST)


def rows_apart(trial: Trial) -> None:
    """What a row gets does not depend on what is active in other rows of the batch."""
    first = trial.under([trial.concept(FIRST)], MIXED)
    second = trial.under([trial.concept(SECOND)], MIXED)
    both = trial.under([trial.concept(FIRST), trial.concept(SECOND)], MIXED)
    everywhere = trial.under([trial.always(FIRST)], MIXED)
    _require_alike(both[0], first[0], f"{SECOND!r} is active in another row", FIRST)
    _require_alike(both[1], second[1], f"{FIRST!r} is active in another row", SECOND)
    _require_alike(everywhere[0], first[0], f"{FIRST!r} is active in other rows as well", FIRST)


def memory_of_rows(trial: Trial) -> None:
    """A concept that begins in mid-run leaves what an edit remembers of other rows."""
    alone = trial.under([trial.concept(FIRST)], MIXED)
    beside = trial.under([trial.concept(FIRST), trial.concept(SECOND, steps=(0.5, 1.0))], MIXED)
    what = f"{SECOND!r} begins in another row half way; keep what a row needs in call.memory"
    _require_alike(beside[0], alone[0], what, FIRST)


def same_again(trial: Trial) -> None:
    """The same call gives the same output, whatever was made in between: an edit holds no state of a request."""
    before = trial.under([trial.always(FIRST)])
    trial.paint(MIXED[:2])
    after = trial.paint()
    if not same(after, before):
        what = "the same call gives another image after other calls; an edit may keep state only in call.memory"
        raise BreachError(what, concept=FIRST, shape=after.shape)


def swapped_and_back(trial: Trial) -> None:
    """Policy A, then B, then A again gives A again, to the bit: edits are a pure function of what they are made of."""
    before = trial.under([trial.always(FIRST)])
    between = trial.under([trial.always(SECOND, strength=1.0)])
    after = trial.under([trial.always(FIRST)])
    if not same(after, before):
        what = "edits made again for the same policy give another image; edits() must be a pure function without chance"
        raise BreachError(what, concept=FIRST, shape=after.shape)
    if same(between, before):
        raise BreachError("another concept at another strength gives the same image", concept=SECOND, shape=after.shape)


def interrupted(trial: Trial) -> None:
    """A run that ends in an exception leaves no trace in the next one."""
    before = trial.under([trial.concept(FIRST)])
    try:
        trial.paint(callback_on_step_end=_interrupt)
    except InterruptedRunError:
        pass
    else:
        raise BreachError("an exception of the caller's own did not come through", concept=FIRST)
    after = trial.paint()
    if not same(after, before):
        what = "a run that was interrupted changes the next one; an edit may keep state only in call.memory"
        raise BreachError(what, concept=FIRST, shape=after.shape)


def recorded(trial: Trial) -> None:
    """The record says what acted: concept, eraser, steps, and text sites where it acts at these."""
    guard = trial.serve(trial.concept(FIRST))
    with guard.request() as request:
        trial.paint()
    names = [[applied.concept for applied in decision.applied] for decision in request.decisions]
    if names != [[], [FIRST], []]:
        raise BreachError(f"the records name {names} as what acted in the three images", concept=FIRST)
    (applied,) = request.decisions[1].applied
    if (applied.eraser, applied.strength, applied.steps) != (trial.eraser.name, STRENGTH, (0, 1)):
        what = f"the record says that {applied.eraser!r} acted at strength {applied.strength:g} in steps {applied.steps}"
        raise BreachError(what, concept=FIRST)
    if (applied.sites > 0) != (Seam.TEXT_SITE in trial.eraser.seams):
        what = f"it acted at {applied.sites} text sites, which does not go with the seams that it declares"
        raise BreachError(what, concept=FIRST)


def without_guidance(trial: Trial) -> None:
    """Without guidance it acts, or refuses with a `CapabilityError`: it never lets an image pass in silence."""
    plain = trial.unprotected(guidance_scale=1.0)
    require_rows(trial.under([trial.always(FIRST)], guidance_scale=1.0), plain, ALL, FIRST)


def in_another_size(trial: Trial) -> None:
    """It acts on an image of another size than that of the self-test."""
    larger: dict[str, Any] = {"height": SIDE * 3 // 2, "width": SIDE}
    require_rows(trial.under([trial.always(FIRST)], **larger), trial.unprotected(**larger), ALL, FIRST)


def released(trial: Trial) -> None:
    """After its release the pipeline is what it was: output, weights and hooks."""
    plain, network = trial.unprotected(), denoiser(trial.pipe)
    weights = copy.deepcopy(denoiser(trial.untouched).state_dict())
    trial.under([trial.always(FIRST)])
    trial.release()
    if type(trial.pipe) is not type(trial.untouched):
        raise BreachError("the released pipeline is of another class", concept=FIRST)
    moved = [name for name, value in network.state_dict().items() if not same(value, weights[name])]
    if moved:
        what = f"the weight {moved[0]} was overwritten; change layers by a LinearEdit"
        raise BreachError(what, concept=FIRST, shape=weights[moved[0]].shape)
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        raise BreachError("a hook stays on the denoiser; act by edits alone", concept=FIRST)
    latents = trial.paint()
    if not same(latents, plain):
        raise BreachError("the released pipeline is not the one that it was", concept=FIRST, shape=latents.shape)


def in_half_precision(trial: Trial) -> None:
    """It acts, with finite numbers, on a pipeline in bfloat16, and the output stays in bfloat16."""
    import torch

    trial.release()
    for part in trial.untouched.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, torch.bfloat16)
    lower = trial.on(trial.untouched)
    prompts = PROMPTS[:2]
    plain = lower.unprotected(prompts)
    with lower:
        latents = lower.under([lower.concept(FIRST)], prompts)
    if latents.dtype != plain.dtype:
        raise BreachError(f"the output is {latents.dtype}, not {plain.dtype}", concept=FIRST, shape=latents.shape)
    require_rows(latents, plain, (False, True), FIRST)


CHECKS: Final[Mapping[str, Check]] = {
    "a concept changes every image in which it is active": acts,
    "strength 0 changes nothing": strength_zero,
    "another strength gives another image": strength_scale,
    "nothing active changes nothing": nothing_active,
    "only the active row changes": only_active_rows,
    "rows are apart": rows_apart,
    "what is remembered of a row stays its own": memory_of_rows,
    "the same call gives the same image": same_again,
    "policy A, B, A gives A again": swapped_and_back,
    "an interrupted run leaves no trace": interrupted,
    "the record says what acted": recorded,
    "without guidance it acts or refuses": without_guidance,
    "it acts in another size": in_another_size,
    "released, the pipeline is what it was": released,
    "it acts in half precision": in_half_precision,  # the last: it takes the untouched pipeline
}
"""By what they check, in the order in which they are run."""


def _interrupt(*_: Any) -> dict[str, Any]:
    raise InterruptedRunError


def _require_alike(row: Any, expected: Any, when: str, concept: str) -> None:
    if not alike(row, expected):
        raise BreachError(f"a row gets another image where {when}", concept=concept, shape=row.shape)
