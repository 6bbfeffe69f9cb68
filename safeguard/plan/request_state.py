"""What is active in the request that is running: one object, held by one ContextVar, never on modules that requests share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from safeguard.plan.compile import Plan
from safeguard.plan.detectors import ProbeRun, ResidualRun
from safeguard.sdk.edit_memory import Cells, EditMemory, RowCells
from safeguard.sdk.seams import Edit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a denoiser call: the image it belongs to (None: unknown), and whether it is an unconditional twin."""

    image: int | None
    unconditional: bool = False


@dataclass(eq=False)
class _Stretch:
    """What the acts at text sites in one step found, summed on the device."""

    mass: Any = None  # [R, C]
    change: Any = None  # [R]
    count: int = 0


@dataclass(eq=False)
class ActiveEdit:
    """An edit with the rows and concepts that it acts on, and the evidence of its acts, summed on the device."""

    edit: Any  # the edit, narrowed to the active concepts where it can be
    rows: Sequence[int]
    images: Sequence[int | None]  # one a row
    index: slice | Tensor  # of the rows
    columns: Sequence[int]  # of the plan
    strengths: Tensor  # [R, C]
    memory: EditMemory = field(default_factory=EditMemory.empty)  # what it keeps from call to call of a request
    course: dict[int, _Stretch] = field(default_factory=dict)  # by step
    sites: set[int] = field(default_factory=set)
    first: int = -1
    last: int = -1
    tried: bool = False  # whether a call was made again for what it had learnt
    answered: bool = False  # whether it was asked and did not fail, though it may have found nothing to do

    def forget(self, step: int) -> None:
        """What it did in this step does not stand: the call is made again."""
        self.course.pop(step, None)

    def answer(self, step: int, *, acted: bool) -> None:
        """It was asked in this step. Where it found nothing to do, that is no act, and no fault either."""
        self.answered = True
        if acted:
            self.note(step)

    def note(self, step: int, site: int | None = None, change: Tensor | None = None, mass: Tensor | None = None) -> None:
        """Add the evidence of one act: relative ``change`` [R] and attention ``mass`` [R, C] at a text site."""
        self.first = step if self.first < 0 else self.first
        self.last = step
        if site is None:
            return
        self.sites.add(site)
        stretch = self.course.setdefault(step, _Stretch())
        stretch.count += 1
        if change is not None:
            stretch.change = change if stretch.change is None else stretch.change + change
        if mass is not None:
            stretch.mass = mass if stretch.mass is None else stretch.mass + mass


@dataclass(frozen=True, slots=True)
class AppliedEffect:
    """What one concept's erasure did in one image: mean attention mass (None: the method measures none), mean relative
    change of the output at the text sites, how many sites, and the first and last step. ``course`` has the mass step by step,
    (step, mass), and is empty where none is measured.
    """

    mass: float | None
    change: float | None
    sites: int
    first: int
    last: int
    course: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class RequestFacts:
    """What is settled before the denoiser runs. ``strengths`` [images][concepts of the plan]; ``texts`` one an image.

    ``host`` is the number of the attachment that it runs on: no other pipeline that is called meanwhile follows it.
    ``direct`` marks a call from outside every request: nothing is known of its rows, so they get the whole policy.
    """

    plan: Plan
    strengths: Sequence[Sequence[float]]
    host: int
    texts: Sequence[str | None] = ()
    negative_texts: Sequence[str | None] = ()
    skip_errors: bool = False
    direct: bool = False
    whole: bool = False  # every concept counts as within its steps: for the self-test
    trial: bool = False  # the self-test: an edit is called at strength 0 as well, and what it raises is told as its own
    guided: bool = True  # whether guidance leads away from the unconditional branch; if not, its rows are like any other
    scheduler: Any = None  # whose timesteps the calls go through
    maps: dict[tuple[int, int], Any] | None = None  # filled with (image, column) -> mass per pixel, where asked for


@dataclass(slots=True, eq=False)
class RunLog:
    """What happened in a request so far, and where in its schedule it stands."""

    calls: int = 0  # of the denoiser, as its hooks saw them
    visits: int = 0  # of text sites, as their hooks saw them
    unmatched: int = 0  # calls with rows whose text no encode_prompt of this request gave
    acts: list[ActiveEdit] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    step: int = -1  # of the last call of the denoiser that began
    progress: float = 0.0  # the same as a share of the schedule
    first_step: int = -1  # of this run: image-to-image begins late in its schedule


