"""Every registered eraser on every family.

Most tests swap their policy into a guard that lasts as long as their module (`guarded`, `watched`, `compiled`), since a swap
takes a tenth of the time of a new `protect`. The fixture ``own`` is for tests that change their pipeline or test `protect`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import safeguard
from safeguard.audit import MemorySink
from safeguard.errors import CapabilityError
from safeguard.plan.registry import GROUP, Registry
from safeguard.policy import Policy
from safeguard.sdk.adapter import Adapter
from safeguard.sdk.delta_eraser import factorise
from safeguard.training.delta_hooks import layers_of
from safeguard.training.frozen_pipeline import FrozenPipeline
from tests.support import acme_erasers
from tests.support.contract_policies import calibrated, concept, policy, protecting, rows_changed
from tests.support.families import FAMILIES, PROMPTS, denoiser, generate, part
from tests.support.guarded import Guarded
from tests.support.installed_adapters import install_adapters

Protect = Callable[..., safeguard.Guard]
OfFamily = Callable[..., Guarded]
REFUSALS: Mapping[str, Mapping[str, Sequence[str]]] = json.loads(Path(__file__).with_name("refusals.json").read_text("utf-8"))
"""Of the tests in which an eraser may act or refuse: by test and family, the erasers that refuse. All others act."""
CONCEPTS = ("blood", "weapon", "bird")  # that these tests name


def acme_points() -> list[EntryPoint]:
    return [EntryPoint(kind.name, f"tests.support.acme_erasers:{kind.__name__}", GROUP) for kind in acme_erasers.ERASERS]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_families(*names): run on these families only")
    config.addinivalue_line("markers", "only_erasers(*names): run with these erasers only")
    config.addinivalue_line("markers", "in_sample(*names): without --all-products, run with these parameters only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``eraser`` and ``family`` are every one there is, unless a test marks fewer by ``only_erasers`` and ``only_families``."""
    if "eraser" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("only_erasers")
        erasers = mark.args if mark else [*Registry().names, *(point.name for point in acme_points())]
        metafunc.parametrize("eraser", list(erasers))
    if "family" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("only_families")
        metafunc.parametrize("family", mark.args if mark else list(FAMILIES))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--all-products``, a fixed sample of the products of a family and something else: every eraser, way of
    offloading and so on on one family, and ``eiup`` on every one; where a test marks fewer by ``in_sample``, only these.
    """
    if config.getoption("--all-products"):
        return
    products = {id(item): _product(item) for item in items}
    families: dict[str, set[str]] = {}
    for product in products.values():
        if product is not None:
            families.setdefault(product[0], set()).add(product[1])

    def is_left_out(item: pytest.Item) -> bool:
        mark, product = item.get_closest_marker("in_sample"), products[id(item)]
        if mark and not set(mark.args) & set(_ids(item)):
            return True
        if product is None:
            return False
        test, family, others = product
        own = sorted(families[test])
        return others != "eiup" and family != own[zlib.crc32(others.encode()) % len(own)]

    left_out = {id(item) for item in items if is_left_out(item)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
    items[:] = [item for item in items if id(item) not in left_out]


def _ids(item: pytest.Item) -> list[str]:
    """What stands in the brackets of a test's name."""
    return item.nodeid.partition("[")[2].rstrip("]").split("-")


def _product(item: pytest.Item) -> tuple[str, str, str] | None:
    """Test function, family and its other parameters; None for a test of one family, or of nothing else."""
    family = getattr(getattr(item, "callspec", None), "params", {}).get("family", "")
    others = "-".join(part for part in _ids(item) if part != family)
    return (item.nodeid.partition("[")[0], family, others) if family and others else None


