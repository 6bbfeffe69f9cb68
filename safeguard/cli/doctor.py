"""``safeguard doctor``: how a pipeline would be protected by a policy, and what would be refused, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safeguard.cli.generate import PipelineOption, PolicyOption
from safeguard.cli.output import EXIT_UNEXPECTED, JsonOption, emit
from safeguard.errors import SafeguardError
from safeguard.policy import Policy, derive, load_policy

if TYPE_CHECKING:
    from safeguard.instrument import SelfTest, SelfTestResult
    from safeguard.plan.compile import Plan
    from safeguard.plan.registry import PluginInfo

app = typer.Typer()


@dataclass(frozen=True, slots=True)
class ConceptReport:
    """How one concept would be erased, tried on its own; ``refused`` says why it cannot be."""

    concept: str
    eraser: str
    strength: float | str
    activation: str
    action: str
    sites: int
    change: float | None
    refused: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` found. ``refused`` is why the policy as a whole cannot protect the pipeline, or empty."""

    pipeline: str
    denoisers: tuple[str, ...]
    text_sites: int
    mechanism: str  # how the text sites are served, with their number: "7 separate", "5 joint"
    pooled: bool  # whether the denoiser reads the text as one vector besides
    seams: tuple[str, ...]
    erasers: tuple[PluginInfo, ...]
    policy: str
    revision: str
    concepts: tuple[ConceptReport, ...]
    sites_reached: int
    change: float | None
    operations: float | None  # of one call of the denoiser with every concept on, as a multiple of the unprotected call's
    refused: str

    @property
    def protected(self) -> bool:
        return not self.refused


@app.command()
def doctor(pipeline: PipelineOption = "unet", policy: PolicyOption = "builtin://demo", json_output: JsonOption = False) -> None:
    """Say how a pipeline would be protected by a policy: seams, self-test, erasers, and every concept tried on its own.

    Nothing is left attached. Exit 1 where the policy would be refused.
    """
    from safeguard.evaluation.harness import quiet_libraries
    from safeguard.evaluation.pipeline_sources import load_pipeline

    chosen = load_policy(policy)
    quiet_libraries()
    diagnosis = diagnose(load_pipeline(pipeline), chosen)
    emit({"protected": diagnosis.protected, "diagnosis": diagnosis}, json_output, lambda console: _render(diagnosis, console))
    if not diagnosis.protected:
        raise typer.Exit(EXIT_UNEXPECTED)


def diagnose(pipe: Any, policy: Policy) -> Diagnosis:
    """Try ``policy``, and each of its concepts on its own, on a live pipeline. Raises nothing that it can report."""
    from safeguard.instrument import OFFERED, Attachment, SelfTest
    from safeguard.plan.registry import Registry

    registry = Registry()
    erasers = tuple(registry.inventory())
    bare = Diagnosis(type(pipe).__name__, (), 0, "", False, (), erasers, policy.name, policy.revision, (), 0, None, None, "")
    try:
        attachment = Attachment(pipe)
        attachment.install()
    except SafeguardError as fault:
        return _with(bare, refused=str(fault))
    try:
        seams = tuple(sorted(seam.value for seam in OFFERED))
        names = tuple(f"{name} ({type(module).__name__})" for name, module in attachment.denoisers.items())
        read = {"mechanism": attachment.mechanism, "pooled": attachment.reads_pooled}
        bare = _with(bare, denoisers=names, text_sites=len(attachment.sites), seams=seams, **read)
        probe = SelfTest(attachment)
        concepts = tuple(_try_concept(policy, name, attachment, registry, probe) for name in policy.concepts)
        plan, result, refused = _try(policy, attachment, registry, probe)
        if plan is None or result is None:
            return _with(bare, concepts=concepts, refused=refused)
        acts = {"sites_reached": result.reached, "change": result.change, "operations": probe.operations(plan)}
        return _with(bare, concepts=concepts, **acts)
    except SafeguardError as fault:
        return _with(bare, refused=str(fault))
    finally:
        attachment.remove()