@dataclass(slots=True, eq=False)
class CallFrame:
    """One call of a denoiser: made when it begins and dropped when it ends."""

    rows: tuple[Row, ...]
    values: Any = None  # its arguments as they were given; None where they are not all known
    edited: Any = None  # the same as the text-states edits left them
    grid: tuple[int, int] | None = None  # height and width of the latent, for the heat maps
    looks: bool = False  # whether evidence is taken in it
    rereads: bool = False  # whether it is read what concepts that acted have left
    reached: set[str] = field(default_factory=set)  # the modules with edits that were run in it
    site_edits: dict[tuple[Row, ...], list[ActiveEdit]] = field(default_factory=dict)  # by the rows of a site's batch


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The times that a request goes through. ``places``: of a time that comes twice, the first."""

    times: Tensor | None
    places: Mapping[float, int]
    length: int


@dataclass(slots=True, eq=False)
class RequestCaches:
    """What a request works out once, or keeps from one call of the denoiser to the next."""

    positive: list[Any] = field(default_factory=list)  # what encode_prompt gave: [n, L, D] or a list of [L, D] each
    negative: list[Any] = field(default_factory=list)
    encodings: int = 0  # how many times the pipeline has encoded
    active: dict[tuple[Any, ...], ActiveEdit | None] = field(default_factory=dict)  # by edit, rows, window and device
    memories: dict[tuple[int, str], tuple[Cells, RowCells, dict[str, Any]]] = field(default_factory=dict)  # by edit, denoiser
    rows: dict[tuple[Any, ...], tuple[tuple[Row, ...], Tensor]] = field(default_factory=dict)  # by the stamp of the text
    arrangements: set[tuple[Row, ...]] = field(default_factory=set)  # of rows, as the first step had them
    schedule: Schedule | None = None
    moments: dict[float, int] = field(default_factory=dict)  # the order in which times came that are in no schedule
    stamps: dict[str, Any] = field(default_factory=dict)  # of a denoiser's weights, by its name
    shapes: Any = None  # where the text stands at joint sites in the last call
    texts: dict[tuple[str, tuple[str, ...], tuple[str | None, ...]], list[Any]] = field(default_factory=dict)  # encoded
    tried: set[tuple[str, ...]] = field(default_factory=set)  # in a self-test: edits that were called at strength 0 as well

    def memory(
        self, edit: Edit, images: Sequence[int | None], columns: Sequence[int], rows: Sequence[int], denoiser: str = ""
    ) -> EditMemory:
        """What an edit keeps for these images, columns and rows; of its own in each denoiser that is named."""
        cells, row_cells, shared = self.memories.setdefault((id(edit), denoiser), ({}, {}, {}))
        return EditMemory(cells, images, columns, rows, row_cells, shared)


@dataclass(slots=True, eq=False)
class RequestState:
    """One call of a pipeline under one plan: what is settled, what happened, and the denoiser call that is under way."""

    facts: RequestFacts
    watching: ProbeRun | None = None  # for the concepts that evidence may open
    residual: ResidualRun | None = None  # for what they leave
    log: RunLog = field(default_factory=RunLog)
    caches: RequestCaches = field(default_factory=RequestCaches)
    frame: CallFrame | None = None  # None between calls of the denoiser

    @property
    def plan(self) -> Plan:
        return self.facts.plan

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the denoiser call that is under way; none where nothing is known of it."""
        return () if self.frame is None else self.frame.rows

    @property
    def looks(self) -> bool:
        """Whether evidence is taken in the call that is under way."""
        return self.frame is not None and self.frame.looks

    @property
    def rereads(self) -> bool:
        """Whether it is read in the call that is under way what concepts that acted have left."""
        return self.frame is not None and self.frame.rereads

    @property
    def turns(self) -> tuple[int, int]:
        """How many times evidence has opened something, and how many times what was left has raised a strength: what is active
        changes with both.
        """
        return 0 if self.watching is None else self.watching.openings, 0 if self.residual is None else self.residual.rises

    def within(self, column: int) -> bool:
        """Whether a concept is within its steps now."""
        start, stop = self.plan.concepts[column].concept.steps
        return self.frame is None or self.facts.whole or start <= self.log.progress < stop

    def window(self, edit: Edit) -> tuple[bool, ...]:
        """Which of the edit's concepts are within their steps now."""
        return tuple(self.within(self.plan.columns[concept]) for concept in edit.concepts)

    def strength(self, row: Row, column: int) -> float:
        """How strongly a concept acts in a row now: 0 outside its steps; unknown rows get the whole policy."""
        if not self.within(column):
            return 0.0
        if row.image is None or row.image >= len(self.facts.strengths):
            return self.plan.concepts[column].strength.value
        concept, strength = self.plan.concepts[column].concept.id, self.facts.strengths[row.image][column]
        if not strength and self.watching is not None:
            strength = self.watching.strength(row.image, concept)
        return strength if self.residual is None else strength * self.residual.times(row.image, concept)

    def acts_in(self, image: int, concept: str) -> bool:
        """Whether a concept acts in an image, within its steps."""
        column = self.plan.columns[concept]
        given = self.facts.strengths[image][column] if image < len(self.facts.strengths) else 0.0
        return given > 0 or (self.watching is not None and self.watching.strength(image, concept) > 0)

    def evidence(self) -> dict[tuple[int, int], AppliedEffect]:
        """What was done, by (image, column). Brings the sums from the device."""
        tallies: defaultdict[tuple[int, int], _Tally] = defaultdict(_Tally)
        for act in self.log.acts:
            if act.first < 0:
                continue
            strengths = act.strengths.tolist()
            stretches = [
                (step, stretch.count, _listed(stretch.mass), _listed(stretch.change)) for step, stretch in act.course.items()
            ]
            for place, image in enumerate(act.images):
                for spot, column in enumerate(act.columns):
                    if image is not None and strengths[place][spot] > 0:
                        tally = tallies[image, column]
                        tally.reached(act)
                        for step, count, mass, change in stretches:
                            tally.add(
                                step,
                                count,
                                None if mass is None else mass[place][spot],
                                None if change is None else change[place],
                            )
        return {key: tally.evidence() for key, tally in tallies.items()}

    def asked(self, image: int, column: int) -> bool:
        """Whether an edit of a concept acted in an image, or was asked and found nothing to do."""
        for act in self.log.acts:
            if (act.answered or act.first >= 0) and column in act.columns and image in act.images:
                strengths = act.strengths[:, list(act.columns).index(column)].tolist()
                if any(strengths[place] > 0 for place, row_image in enumerate(act.images) if row_image == image):
                    return True
        return False

    def active(
        self, edit: Edit, rows: Sequence[Row], *, unconditional: bool = False
    ) -> tuple[list[int], list[int], list[list[float]]]:
        """Rows and columns in which an edit acts, with the strengths [R][C].

        Acts on conditional and unknown rows, or (``unconditional``) on the unconditional twins of the active images.
        """
        columns = [self.plan.columns[concept] for concept in edit.concepts]
        table = [
            [self.strength(row, column) for column in columns] if row.unconditional == unconditional else [0.0] * len(columns)
            for row in rows
        ]
        picked = [index for index, line in enumerate(table) if any(line)]
        used = [place for place in range(len(columns)) if any(table[index][place] for index in picked)]
        return picked, used, [[table[index][place] for place in used] for index in picked]


