"""After a call: an image that was not protected as the policy asks is withheld."""

from __future__ import annotations

from safeguard.errors import CapabilityError
from safeguard.plan.request_state import RequestState
from safeguard.sdk.seams import Seam


def require_protected(state: RequestState) -> None:
    """A call that was to be protected and passed no hook was not protected, whatever the reason: its image is withheld. So is
    one that was to be looked at and was not, and one in which a concept was seen too late for anything to be done.
    """
    watched = state.watching is not None and any(any(row) for row in state.watching.strengths)
    if not watched and not any(any(row) for row in state.facts.strengths):
        return
    seams = {edit.seam for edit in state.plan.edits}
    if not state.log.calls or ((watched or Seam.TEXT_SITE in seams) and not state.log.visits):
        raise CapabilityError(
            "the denoiser ran without passing the hooks that protect it, so the image is withheld; "
            "release the guard and protect the pipeline again",
            missing="hooks",
        )
    if state.watching is None or state.log.unmatched:  # rows that match nothing got the whole policy
        return
    if state.watching.pending:
        raise CapabilityError(
            "the denoiser ran without showing all of its text sites, so what the image shows is not known and it is withheld; "
            "leave calibration out: then adaptive concepts act in every image",
            missing="evidence",
        )
    due = max(state.watching.step, state.log.first_step)
    for (image, name), detection in state.watching.seen.items():
        if not detection.opened or not state.watching.strength(image, name):
            continue
        never = detection.step == state.log.step and not state.asked(image, state.plan.columns[name])
        if never or detection.step > due:
            raise CapabilityError(
                f"concept {name!r} was seen in step {detection.step}, too late to be erased, so the image is withheld; use "
                "more steps, or leave calibration out: then adaptive concepts act in every image",
                missing="a step to act in",
            )