@pytest.fixture
def acts_or_refuses(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Every row changes, or the run is refused: which of the two, for this test, family and eraser, stands in REFUSALS. A
    refusal has to say ``saying``.
    """

    def check(run: Callable[[], torch.Tensor], unprotected: torch.Tensor, *, saying: str = "") -> None:
        params, test = request.node.callspec.params, request.node.originalname
        expected = params["eraser"] in REFUSALS.get(test, {}).get(params["family"], ())
        try:
            images = run()
        except CapabilityError as fault:
            refused, reason = True, str(fault)
        else:
            refused, reason = False, ""
            assert rows_changed(images, unprotected) == [True] * len(unprotected)
        if note := os.environ.get("SAFEGUARD_NOTE_REFUSALS"):
            with Path(note).open("a", encoding="utf-8") as file:
                file.write(json.dumps([test, params["family"], params["eraser"], refused]) + "\n")
            return
        assert not refused or re.search(saying, reason)
        assert refused == expected, "it was refused" if refused else "it was to be refused"

    return check


@pytest.fixture(scope="session")
def acme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metadata of an installed distribution that registers the erasers of ``acme_erasers``."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "acme_erasers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-erasers\nVersion: 1.0\n", "utf-8")
    lines = [f"{point.name} = {point.value}" for point in acme_points()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def acme_installed(acme_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(acme_folder))


@pytest.fixture(scope="session")
def pipes() -> Callable[[str], Any]:
    """The pipeline of a family, built once."""
    return functools.cache(lambda family: FAMILIES[family]())


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with what training would make for a family, drawn at random: of every family that was asked for."""
    folder, made = tmp_path_factory.mktemp("assets"), set[str]()

    def of(family: str) -> Path:
        if family not in made:
            made.add(family)
            for place, adapter in enumerate(untrained(FrozenPipeline(FAMILIES[family]()))):
                adapter.save(folder / f"{adapter.method}-{family}-{place}.safetensors")
        return folder

    return of


def untrained(frozen: FrozenPipeline) -> list[Adapter]:
    """What every training makes of the concepts that these tests name, drawn at random."""
    attachment, generator = frozen.attachment, torch.Generator().manual_seed(3)
    middle = attachment.middle
    assert middle is not None
    shape = middle.shape if len(middle.shape) == 3 else middle.shape[-1:]
    layers = [f"{frozen.name}.{name}" for name in layers_of(frozen, strict=False)]

    def drawn(method: str) -> dict[str, torch.Tensor]:
        if method == "self_discovery":
            return {"vector": torch.randn(shape, generator=generator)}
        widths = {name: attachment.weight(name).shape for name in layers}
        return factorise({name: 0.1 * torch.randn(width, generator=generator) for name, width in widths.items()}, 2)[0]

    said = {"module": middle.name, "sequence": list(CONCEPTS)}
    each = [(method, concept) for method in ("self_discovery", "sdd", "esd", "hfi") for concept in CONCEPTS]
    return [
        Adapter(method, attachment.fingerprint, drawn(method), {**said, "concept": concept})
        for method, concept in (*each, ("ccrt", ""))
    ]


@pytest.fixture(autouse=True)
def trained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an eraser that has to be trained finds for random weights, where those that are shipped are looked for."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    eraser = given.get("eraser")
    if eraser in ("self_discovery", "sdd", "esd", "hfi", "ccrt"):
        for family in {given.get("family", "sd1"), "sd2"}:  # some tests call the latter, too
            folder = request.getfixturevalue("adapters")(family)
        install_adapters(folder, monkeypatch)


def built(family: str, dtype: torch.dtype) -> Any:
    pipe = FAMILIES[family]()
    return pipe if dtype == torch.float32 else pipe.to(dtype=dtype)


def under_guard(protect: Protect, pipe: Any, policy: Policy, **options: Any) -> Guarded:
    sink = MemorySink()
    return Guarded(pipe, protect(pipe, policy, audit=sink, **options), sink)


@pytest.fixture(scope="module")  # a guard that outlived it would be met by the tests of other modules
def lasting() -> Iterator[OfFamily]:
    """A family's pipeline, of a dtype if one is named, under a guard with the screener that goes by words."""
    with protecting() as protect:

        def make(family: str, dtype: torch.dtype = torch.float32) -> Guarded:
            return under_guard(protect, built(family, dtype), policy(concept("blood")))

        yield functools.cache(make)


@pytest.fixture(scope="module")
def watched() -> Iterator[OfFamily]:
    """The same with a calibration in the screener's place: by evidence, weapons open in all of ``PROMPTS``, blood in the last
    one, and birds in none.
    """
    with protecting() as protect:
        yield functools.cache(lambda family: _calibrated(FAMILIES[family](), protect))


@pytest.fixture(scope="module")
def compiled() -> Iterator[OfFamily]:
    """The same as ``watched``, and its denoiser is compiled once."""
    with protecting() as protect:
        yield functools.cache(lambda family: _calibrated(FAMILIES[family](), protect, compiles=True))


def _calibrated(pipe: Any, protect: Protect, *, compiles: bool = False) -> Guarded:
    adaptive = policy(*(concept(name, activation="adaptive") for name in CONCEPTS))
    calibration = calibrated(pipe, adaptive, {"blood": (2,), "weapon": (0, 1, 2)})
    if compiles:
        setattr(pipe, part(pipe), torch.compile(denoiser(pipe), backend="eager", fullgraph=True))
    return under_guard(protect, pipe, adaptive, screener=None, calibration=calibration)


@pytest.fixture
def guarded(lasting: OfFamily, family: str) -> Guarded:
    return lasting(family)


@pytest.fixture
def own(family: str) -> Any:
    """A pipeline that the test may spoil."""
    return FAMILIES[family]()


@pytest.fixture
def pipe(pipes: Callable[[str], Any], family: str) -> Any:
    return pipes(family)


@pytest.fixture(scope="session")
def plain() -> Callable[..., torch.Tensor]:
    """What a family's pipeline gives unprotected: painted once, by one of its own, which no test protects."""
    pipes: dict[Any, Any] = {}
    made: dict[str, torch.Tensor] = {}

    def of(
        family: str, prompts: Sequence[str] = PROMPTS, *, dtype: torch.dtype = torch.float32, **options: Any
    ) -> torch.Tensor:
        key = repr((family, tuple(prompts), dtype, sorted(options.items())))
        if key not in made:
            if (family, dtype) not in pipes:
                pipes[family, dtype] = built(family, dtype)
            made[key] = generate(pipes[family, dtype], prompts, **options)
        return made[key]

    return of


@pytest.fixture
def protect() -> Iterator[Protect]:
    with protecting() as protect:
        yield protect
