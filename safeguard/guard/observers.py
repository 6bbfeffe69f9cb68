"""Who is told of every decision besides the audit log: nobody, unless a test asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from safeguard.audit import Decision

Observer = Callable[[Sequence[Decision]], None]

_observers: Final[list[Observer]] = []
_changing: Final = threading.Lock()


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Inside, ``observer`` is given the decisions of every call, of every guard and in every thread, once they are recorded."""
    with _changing:
        _observers.append(observer)
    try:
        yield
    finally:
        with _changing:
            _observers.remove(observer)


def tell(decisions: Sequence[Decision]) -> None:
    """Give every observer the decisions of a call."""
    for observer in tuple(_observers):
        observer(decisions)
