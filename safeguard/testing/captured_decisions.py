"""Collects what guards decide, for tests of programs that call a guarded pipeline somewhere inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safeguard.audit import Decision
from safeguard.guard.observers import observed


@contextmanager
def capture_decisions() -> Iterator[list[Decision]]:
    """Collect the decisions of all guarded calls made inside a ``with`` block, refused calls included.

    It hears every guard of this process, in every thread. Where tests run in several threads of one process, each hears the
    calls of the others as well. Collecting stops at the end of the block, also after an exception; the list stays.

    Yields:
        The list to which each call adds one `safeguard.audit.Decision` an image. A decision is added after the audit log has
        it.

    Example:
        ::

            with capture_decisions() as decisions:
                serve("blood on snow")
            assert [applied.concept for applied in decisions[0].applied] == ["blood"]
    """
    decisions: list[Decision] = []
    with observed(decisions.extend):
        yield decisions