@dataclass(eq=False)
class _Tally:
    """The evidence of one concept in one image, summed over the stretches of a run in which the active rows were the same."""

    masses: dict[int, tuple[float, int]] = field(default_factory=dict)  # by step: sum and number
    change: float = 0.0
    changes: int = 0
    sites: set[int] = field(default_factory=set)
    steps: list[int] = field(default_factory=list)

    def reached(self, act: ActiveEdit) -> None:
        self.sites |= act.sites
        self.steps += [act.first, act.last]

    def add(self, step: int, count: int, mass: float | None, change: float | None) -> None:
        if mass is not None:
            total, number = self.masses.get(step, (0.0, 0))
            self.masses[step] = total + mass, number + count
        if change is not None:
            self.change, self.changes = self.change + change, self.changes + count

    def evidence(self) -> AppliedEffect:
        totals = list(self.masses.values())
        number = sum(count for _, count in totals)
        return AppliedEffect(
            sum(total for total, _ in totals) / number if number else None,
            self.change / self.changes if self.changes else None,
            len(self.sites),
            min(self.steps),
            max(self.steps),
            tuple((step, total / count) for step, (total, count) in sorted(self.masses.items())),
        )


def _listed(sums: Any) -> Any:
    return None if sums is None else sums.tolist()


@dataclass(frozen=True, slots=True, eq=False)
class RunContext:
    """Whose calls run in this context. ``direct`` is a denoiser call from outside every request; where ``quiet``, passes of the
    guard's own go on, and no hook does anything.
    """

    request: RequestState | None = None
    direct: RequestState | None = None
    quiet: bool = False


_NOTHING: Final = RunContext()
_CONTEXT: Final[ContextVar[RunContext]] = ContextVar("safeguard_context", default=_NOTHING)


def current_context() -> RunContext:
    """What runs in this context."""
    return _CONTEXT.get()


def current_request() -> RequestState | None:
    """The request that runs in this context, or None outside every guarded call."""
    return _CONTEXT.get().request


@contextmanager
def request_scope(state: RequestState) -> Iterator[RequestState]:
    """Make ``state`` the running request of this context; what was there before comes back, whatever happens."""
    token = _CONTEXT.set(replace(_CONTEXT.get(), request=state))
    try:
        yield state
    finally:
        _CONTEXT.reset(token)


@contextmanager
def quiet() -> Iterator[None]:
    """Passes of the guard's own go on inside: no hook does anything."""
    token = _CONTEXT.set(replace(_CONTEXT.get(), quiet=True))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def set_direct(state: RequestState | None) -> None:
    """Note the denoiser call from outside every request that begins here; None: it is over."""
    context = _CONTEXT.get()
    if context.direct is not state:
        _CONTEXT.set(replace(context, direct=state))