def _with(diagnosis: Diagnosis, **changes: Any) -> Diagnosis:
    from dataclasses import replace

    return replace(diagnosis, **changes)


def _try_concept(policy: Policy, name: str, attachment: Any, registry: Any, probe: SelfTest) -> ConceptReport:
    concept = policy.concepts[name]
    _, result, refused = _try(derive(policy, concepts=[name]), attachment, registry, probe)
    sites, change = (result.reached, result.change) if result else (0, None)
    return ConceptReport(name, concept.eraser, concept.strength, concept.activation, concept.action, sites, change, refused)


def _try(policy: Policy, attachment: Any, registry: Any, probe: SelfTest) -> tuple[Plan | None, SelfTestResult | None, str]:
    """Compile and self-test: the plan and what the self-test saw, or why it was refused."""
    from safeguard.instrument import OFFERED
    from safeguard.plan.compile import compile_plan

    try:
        plan = compile_plan(policy, attachment, registry, OFFERED)
        return plan, probe.test(plan), ""
    except SafeguardError as fault:
        return None, None, str(fault)


_SAID = {
    "separate": "by cross-attention (hooks on its layers)",
    "joint": "by an attention that is served as a whole (the tap on torch's attention)",
}


def _spelled(mechanism: str) -> str:
    for kind, spelling in _SAID.items():
        mechanism = mechanism.replace(kind, spelling)
    return mechanism or "none"


def _render(diagnosis: Diagnosis, console: Console) -> None:
    facts = Table.grid(padding=(0, 2))
    facts.add_row("pipeline", diagnosis.pipeline)
    facts.add_row("denoiser", ", ".join(diagnosis.denoisers) or "none found")
    facts.add_row("text sites", _spelled(diagnosis.mechanism))
    facts.add_row("pooled text", "read as well" if diagnosis.pooled else "none")
    facts.add_row("seams offered", ", ".join(diagnosis.seams) or "none")
    facts.add_row("policy", f"{diagnosis.policy}, revision {diagnosis.revision[:12]}")
    console.print(facts)
    erasers = Table("eraser", "version", "from", "can be used here", box=box.SIMPLE_HEAD, pad_edge=False)
    for info in diagnosis.erasers:
        lacking = sorted(set(info.seams) - set(diagnosis.seams))
        state = info.error or (f"no: needs the seam {', '.join(lacking)}" if lacking else "yes")
        erasers.add_row(info.name, info.version, info.distribution, Text(state, style="green" if state == "yes" else "red"))
    console.print(erasers)
    table = Table("concept", "eraser", "strength", "activation", "action", "self-test", box=box.SIMPLE_HEAD, pad_edge=False)
    for report in diagnosis.concepts:
        table.add_row(report.concept, report.eraser, str(report.strength), report.activation, report.action, _verdict(report))
    console.print(table)
    for reason in dict.fromkeys(
        report.refused for report in diagnosis.concepts if report.refused and report.refused != diagnosis.refused
    ):
        names = ", ".join(report.concept for report in diagnosis.concepts if report.refused == reason)
        console.print(Text.assemble((f"{names}: ", "bold red"), reason), soft_wrap=True)
    if diagnosis.refused:
        console.print(Text.assemble(("refused ", "bold red"), diagnosis.refused), soft_wrap=True)
    else:
        share = f"with every concept on, the denoiser's output changes by {100 * (diagnosis.change or 0):.2f} %"
        share += f" and takes {diagnosis.operations:.3f} times the operations" if diagnosis.operations else ""
        console.print(
            Text.assemble(("protected ", "bold green"), f"{diagnosis.sites_reached} text sites reached; {share}"),
            soft_wrap=True,
        )


def _verdict(report: ConceptReport) -> Text:
    if report.refused:
        return Text("refused", style="red")
    if not report.change:
        return Text("nothing to erase (off, flagged only, or strength 0)", style="dim")
    return Text(f"acts, {100 * report.change:.2f} %", style="green")
