"""``check_eraser``: the contract of an eraser, run on tiny pipelines."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safeguard.errors import CapabilityError, PluginError, SafeguardError
from safeguard.plan.registry import Registry
from safeguard.sdk.eraser import Eraser
from safeguard.testing.contract_report import CheckResult, ContractError, ContractReport
from safeguard.testing.eraser_checks import CHECKS, FIRST, SECOND, require_strength_words
from safeguard.testing.tiny_pipelines import TINY_FAMILIES, tiny_pipeline
from safeguard.testing.trial import BreachError, Trial
from safeguard.testing.word_screener import policy_of

if TYPE_CHECKING:
    from safeguard.training import Trainer

Params = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]
FAULTS_OF_EDITS: Final = ("an effect", "finite output", "independent rows", "text sites")
"""What the self-test finds missing where an edit is wrong. Every other `CapabilityError` is a refusal, which is allowed."""


def check_eraser(
    eraser: type,
    *,
    params: Params | None = None,
    trainer: Trainer | None = None,
    families: Sequence[str] = tuple(TINY_FAMILIES),
) -> ContractReport:
    """Check that an eraser keeps the contract, on tiny pipelines with random weights. It takes less than a minute on a CPU.

    What is checked: the class follows `safeguard.sdk.Eraser`; strengths are respected, and 0 does nothing; rows are
    independent; nothing is kept between requests; a swap, an exception and a release leave no trace; records say what acted;
    it works in another size and in half precision. `safeguard.testing.eraser_checks` has each check with its reason.

    Args:
        eraser: The class of the eraser. It need not be installed.
        params: What a policy would say in ``params``; or a function that takes the pipeline and gives this.
        trainer: For an eraser that is trained: its trainer. Each tiny pipeline gets an adapter of a few updates for each of
            the two concepts of the checks, and the concept's ``params.adapter`` names it. The trainer must learn from prompts
            alone; for another one, give a function as ``params`` that makes the adapter.
        families: The tiny pipelines to try.

    Returns:
        The report: every check passed, or was refused by the eraser with a reason.

    Raises:
        PluginError: The class does not follow the protocol.
        ContractError: A check failed. The message names eraser, check, concept, seam, site and shape.
    """
    name = str(getattr(eraser, "name", getattr(eraser, "__name__", eraser)))
    registry = Registry(classes=[eraser])
    checked = registry.get(name)
    results = [_result("strength words are numbers that never fall", "", checked, lambda: require_strength_words(checked))]
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            results += _on(family, eraser, checked, params, trainer, Path(folder))
    tried = {result.family for result in results if result.outcome == "passed" and result.family}
    if not tried and all(result.outcome != "failed" for result in results):
        message = f"it refuses every pipeline on which it was tried: {results[-1].message}"
        results.append(CheckResult("it acts on some pipeline", "", "failed", message, name, FIRST, _seams(checked)))
    report = ContractReport(name, tuple(results))
    if report.failed:
        raise ContractError(report, registry.distribution(name))
    return report


def _on(
    family: str, kind: type, eraser: Eraser, params: Params | None, trainer: Trainer | None, folder: Path
) -> list[CheckResult]:
    """All checks on one tiny pipeline; the first alone where the eraser cannot act there at all."""
    pipe = tiny_pipeline(family)
    values = dict(params(pipe) if callable(params) else params or {})
    adapters = {}
    if trainer is not None:
        files = {concept: folder / f"{family}-{concept}.safetensors" for concept in (FIRST, SECOND)}
        adapters = {concept: str(_trained(trainer, eraser, pipe, concept, file)) for concept, file in files.items()}
    results: list[CheckResult] = []
    with Trial(eraser, pipe, values, [kind], adapters=adapters) as trial:
        for name, check in CHECKS.items():
            results.append(_result(name, family, eraser, functools.partial(check, trial)))
            if len(results) == 1 and results[0].outcome != "passed":
                break
    return results


def _result(check: str, family: str, eraser: Eraser, run: Callable[[], None]) -> CheckResult:
    """Run a check, and say how it went."""
    known: dict[str, Any] = {"eraser": eraser.name, "concept": FIRST if family else "", "seam": _seams(eraser)}
    try:
        run()
    except BreachError as fault:
        own = {"concept": fault.concept, "shape": fault.shape}
        return CheckResult(check, family, "failed", str(fault), **{**known, **{k: v for k, v in own.items() if v}})
    except PluginError as fault:
        own = {"concept": fault.concept, "seam": fault.seam, "site": fault.site, "shape": fault.shape}
        return CheckResult(check, family, "failed", str(fault), **{**known, **{k: v for k, v in own.items() if v}})
    except CapabilityError as fault:
        outcome: Any = "failed" if fault.missing in FAULTS_OF_EDITS else "refused"
        return CheckResult(check, family, outcome, str(fault), **known)
    except Exception as fault:  # noqa: BLE001 - whatever the author's code raises is what is reported
        return CheckResult(check, family, "failed", f"{type(fault).__name__}: {fault}", **known)
    return CheckResult(check, family, "passed", **known)


def _seams(eraser: Eraser) -> str:
    return ", ".join(sorted(seam.value for seam in eraser.seams))


def _trained(trainer: Trainer, eraser: Eraser, pipe: Any, concept: str, path: Path) -> Path:
    """The file of an adapter of a few updates on a tiny pipeline, for one concept."""
    from safeguard.policy import Concept
    from safeguard.sdk.adapter import Adapter
    from safeguard.training import Task

    if not trainer.prompts or trainer.needs:
        raise SafeguardError(
            f"trainer {trainer.name!r} needs more than prompts; give check_eraser a function as params that makes the adapter"
        )
    few = {name: 2.0 for name in ("updates", "steps") if name in trainer.options()}
    policy = policy_of(Concept(concept, phrases=(concept,), eraser=eraser.name))
    prompts = ("a red boat", "a green tree", "a house on a hill", "a dog in the snow")
    adapter = trainer.run(Task(pipe, policy, count=len(prompts), batch=2, settings=few, prompts=prompts))
    if not isinstance(adapter, Adapter):
        raise SafeguardError(f"trainer {trainer.name!r} makes no adapter but a {type(adapter).__name__}")
    adapter.save(path)
    return path
