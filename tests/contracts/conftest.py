"""Every registered eraser on every family. A session builds each pipeline once; a test that protects it gives it back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import safeguard
from safeguard.errors import CapabilityError
from safeguard.plan.registry import GROUP, Registry
from safeguard.sdk.adapter import Adapter
from safeguard.sdk.delta_eraser import factorise
from safeguard.training.delta_hooks import layers_of
from safeguard.training.frozen_pipeline import FrozenPipeline
from tests.support import acme_erasers
from tests.support.contract_policies import calibrated, concept, policy, protecting, rows_changed
from tests.support.families import FAMILIES, PROMPTS, denoiser, generate, part
from tests.support.installed_adapters import install_adapters

Protect = Callable[..., safeguard.Guard]
REFUSALS: Mapping[str, Mapping[str, Sequence[str]]] = json.loads(Path(__file__).with_name("refusals.json").read_text("utf-8"))
"""Of the tests in which an eraser may act or refuse: by test and family, the erasers that refuse. All others act."""
CONCEPTS = ("blood", "weapon", "fish")  # that these tests name


def acme_points() -> list[EntryPoint]:
    return [EntryPoint(kind.name, f"tests.support.acme_erasers:{kind.__name__}", GROUP) for kind in acme_erasers.ERASERS]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_families(*names): run on these families only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``eraser`` and ``family`` are every one there is, unless a test marks fewer families by ``only_families``."""
    if "eraser" in metafunc.fixturenames:
        metafunc.parametrize("eraser", [*Registry().names, *(point.name for point in acme_points())])
    if "family" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("only_families")
        metafunc.parametrize("family", mark.args if mark else list(FAMILIES))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--all-products``, a fixed sample of the products: every eraser on one family, and ``eiup`` on every one."""
    if config.getoption("--all-products"):
        return
    products = [item for item in items if {"eraser", "family"} <= set(getattr(getattr(item, "callspec", None), "params", ()))]
    families: dict[str, list[str]] = {}
    for item in products:
        known = families.setdefault(_test_of(item), [])
        if item.callspec.params["family"] not in known:
            known.append(item.callspec.params["family"])
    erasers = sorted({item.callspec.params["eraser"] for item in products})

    def is_left_out(item: pytest.Item) -> bool:
        own, eraser = families[_test_of(item)], item.callspec.params["eraser"]
        turn = erasers.index(eraser) % len(own)
        return eraser != "eiup" and item.callspec.params["family"] != sorted(own)[turn]

    left_out = {id(item) for item in products if is_left_out(item)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
    items[:] = [item for item in items if id(item) not in left_out]


def _test_of(item: pytest.Item) -> str:
    """A test function, whatever its parameters."""
    return item.nodeid.partition("[")[0]


@pytest.fixture
def acts_or_refuses(request: pytest.FixtureRequest) -> Callable[[Callable[[], torch.Tensor], torch.Tensor], None]:
    """Every row changes, or the run is refused: which of the two, for this test, family and eraser, stands in REFUSALS."""

    def check(run: Callable[[], torch.Tensor], unprotected: torch.Tensor) -> None:
        params, test = request.node.callspec.params, request.node.originalname
        expected = params["eraser"] in REFUSALS.get(test, {}).get(params["family"], ())
        try:
            images = run()
        except CapabilityError:
            refused = True
        else:
            refused = False
            assert rows_changed(images, unprotected) == [True] * len(unprotected)
        if note := os.environ.get("SAFEGUARD_NOTE_REFUSALS"):
            with Path(note).open("a", encoding="utf-8") as file:
                file.write(json.dumps([test, params["family"], params["eraser"], refused]) + "\n")
            return
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
    made: dict[str, Any] = {}

    def of(family: str) -> Any:
        if family not in made:
            made[family] = FAMILIES[family]()
        return made[family]

    return of


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


@pytest.fixture(scope="module")  # a guard that outlived it would be met by the tests of other modules
def compiled() -> Iterator[Callable[[str], tuple[Any, safeguard.Guard]]]:
    """The pipeline of a family whose denoiser is compiled once, with a guard that lasts: what a test needs is swapped in. By
    evidence, blood opens in the last of ``PROMPTS``, and fish in none.
    """
    made: dict[str, tuple[Any, safeguard.Guard]] = {}
    with protecting() as protect:

        def of(family: str) -> tuple[Any, safeguard.Guard]:
            if family not in made:
                pipe = FAMILIES[family]()
                both = policy(concept("blood", activation="adaptive"), concept("fish", activation="adaptive"))
                calibration = calibrated(pipe, both, {"blood": (2,)})
                setattr(pipe, part(pipe), torch.compile(denoiser(pipe), backend="eager", fullgraph=True))
                made[family] = pipe, protect(pipe, both, screener=None, calibration=calibration)
            return made[family]

        yield of


@pytest.fixture
def own(family: str) -> Any:
    """A pipeline that the test may spoil."""
    return FAMILIES[family]()


@pytest.fixture
def pipe(pipes: Callable[[str], Any], family: str) -> Any:
    return pipes(family)


@pytest.fixture(scope="session")
def plain() -> Callable[..., torch.Tensor]:
    """What a family's pipeline gives unprotected for ``PROMPTS``: painted by one of its own, which no test protects."""
    pipes: dict[str, Any] = {}
    made: dict[Any, torch.Tensor] = {}

    def of(family: str, **options: Any) -> torch.Tensor:
        key = (family, tuple(sorted(options.items())))
        if key not in made:
            if family not in pipes:
                pipes[family] = FAMILIES[family]()
            made[key] = generate(pipes[family], PROMPTS, **options)
        return made[key]

    return of


@pytest.fixture
def protect() -> Iterator[Protect]:
    with protecting() as protect:
        yield protect
