"""The one exception tree.

A message says what was wrong, where, and what to do about it. No message ever holds prompt text: exceptions travel to logs
and to clients, prompts must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SafeguardError(Exception):
    """Anything that this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in one policy document.

    ``file`` is the document, ``line`` and ``column`` are 1-based (0 where the fault has no place, such as a missing file),
    ``path`` is the place inside the document (``spec.concepts.blood.strength``), ``hint`` is what to do, or empty.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        inside = f" {self.path}:" if self.path else ""
        return f"{place}:{inside} {self.message}" + (f" ({self.hint})" if self.hint else "")


class PolicyError(SafeguardError):
    """A policy document cannot be used. ``problems`` holds every fault found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PolicyViolation(SafeguardError):  # noqa: N818 - a verdict about a request, not a fault of the program
    """A request was refused under a policy: ``concepts`` that were found, the policy's ``revision``, the ``decision_ids``."""

    def __init__(self, concepts: Sequence[str], revision: str, decision_ids: Sequence[str] = (), reason: str = "") -> None:
        self.concepts = tuple(concepts)
        self.revision = revision
        self.decision_ids = tuple(decision_ids)
        what = reason or f"the request touches {', '.join(self.concepts)}"
        super().__init__(f"refused under policy revision {revision[:12]}: {what}")


class CapabilityError(SafeguardError):
    """A pipeline cannot be protected as the policy asks: which ``pipeline``, which ``eraser``, what is ``missing``."""

    def __init__(self, message: str, *, pipeline: str = "", eraser: str = "", missing: str = "") -> None:
        self.pipeline = pipeline
        self.eraser = eraser
        self.missing = missing
        super().__init__(message)


class PluginError(SafeguardError):
    """An eraser plugin cannot be used, or one of its edits is wrong.

    Attributes:
        name: The eraser; ``eraser`` is the same.
        distribution: Name and version of what registered it.
        concept: The concepts of the edit that is wrong, or empty.
        seam: Where that edit acts, or empty.
        site: The text site or module at which it was called, or empty.
        shape: The shape of what it gave back, or empty.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str,
        distribution: str,
        concept: str = "",
        seam: str = "",
        site: str = "",
        shape: Sequence[int] = (),
    ) -> None:
        self.name = self.eraser = name
        self.distribution = distribution
        self.concept, self.seam, self.site, self.shape = concept, seam, site, tuple(shape)
        super().__init__(f"eraser {name!r} from {distribution}: {message}")


class ScreenError(SafeguardError):
    """Prompts could not be screened, so nothing may be generated from them."""


class AuditError(SafeguardError):
    """A decision could not be made durable, or a log could not be read. ``path`` is the file or folder concerned."""

    def __init__(self, message: str, *, path: str = "") -> None:
        self.path = path
        super().__init__(message)


class FeedbackError(SafeguardError):
    """A feedback store could not be read or written, or was asked for what it does not hold. ``path`` is the file or folder
    concerned, ``line`` the 1-based line of a damaged file, or 0.
    """

    def __init__(self, message: str, *, path: str = "", line: int = 0) -> None:
        self.path = path
        self.line = line
        super().__init__(message)


class AssetError(SafeguardError):
    """A file that the package should carry (weights, vocabulary) is missing or altered."""
