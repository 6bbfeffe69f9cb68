"""Plugins as they come: real distributions on a path, and what is wrong with some of them."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, ClassVar

import pytest

from safeguard.errors import PluginError
from safeguard.plan.registry import GROUP, Registry
from safeguard.sdk import Seam

GOOD = """
    from safeguard.sdk import Seam

    class Eraser:
        api = (1, 0)
        name = "{name}"
        version = "2.0"
        seams = frozenset({{Seam.TEXT_SITE}})
        strengths = {{"weak": 1.0, "medium": 2.0, "strong": 3.0, "max": 4.0}}
        params = {{}}

        def edits(self, concepts, params, pipeline):
            return []
"""
Install = Callable[..., None]
_numbers = itertools.count()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def install(site: Path) -> Install:
    """Lay a distribution down that registers the eraser ``name``; its module is ``code`` with ``changes`` made."""

    def lay_down(
        name: str, code: str = GOOD, *, distribution: str = "", target: str = "Eraser", changes: Mapping[str, str] | None = None
    ) -> None:
        module = f"plugin_{next(_numbers)}"
        source = textwrap.dedent(code).format(name=name)
        for member, line in (changes or {}).items():
            lines = [line if text.strip().startswith(f"{member} =") else text for text in source.splitlines()]
            source = "\n".join(lines)
        (site / f"{module}.py").write_text(source, "utf-8")
        distribution = distribution or f"{name}-plugin"
        info = site / f"{distribution}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:{target}\n", "utf-8")

    return lay_down


def registry(site: Path) -> Registry:
    found = distributions(path=[str(site)])
    return Registry(point for one in found for point in one.entry_points if point.group == GROUP)


def refusal(site: Path, name: str) -> PluginError:
    with pytest.raises(PluginError) as raised:
        registry(site).get(name)
    return raised.value


def test_an_eraser_is_loaded_by_name(site: Path, install: Install) -> None:
    install("good")
    eraser = registry(site).get("good")
    assert (eraser.name, eraser.version) == ("good", "2.0")


def test_nothing_is_imported_before_it_is_asked_for(site: Path, install: Install) -> None:
    install("good")
    before = set(sys.modules)
    assert registry(site).names == ("good",)
    assert not any(name.startswith("plugin_") for name in set(sys.modules) - before)


def test_an_eraser_is_made_once(site: Path, install: Install) -> None:
    install("good")
    found = registry(site)
    assert found.get("good") is found.get("good")


def test_an_unknown_name_is_answered_with_the_nearest(site: Path, install: Install) -> None:
    install("good")
    fault = refusal(site, "goood")
    assert "did you mean 'good'?" in str(fault)
    assert fault.name == "goood"


def test_an_unknown_name_unlike_any_lists_what_there_is(site: Path, install: Install) -> None:
    install("good")
    assert "installed are good" in str(refusal(site, "zzz"))


def test_two_distributions_with_one_name_are_both_named(site: Path, install: Install) -> None:
    install("good", distribution="one")
    install("good", distribution="two")
    fault = refusal(site, "good")
    assert fault.distribution == "one 1.5 and two 1.5"
    assert "uninstall all but one" in str(fault)


WRONG = {
    "another protocol": (
        {"api": "    protocol = 99"},
        "written for protocol 99, this is 1.0; install a version that matches",
    ),
    "another major": (
        {"api": "    api = (2, 0)"},
        "was written for safeguard.sdk 2.0, this is 1.0; install a version of it for 1.x",
    ),
    "a newer minor": (
        {"api": "    api = (1, 7)"},
        "was written for safeguard.sdk 1.7, this is 1.0, which is older; upgrade safeguard-diffusion",
    ),
    "a version in words": ({"api": "    api = '1.0'"}, "api must be two whole numbers such as (1, 0), not '1.0'"),
    "another name": ({"name": "    name = 'other'"}, "calls itself 'other'; its name and its entry point must agree"),
    "no version": ({"version": ""}, "lacks version; follow safeguard.sdk.eraser.Eraser"),
    "no strengths and no params": ({"strengths": "", "params": ""}, "lacks strengths, params"),
    "seams in a list": ({"seams": "    seams = [Seam.TEXT_SITE]"}, "seams must be a frozenset of Seam"),
    "seams by name": ({"seams": "    seams = frozenset({'text site!'})"}, "seams must be a frozenset of Seam"),
    "words for strengths": (
        {"strengths": "    strengths = {'weak': 'a little'}"},
        "strengths must be a map of words to numbers",
    ),
    "params in a list": ({"params": "    params = ['form']"}, "params must be a map"),
    "edits that is no method": (
        {"params": "    params = {}\n    edits = None\n    def _edits(self): ..."},
        "edits must be a method",
    ),
    "an import that fails": ({"api": "    import a_module_that_is_not_there"}, "cannot be imported (ModuleNotFoundError"),
    "an import that ends the program": ({"api": "    raise SystemExit(3)"}, "cannot be imported (SystemExit: 3)"),
    "an argument without default": (
        {"params": "    params = {}\n    def __init__(self, size): ..."},
        "it must be a class that takes no arguments",
    ),
    "a constructor that fails": (
        {"params": "    params = {}\n    def __init__(self): raise OSError('no such file')"},
        "cannot be made (OSError: no such file)",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_faulty_eraser_is_an_error_with_its_distribution(
    site: Path, install: Install, changes: dict[str, str], message: str
) -> None:
    code = GOOD if message != "edits must be a method" else GOOD.replace("def edits", "def _not_edits")
    install("bad", code, changes=changes)
    fault = refusal(site, "bad")
    assert message in str(fault)
    assert (fault.name, fault.distribution) == ("bad", "bad-plugin 1.5")


def test_an_entry_point_to_nothing_is_an_error_with_its_mend(site: Path, install: Install) -> None:
    install("bad", target="Missing")
    fault = refusal(site, "bad")
    assert "cannot be imported (AttributeError" in str(fault)
    assert "reinstall bad-plugin 1.5 or mend its import of plugin_" in str(fault)


def test_an_entry_point_to_a_function_is_an_error(site: Path, install: Install) -> None:
    install("bad", "def Eraser(): ...")
    assert "lacks api, name, version, seams, strengths, params, edits" in str(refusal(site, "bad"))


def test_one_faulty_eraser_does_not_stop_the_others(site: Path, install: Install) -> None:
    install("bad", changes={"api": "    import a_module_that_is_not_there"})
    install("good")
    bad, good = registry(site).inventory()
    assert (bad.name, bad.distribution) == ("bad", "bad-plugin 1.5")
    assert "a_module_that_is_not_there" in bad.error
    assert (good.version, good.seams, good.error) == ("2.0", ("text site",), "")


def test_the_installed_ones_are_found_by_default() -> None:
    found = {info.name: info for info in Registry().inventory()}
    assert {"eiup", "negative_prompt"} <= set(found)
    assert found["eiup"].error == ""


def test_an_eraser_of_0_1_works_and_says_what_to_write(site: Path, install: Install) -> None:
    install("good", changes={"api": "    protocol = 1"})
    with pytest.warns(DeprecationWarning, match=r"eraser 'good': protocol = 1 goes in 0.3; write api = \(1, 0\) in its place"):
        assert registry(site).get("good").version == "2.0"


def test_what_erasers_of_0_1_imported_says_what_to_write(site: Path, install: Install) -> None:
    install(
        "good",
        GOOD.replace("safeguard.sdk import Seam", "safeguard.erasing import PROTOCOL, Seam"),
        changes={"api": "    protocol = PROTOCOL"},
    )
    with pytest.warns(DeprecationWarning, match=r"goes in 0\.3") as warned:
        assert registry(site).get("good").version == "2.0"
    assert any("PROTOCOL goes in 0.3: write api = (1, 0)" in str(warning.message) for warning in warned)


class Handmade:
    """As a notebook has it: a class that no distribution registers."""

    api = (1, 0)
    name = "handmade"
    version = "1.0"
    seams = frozenset({Seam.TEXT_SITE})
    strengths: ClassVar = {"weak": 1.0, "medium": 1.0, "strong": 1.0, "max": 1.0}
    params: ClassVar = {}

    def edits(self, concepts: Any, params: Any, pipeline: Any) -> list[Any]:
        return []


def test_a_class_without_a_distribution_is_found_by_its_name() -> None:
    found = Registry((), [Handmade])
    assert isinstance(found.get("handmade"), Handmade)
    assert [(info.name, info.distribution) for info in found.inventory()] == [("handmade", "erasers=[...]")]


def test_a_class_of_the_name_of_an_installed_eraser_is_refused(site: Path, install: Install) -> None:
    install("handmade")
    (point,) = (point for one in distributions(path=[str(site)]) for point in one.entry_points)
    with pytest.raises(PluginError, match=r"handmade-plugin 1.5 has an eraser of this name; give yours another name"):
        Registry([point], [Handmade])


def test_an_instance_in_place_of_its_class_is_refused() -> None:
    with pytest.raises(PluginError, match="give the class, not an instance"):
        Registry((), [Handmade()])  # type: ignore[list-item]
