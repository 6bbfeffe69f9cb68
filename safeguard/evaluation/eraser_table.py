"""Every eraser in one table: what it erases and leaves of the concepts it can take, what it costs, and several at once."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safeguard.errors import AssetError, CapabilityError
from safeguard.evaluation.arms import UNPROTECTED, Arm, ArmMethod, arms, at_once
from safeguard.evaluation.harness import Harness
from safeguard.evaluation.peak_memory import peak_bytes
from safeguard.evaluation.prompt_sets import BENIGN, USUAL
from safeguard.evaluation.run import shipped_files
from safeguard.evaluation.summary import SummaryRow, by_judge
from safeguard.evaluation.tables import briefly, from_json, number, percent
from safeguard.evaluation.tables import markdown as rows_markdown
from safeguard.instrument import OFFERED, Attachment
from safeguard.plan.compile import Plan, compile_plan
from safeguard.plan.registry import Registry
from safeguard.policy import Policy
from safeguard.sdk.adapter import WORD, Adapter

if TYPE_CHECKING:
    from rich.console import Group

SCHEMA: Final = "safeguard.dev/erasers/v1"
COUNTS: Final = (1, 3, 5)  # concepts that are active at once
_AT_ONCE: Final = "{} at once"
FEW: Final = 4  # pictures of a call whose memory and time are measured
ROUNDS: Final = 3  # such calls
COSTS: Final = ("peak memory", "preparation", "held", "on disk", "training")
HEAD: Final = (
    "method", "explicit", "implicit", "benign", "attributes kept", "benign SSIM", "time", *COSTS,
)  # fmt: skip
_FOLDER: Final = re.compile(r"[^\s:]*/(?=[^\s/]+\.safetensors)")  # where a file lay is nobody else's business
BRIEF: Final = ("method", "explicit", "implicit", "kept", "SSIM", "time")


@dataclass(frozen=True, slots=True)
class Cost:
    """What an eraser takes: ``prepare`` seconds until a concept's edits are made, ``held`` bytes of tensors in them, ``kept``
    bytes of what training made for it, and ``training`` processor seconds that this took, each the mean of the concepts that it
    ``takes``. ``memory`` is what a call holds at its peak and ``time`` what it takes of the
    processor, as multiples of an unprotected one's, with the first of these concepts. ``refused`` says of the others, and of so
    many at once as it does not take, why not. None: not known.
    """

    method: str
    takes: tuple[str, ...]
    prepare: float = 0.0
    held: float = 0.0
    kept: float = 0.0
    refused: Mapping[str, str] = field(default_factory=dict)
    memory: float | None = None
    time: float | None = None
    training: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def chosen(text: str) -> list[ArmMethod]:
    """Methods by ``all`` (every registered eraser, at the word ``strong``) and names as `Method.parse` reads them, of which a
    later one takes the place of an earlier one of the same eraser. Raises SafeguardError for text that is no method.
    """
    methods: dict[str, ArmMethod] = {}
    for word in (word.strip() for word in text.split(",") if word.strip()):
        some = [ArmMethod(name) for name in Registry().names] if word == "all" else [ArmMethod.parse(word)]
        methods.update({method.eraser: method for method in some})
    return [methods[name] for name in sorted(methods)]


def shipped_words(methods: Sequence[ArmMethod]) -> list[Path]:
    """The files of learned words that come with the erasers of these methods."""
    registry = Registry()
    names = dict.fromkeys(method.eraser for method in methods)
    return [path for name in names for path in shipped_files(registry.get(name)) if path.name.endswith(WORD)]


def costs(
    studio: Harness,
    methods: Sequence[ArmMethod],
    concepts: Sequence[str],
    *,
    base: Policy | None = None,
    words: Mapping[str, int] | None = None,
    training: Mapping[str, float] | None = None,
) -> list[Cost]:
    """Compile every method for each concept alone, on the pipeline as it is, and paint a few pictures with the first.

    ``words`` are the sizes of the files of the learned words that the pipeline knows, by token; ``training`` the seconds that a
    concept took, by eraser.
    """
    attachment = Attachment(studio.pipe, studio.options)
    before = _call(studio, None)
    every_cost = []
    for method in methods:
        own = arms(method, concepts, ("alone",), base)
        cost = _cost(method, own, attachment, words or {})
        if cost.takes:
            cost = replace(cost, refused={**cost.refused, **_too_many(studio, method, cost.takes, base)})
            peak, seconds = _call(studio, next(arm.policy for arm in own if arm.concept == cost.takes[0]))
            after = _call(studio, None)
            plain = statistics.fmean((before[1], after[1]))
            cost = replace(cost, memory=peak / before[0], time=seconds / plain, training=(training or {}).get(method.eraser))
            before = after
        every_cost.append(cost)
    return every_cost


def _too_many(studio: Harness, method: ArmMethod, takes: Sequence[str], base: Policy | None) -> dict[str, str]:
    """Why no such number of concepts can be erased at once."""
    refused = {}
    for count in (count for count in COUNTS if count <= len(takes)):
        try:
            with studio.under(at_once(method, takes[:count], base).policy):
                pass
        except CapabilityError as fault:
            refused[_AT_ONCE.format(count)] = str(fault)
    return refused


def _call(studio: Harness, policy: Policy | None) -> tuple[int, float]:
    """What a few benign pictures take at once, and of the processor, after a call that warms up."""
    some, seconds = studio.prompt_set.cases(BENIGN, "dev", FEW), []
    with studio.under(policy):
        studio.paint(some)
        for _ in range(ROUNDS):
            begun = time.process_time()
            studio.paint(some)
            seconds.append(time.process_time() - begun)
        return peak_bytes(lambda: studio.paint(some), studio.pipe.device), statistics.median(seconds)


def _cost(method: ArmMethod, wanted: Sequence[Arm], attachment: Attachment, words: Mapping[str, int]) -> Cost:
    registry, plans, seconds, refused = Registry(), {}, [], {}
    for arm in wanted:
        assert arm.policy is not None
        assert arm.concept is not None
        begun = time.perf_counter()
        try:
            plans[arm.concept] = compile_plan(arm.policy, attachment, registry, OFFERED)
        except CapabilityError as fault:
            refused[arm.concept] = _FOLDER.sub("", str(fault))
        else:
            seconds.append(time.perf_counter() - begun)
    if not plans:
        return Cost(method.name, (), refused=refused)
    held = statistics.fmean(map(held_bytes, plans.values()))
    held_sizes = statistics.fmean(kept_bytes(plan, words) for plan in plans.values())
    return Cost(method.name, tuple(plans), statistics.fmean(seconds), held, held_sizes, refused)


def held_bytes(plan: Plan) -> int:
    """Of the tensors that a plan's edits hold, each once. Keys and values that a pipeline keeps for them are not theirs."""
    import torch

    storages = [tensor.untyped_storage() for tensor in _held(plan) if isinstance(tensor, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _held(plan: Plan) -> Iterator[Any]:
    """The tensors and texts that a plan's edits hold, in whatever objects of their own."""
    import torch

    seen: set[int] = set()
    waiting: list[Any] = list(plan.edits)
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (torch.Tensor, str)):
            yield item
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
        elif not isinstance(item, (bytes, type)) and not type(item).__module__.startswith("safeguard.instrument"):
            waiting += getattr(item, "__dict__", {}).values()
            waiting += [getattr(item, name) for kind in type(item).__mro__ for name in _slots(kind) if hasattr(item, name)]


def _slots(kind: type) -> Iterable[str]:
    named = getattr(kind, "__slots__", ())
    return (named,) if isinstance(named, str) else named


def kept_bytes(plan: Plan, words: Mapping[str, int]) -> int:
    """Of the files of training that a plan was made from: adapters that come with its erasers or that its policy names, and
    those of ``words`` (bytes by token) that its edits hold.
    """
    texts = [tensor for tensor in _held(plan) if isinstance(tensor, str)] if words else []
    total = sum(size for token, size in words.items() if any(token in text for text in texts))
    digests = set(plan.adapters.values())
    for planned in plan.concepts if digests else ():
        named = (Path(str(value)) for value in planned.concept.params.values())
        for path in {*shipped_files(planned.eraser), *(path for path in named if path.is_file())}:
            if not path.name.endswith(WORD) and Adapter.load(path, planned.eraser.name).digest in digests:
                total += path.stat().st_size
    return total


def arms_of(
    methods: Sequence[ArmMethod], costs_of_methods: Sequence[Cost], base: Policy | None = None, kinds: Sequence[str] = USUAL
) -> list[Arm]:
    """Each concept alone, always on, of those that a method takes, in cells of these ``kinds``; then 1, 3 and 5 of them at once
    on benign prompts.
    """
    every_arm: list[Arm] = []
    for method, cost in zip(methods, costs_of_methods, strict=True):
        if cost.takes:
            every_arm += arms(method, cost.takes, ("alone",), base, kinds)
            counts = [count for count in COUNTS if count <= len(cost.takes) and _AT_ONCE.format(count) not in cost.refused]
            every_arm += [at_once(method, cost.takes[:count], base) for count in counts]
    return every_arm


def markdown(data: Mapping[str, Any]) -> str:
    """Three tables: all concepts pooled with what a method costs; concept by concept; several at once."""
    return "\n".join([*(_lines_of(*table) for table in _tables(data)), *_refusals(data["costs"])])


def markdown_of(data: Mapping[str, Any], names: Collection[str]) -> str:
    """The rows of these erasers, each alone, below the unprotected ones of their concepts; of one that was refused, why.
    Raises AssetError for an eraser of which nothing is said there.
    """
    eraser_names = {method: ArmMethod.parse(method).eraser for method in (cost["method"] for cost in data["costs"])}
    unknown = set(names) - set(eraser_names.values())
    if unknown:
        raise AssetError(f"nothing was measured of {', '.join(sorted(unknown))}")
    costs = [cost for cost in data["costs"] if eraser_names[cost["method"]] in names]
    taken = {cost["method"] for cost in costs if cost["takes"]}
    rows = _rows_of(data)
    plain, own = (
        [row for row in rows if row.method in methods and row.mode in ("", "alone")] for methods in ((UNPROTECTED,), taken)
    )
    named: set[str | None] = {row.concept for row in own if row.concept is not None}
    if named >= {row.concept for row in plain if row.concept is not None}:
        named.add(None)  # over all concepts the two are the same pictures only where an eraser takes all
    shown = [*(row for row in plain if row.concept in named), *own]
    return "\n".join([*([rows_markdown(shown)] if own else []), *_refusals(costs)])


def _rows_of(data: Mapping[str, Any]) -> list[SummaryRow]:
    """The rows of results, with the time of a method where that was measured beside unprotected calls: their own cells may be
    of several runs. It is that of the whole, and of a single concept only where there are no others.
    """
    times = {cost["method"]: (cost.get("time"), len(cost["takes"]) == 1) for cost in data["costs"]}
    rows = []
    for row in from_json(data["rows"]):
        ratio, alone = times.get(row.method, (None, False))
        whole = alone or row.concept is None
        rows.append(row if ratio is None else replace(row, time=ratio if whole else math.nan))
    return rows


def _refusals(costs: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [f"- `{name}`, {', '.join(concepts)}: {why}" for name, reasons in _refused(costs) for why, concepts in reasons]
    return ["Refused here:\n", *lines, ""] if lines else []


def rich_tables(data: Mapping[str, Any], title: str) -> Group:
    """The same for a terminal of 80 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(title, style="bold"), Text("% of pictures, with 95 % intervals", style="dim")]
    for head, lines in _tables(data, short=True):
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold cyan")
        for place, name in enumerate(head):
            table.add_column(name, justify="right" if place else "left", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        parts += [Text(), table]
    for name, reasons in _refused(data["costs"]):
        parts += [Text(f"{name}, {', '.join(concepts)}: {reason}", style="yellow") for reason, concepts in reasons]
    return Group(*parts)


_Cells = tuple[Sequence[str], Sequence[Sequence[str]]]  # a head, and lines


def _tables(data: Mapping[str, Any], short: bool = False) -> list[_Cells]:
    rows, costs_of_methods = _rows_of(data), [Cost(**cost) for cost in data["costs"]]
    alone = [row for row in rows if row.mode in ("", "alone")]
    judges = dict.fromkeys(name for row in alone for name in row.judges)
    seen = [_by_concept([by_judge(row, name) for row in alone if name in row.judges], f", by {name}") for name in judges]
    return [*_pooled(alone, costs_of_methods, short), _by_concept(alone), *seen, _at_once(rows)]


def _refused(costs: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """By method, every reason with the concepts that were refused for it; what differs by their ids only is one reason."""
    refusals = []
    for cost in costs:
        reasons: dict[str, list[str]] = {}
        for concept, reason in cost["refused"].items():
            why = reason.removeprefix(f"concept {concept!r}: ").replace(concept, "ID")
            reasons.setdefault(why, []).append(concept)
        if reasons:
            every = len(reasons) == 1 and not cost["takes"]
            refusals.append((cost["method"], [(why, ["every concept"] if every else some) for why, some in reasons.items()]))
    return refusals


def _pooled(rows: Sequence[SummaryRow], costs_of_methods: Sequence[Cost], short: bool) -> list[_Cells]:
    """What a method erases and leaves, and what it costs: as two tables where the room is ``short``."""
    by_method = {cost.method: cost for cost in costs_of_methods}
    shown = [(row, _taken(by_method.get(row.method))) for row in _whole(rows)]
    if not short:
        return [(HEAD, [(*_fully(row), *taken) for row, taken in shown])]
    return [
        (BRIEF, [_briefly(row) for row, _ in shown]),
        (("method", *COSTS), [(row.method, *taken) for row, taken in shown if row.method in by_method]),
    ]


def _taken(cost: Cost | None) -> Sequence[str]:
    """In the order of `COSTS`."""
    if cost is None:
        return ("-",) * len(COSTS)
    memory, training = _known(cost.memory, "{:.2f}x"), _known(cost.training, "{:.0f} s")
    return (memory, f"{cost.prepare:.2f} s", f"{_size(cost.held)}B", f"{_size(cost.kept)}B", training)


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _fully(row: SummaryRow) -> Sequence[str]:
    shares = (percent(row.explicit), percent(row.implicit), percent(row.benign))
    return (row.method, *shares, f"{row.kept:.1%}", number(row.likeness), f"{row.time:.2f}x")


def _briefly(row: SummaryRow) -> Sequence[str]:
    figures = (f"{100 * row.kept:.0f}", f"{row.likeness.value:.3f}", f"{row.time:.2f}")
    return (row.method, briefly(row.explicit), briefly(row.implicit), *figures)


def _by_concept(rows: Sequence[SummaryRow], who: str = "") -> _Cells:
    concepts = list(dict.fromkeys(row.concept for row in rows if row.concept is not None))
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        own = {row.concept: row for row in rows if row.method == method}
        shown = [own.get(concept) for concept in concepts]
        lines.append((method, *("-" if row is None else _both(row) for row in shown)))
    return (f"explicit / implicit, %{who}", *concepts), lines


def _both(row: SummaryRow) -> str:
    return f"{100 * row.explicit.value:.0f} / {100 * row.implicit.value:.0f}"


def _at_once(rows: Sequence[SummaryRow]) -> _Cells:
    lines = []
    for method in dict.fromkeys(row.method for row in rows if row.mode.startswith("at-once")):
        own = {row.mode: row for row in rows if row.method == method}
        shown = [own.get(f"at-once-{count}") for count in COUNTS]
        lines.append((method, *("-" if row is None else f"{row.likeness.value:.3f}, {row.kept:.0%}" for row in shown)))
    return ("benign SSIM, attributes kept", *map(_AT_ONCE.format, COUNTS)), lines


def _whole(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """One row a method: over all of its concepts, or of the only one."""
    last: dict[str, SummaryRow] = {}
    for row in rows:
        if row.method not in last or row.concept is None:
            last[row.method] = row
    return list(last.values())


def _lines_of(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    lines_made = [f"| {' | '.join(line)} |" for line in (head, *lines)]
    return "\n".join([lines_made[0], "|---|" + "---:|" * (len(head) - 1), *lines_made[1:]]) + "\n"


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} M" if count >= 2**20 else f"{math.ceil(count / 1024)} k"
