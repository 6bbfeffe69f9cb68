"""What `check_eraser` reports: one result for each check and pipeline, and the error that tells of those that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safeguard.errors import PluginError


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check went on one tiny pipeline.

    Attributes:
        check: The name of the check, such as ``strength 0 changes nothing``.
        family: The tiny pipeline, ``unet`` or ``joint``; empty for a check of the class itself.
        outcome: ``passed``, ``failed``, or ``refused``: the eraser said with a `CapabilityError` that it cannot act there.
        message: What was wrong, or why it was refused; empty where it passed.
        eraser: The name of the eraser.
        concept: The concepts that were active in the check, or that the wrong edit is for.
        seam: Where the eraser acts; of a wrong edit, its seam.
        site: The text site or module at which a wrong edit was called, where that is known.
        shape: The shape of what a wrong edit gave back, or of the latents that are wrong.
    """

    check: str
    family: str
    outcome: Literal["passed", "failed", "refused"]
    message: str = ""
    eraser: str = ""
    concept: str = ""
    seam: str = ""
    site: str = ""
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        """One line, which names everything that is known."""
        place = f"{self.check} ({self.family})" if self.family else self.check
        if self.outcome == "passed":
            return f"passed  {place}"
        known = {"concept": self.concept, "seam": self.seam, "site": self.site, "shape": list(self.shape)}
        where = ", ".join(f"{name} {value}" for name, value in known.items() if value)
        return f"{self.outcome:7} {place}: {self.message}" + (f" [{where}]" if where else "")


@dataclass(frozen=True, slots=True)
class ContractReport:
    """What `check_eraser` found.

    Attributes:
        eraser: The name of the eraser.
        results: One for each check and pipeline, in the order in which they were run.
    """

    eraser: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(result for result in self.results if result.outcome == "failed")

    @property
    def refused(self) -> tuple[CheckResult, ...]:
        """What the eraser refused to do."""
        return tuple(result for result in self.results if result.outcome == "refused")

    def __str__(self) -> str:
        """One line for each check."""
        return "\n".join([f"eraser {self.eraser!r}", *(f"  {result}" for result in self.results)])


class ContractError(PluginError):
    """An eraser breaks the contract. ``report`` has every check; the other attributes are those of the first that failed."""

    def __init__(self, report: ContractReport, distribution: str) -> None:
        self.report = report
        first = report.failed[0]
        super().__init__(
            _listed(report.failed, len(report.results)),
            name=report.eraser,
            distribution=distribution,
            concept=first.concept,
            seam=first.seam,
            site=first.site,
            shape=first.shape,
        )


def _listed(failed: Sequence[CheckResult], count: int) -> str:
    lines = [f"{len(failed)} of {count} checks failed", *(f"  {result}" for result in failed)]
    return "\n".join(lines)
