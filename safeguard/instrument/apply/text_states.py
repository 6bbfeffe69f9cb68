"""Edits of the text that a denoiser is given, and of what it predicts: from its arguments to an edit's call, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.instrument.apply import edit_checks
from safeguard.instrument.apply.dispatch import active_edit, attempt, twins_of
from safeguard.instrument.call_values import TextRow, Values, collected, is_text_list, pick, put, stacked, unstacked
from safeguard.instrument.discover.denoiser import Denoiser
from safeguard.instrument.discover.text_encoding import TextEncoding
from safeguard.instrument.discover.tokens import cut_off
from safeguard.plan.request_state import ActiveEdit, RequestState, quiet
from safeguard.sdk.calls import PredictionCall, StatesCall
from safeguard.sdk.pipeline import TokenizedText, TokenVariant
from safeguard.sdk.seams import TextStatesEdit


def edited(
    state: RequestState, edit: TextStatesEdit, active: ActiveEdit, values: Values, part: Denoiser, encoding: TextEncoding
) -> Values:
    """A denoiser's arguments with what one edit makes of the text of its rows."""
    encodings: list[tuple[Tensor, Sequence[TextRow]]] = []
    raw = pick(values, part.text.states)
    states, pooled = stacked(raw), pooled_of(values, part)

    def encode(texts: Sequence[str], behind: Sequence[str | None] = ()) -> Tensor:
        rows = encoded(state, texts, raw, part, encoding, behind=behind)
        new = [row[part.text.states] for row in rows]
        rows_found: Tensor = collected(new, states, [len(text) for text in new])
        encodings.append((rows_found, rows))
        return rows_found

    row_texts = state.facts.negative_texts if edit.unconditional else state.facts.texts
    seen = states[active.index]
    answer = edit_checks.new_states(
        state,
        edit,
        StatesCall(
            seen,
            None if pooled is None else pooled[active.index],
            [row_texts[image] if image is not None and image < len(row_texts) else None for image in active.images],
            edit.unconditional,
            encode,
            DenoiserTokens(encoding, part.name),
            strengths=active.strengths,
            progress=state.log.progress,
            memory=state.caches.memory(edit, active.images, active.columns, active.rows, part.name),
        ),
        lambda text: any(text is known and len(rows) == len(seen) for known, rows in encodings),
    )
    whole = next((rows for text, rows in encodings if text is answer), None)
    if whole is not None:
        return with_texts(values, whole, active, part)
    new, new_pooled = answer if isinstance(answer, tuple) else (answer, None)
    if new is not seen:
        changed = states.clone()
        changed[active.index] = new.to(states.dtype)
        values = put(values, part.text.states, unstacked(changed, raw))
    return values if new_pooled is None or pooled is None else _put_pooled(values, part, active, new_pooled)


def pooled_of(values: Values, part: Denoiser) -> Tensor | None:
    """The pooled vectors of a call, one after another where there are several: [B, P]."""
    vectors = [value for value in (pick(values, path) for path in part.text.pooled) if isinstance(value, Tensor)]
    return torch.cat([value.flatten(1) for value in vectors], -1) if vectors else None


def _put_pooled(values: Values, part: Denoiser, active: ActiveEdit, pooled: Tensor) -> Values:
    start = 0
    for path in part.text.pooled:
        value = pick(values, path)
        if isinstance(value, Tensor):
            width = value[0].numel()
            changed = value.clone()
            changed[active.index] = pooled[:, start : start + width].reshape(-1, *value.shape[1:]).to(value)
            values, start = put(values, path, changed), start + width
    return values


def encoded(
    state: RequestState,
    texts: Sequence[str],
    current: Any,
    part: Denoiser,
    encoding: TextEncoding,
    *,
    behind: Sequence[str | None] = (),
) -> list[TextRow]:
    """Texts of the policy, each with another ``behind`` it, as the denoiser would get them beside or in place of the texts
    that it is given (``current``); looked up once a request, since every step asks again.

    Raises CapabilityError where one is not read to its end; of what stands behind, the pipeline cuts off what does not fit.
    """
    key = (part.name, tuple(texts), tuple(behind))
    if key not in state.caches.texts:
        taken = encoding.taken(texts)
        beside = isinstance(current, Tensor) and len(texts) < len(current)
        room = max(current.shape[1:-1], default=max(taken)) if beside else max(taken)
        if max(taken) > room:
            raise cut_off(texts[taken.index(max(taken))], room, encoding.base)
        joined = [", ".join(filter(None, pair)) for pair in zip(texts, behind, strict=True)] if behind else texts
        state.caches.texts[key] = encoding.rows(part.name, joined)
    return state.caches.texts[key]


