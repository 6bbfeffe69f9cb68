"""Making a pipeline guarded without changing what it is: same type to ``isinstance``, same name, same signature."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from safeguard.instrument.discover.modular import is_modular, picked, told
from safeguard.plan.request_state import current_request

Call = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def is_guarded(pipe: Any) -> bool:
    return "_safeguard_base" in vars(type(pipe))


def guard_of_class(pipe: Any) -> Any:
    """The guard that a pipeline's class belongs to; None where it is not guarded."""
    return vars(type(pipe)).get("_safeguard_guard")


def wrap(
    pipe: Any,
    guard: Any,
    call: Call,
    host: int,
    encoding: AbstractContextManager[object],
    note: Callable[[int, Any], tuple[list[Any], list[Any]]],
) -> None:
    """Give ``pipe`` a class of its own, a subclass of what it was, whose ``__call__`` goes through ``call``.

    What it encodes for a request on the attachment ``host`` is noted there, so that rows can be told apart: ``note`` says
    which of what its encoding number so-and-so gave are prompts, and which negative prompts.
    ``encoding`` is held meanwhile: tokenizers are not made for threads.
    """
    base = type(pipe)

    @functools.wraps(base.__call__)
    def guarded_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, functools.partial(base.__call__, self), args, kwargs)

    def watched_encode(self: Any, *args: Any, **kwargs: Any) -> Any:
        with encoding:
            encoded = base.encode_prompt(self, *args, **kwargs)
        state = current_request()
        if state is not None and state.facts.host == host:
            # as many as the pipeline itself makes: what is encoded later, by a callback say, nobody screened
            positive, negative = note(state.caches.encodings, encoded)
            state.caches.encodings += 1
            state.caches.positive += positive
            state.caches.negative += negative
        return encoded

    def guarded_blocks(self: Any, *args: Any, **kwargs: Any) -> Any:
        values: dict[str, Any] = {}

        def tell(name: str, value: Any) -> None:
            state = current_request()
            if state is not None and state.facts.host == host and not state.log.calls:  # later ones come from no text encoder
                values[name] = value
                positive, negative = note(0, values)
                state.caches.positive, state.caches.negative = list(positive), list(negative)

        whole = call(self, functools.partial(told(base, tell), self), args, kwargs)
        return picked(base, whole, args, kwargs)

    members: dict[str, Any] = {
        "__call__": functools.wraps(base.__call__)(guarded_blocks) if is_modular(base) else guarded_call,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_safeguard_base": base,
        "_safeguard_guard": guard,
    }
    if hasattr(base, "encode_prompt"):
        members["encode_prompt"] = functools.wraps(base.encode_prompt)(watched_encode)
    pipe.__class__ = type(base.__name__, (base,), members)


def unwrap(pipe: Any) -> None:
    """Give a guarded pipeline its own class back."""
    pipe.__class__ = vars(type(pipe))["_safeguard_base"]