@dataclass(frozen=True, slots=True, eq=False)
class DenoiserTokens:
    """Texts token by token, as one denoiser reads them: the `TokenEncoder` of its calls."""

    encoding: TextEncoding
    denoiser: str

    def read(self, text: str) -> TokenizedText:
        return self.encoding.read_tokens(self.denoiser, text)

    def encode(self, text: TokenizedText, variants: Sequence[Sequence[Sequence[int]]]) -> list[TokenVariant]:
        return self.encoding.encode_tokens(self.denoiser, text, variants)


def with_texts(values: Values, rows: Sequence[TextRow], active: ActiveEdit, part: Denoiser) -> Values:
    """The arguments of a denoiser call with other texts in the active rows: states, pooled vectors, masks."""
    places = list(active.rows)
    for path in part.text.every:
        current = pick(values, path)
        if current is None:
            continue
        new = [row[path] for row in rows]
        if is_text_list(current):
            changed: Any = list(current)
            for place, new_row in zip(places, new, strict=True):
                changed[place] = new_row.to(current[place])
        elif isinstance(current, Tensor) and current.dim():
            texts = collected(new, current, [len(row[part.text.states]) for row in rows])
            if len(places) == len(current):
                changed = texts  # of any length: no other row has to fit beside it
            else:
                changed = current.clone()
                changed[active.index] = _fitted(texts, current)
        else:
            continue
        values = put(values, path, changed)
    return values


def _fitted(texts: Tensor, current: Tensor) -> Tensor:
    """Texts beside others: cut or filled up with what comes last to the same length, where a call asks for another."""
    if texts.shape[1:] == current.shape[1:]:
        return texts
    if texts.dim() > 1 and texts.shape[2:] == current.shape[2:]:
        missing = current.shape[1] - texts.shape[1]
        return (
            texts[:, : current.shape[1]]
            if missing < 0
            else torch.cat([texts, texts[:, -1:].expand(-1, missing, *texts.shape[2:])], 1)
        )
    raise CapabilityError("a text that is encoded for an eraser does not fit beside the others of this call", missing="room")


def predicted(
    state: RequestState,
    prediction: Tensor,
    part: Denoiser,
    encoding: TextEncoding,
    *,
    compiled: bool,
) -> Tensor | None:
    """What the prediction edits make of a prediction of ``part``, which is asked again past its graph where it is ``compiled``.
    None: nothing changed.
    """
    changed: Tensor | None = None
    for edit in state.plan.prediction_edits:
        active = active_edit(state, edit, state.rows, prediction.device)
        if active is None:
            continue
        edited_values = None if state.frame is None else state.frame.edited
        if edited_values is None:
            raise CapabilityError(
                "an eraser at the prediction seam calls the denoiser again, and this call of a compiled one holds objects that "
                "no graph hands on; choose another eraser or do not compile",
                missing="prediction seam under torch.compile",
            )
        so_far = prediction if changed is None else changed

        def predict(texts: Sequence[str], active: ActiveEdit = active, values: Values = edited_values) -> Tensor:
            # the whole batch again: some attentions (PAG) count on all its branches
            rows = encoded(state, texts, pick(values, part.text.states), part, encoding)
            changed = with_texts(values, rows, active, part)
            with quiet():
                output = part.again(changed, eagerly=compiled)
            answer: Tensor = output if isinstance(output, Tensor) else output[0]
            return answer[active.index]

        twins = twins_of(state.rows, active.rows)
        unconditional = None if twins is None else so_far[twins]
        seen = PredictionCall(
            so_far[active.index],
            unconditional,
            predict,
            strengths=active.strengths,
            progress=state.log.progress,
            memory=active.memory,
        )
        answer = attempt(state, edit, edit_checks.new_prediction, state, edit, seen)
        if answer is not None:
            changed = prediction.clone() if changed is None else changed
            changed[active.index] = answer.to(prediction.dtype)
            active.note(state.log.step)
    return changed
