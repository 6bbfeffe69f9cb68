"""The package as users get it: from a plain checkout, installed editable, and as a wheel built from the source archive.

Each way gets a Python of its own, which sees the packages of the current environment and no other copy of this project; so
nothing is downloaded. Everything runs outside the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = ("safeguard_diffusion", "__editable__", "safeguard")  # what the current environment holds of this project
SHIPPED = {"safeguard": "safeguard", "plugins/safeguard_plugins": "safeguard_plugins", "policies": "safeguard_policies"}


@dataclass
class Install:
    """A Python with the project in it."""

    python: Path
    elsewhere: Path
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, check: bool = True) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environ = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120", **self.environ}
        command = [str(self.python), *arguments]
        done = subprocess.run(
            command, cwd=self.elsewhere, env=environ, capture_output=True, text=True, timeout=240, check=False
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def safeguard(self, *arguments: str) -> str:
        return self.run("-m", "safeguard.cli.main", *arguments)


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the current environment, without this project."""
    folder = tmp_path_factory.mktemp("dependencies")
    site = Path(sysconfig.get_path("purelib"))
    for entry in [entry for place in (site, *_linked(site)) for entry in place.iterdir()]:
        unwanted = entry.name.startswith(OWN) or entry.name == "__pycache__" or entry.suffix == ".pth"
        if not unwanted and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    return folder


def _linked(site: Path) -> list[Path]:
    """The other folders that an environment takes packages from, as its ``.pth`` files name them."""
    lines = [line.strip() for file in site.glob("*.pth") for line in file.read_text(encoding="utf-8").splitlines()]
    return [Path(line) for line in lines if Path(line).is_dir() and Path(line).name == "site-packages"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing in the original."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("safeguard", "plugins", "policies"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive: so the archive holds all that is needed, too."""
    folder = tmp_path_factory.mktemp("dist")
    build = "from setuptools import build_meta; import sys; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = folder.glob("*.tar.gz")
    return _built(str(archive), folder)


@pytest.fixture(scope="module")
def demo_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the demo, a distribution of its own."""
    return _built(str(source / "plugins/safeguard_demo"), tmp_path_factory.mktemp("demo"))


def _built(project: str, folder: Path) -> Path:
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), project)
    (made,) = folder.glob("*.whl")
    return made


def _pip(*arguments: str, python: Path | None = None) -> None:
    command = [sys.executable, "-m", "pip", *(["--python", str(python)] if python else []), *arguments]
    done = subprocess.run([*command, "--no-index", "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _environment(folder: Path, dependencies: Path) -> Install:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Install(folder / "venv/bin/python", elsewhere)


@pytest.fixture(scope="module")
def installed(wheel: Path, dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """The wheel in an environment of its own."""
    made = _environment(tmp_path_factory.mktemp("wheel"), dependencies)
    _pip("install", "--no-deps", str(wheel), python=made.python)
    return made


@pytest.fixture(scope="module")
def with_demo(wheel: Path, demo_wheel: Path, dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Both wheels in an environment of their own."""
    made = _environment(tmp_path_factory.mktemp("both"), dependencies)
    _pip("install", "--no-deps", str(wheel), str(demo_wheel), python=made.python)
    return made


@pytest.fixture(scope="module")
def editable(source: Path, dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """The copy of the checkout, installed editable."""
    made = _environment(tmp_path_factory.mktemp("editable"), dependencies)
    _pip("install", "--no-deps", "--no-build-isolation", "--editable", str(source), python=made.python)
    return made


@pytest.fixture(scope="module")
def checkout(dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Nothing installed: the checkout and its plugins on the path."""
    made = _environment(tmp_path_factory.mktemp("plain"), dependencies)
    made.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    return made


@pytest.fixture(params=["checkout", "editable", "installed"])
def install(request: pytest.FixtureRequest) -> Install:
    made: Install = request.getfixturevalue(request.param)
    return made


def _tracked(folders: Sequence[str]) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_builtin_policies_are_found_and_valid(install: Install) -> None:
    names = [f"builtin://{name}" for name in ("demo", "nsfw", "violence", "artist-styles")]
    report = json.loads(install.safeguard("policy", "validate", *names, "--json"))
    assert [policy["source"] for policy in report["policies"] if policy["valid"]] == names


def test_erasers_are_found_through_their_entry_points(install: Install) -> None:
    script = (
        "from safeguard.plan import Registry\nfor info in Registry().inventory(): print(info.name, info.version, info.error)"
    )
    versions = {"eiup": "1.5", "negative_prompt": "1.1", "safree": "1.1", "sld": "1.1"}
    names = [
        *("adavd", "ccrt", "dve", "eiup", "esd", "geom_erasing", "gie", "hfi", "ice", "nag", "negative_prompt", "rece"),
        *("safree", "sdd", "self_discovery", "sld", "uce", "vsf"),
    ]
    found = [f"{name} {versions.get(name, '1.0')} " for name in names]
    assert install.run("-c", script).rstrip("\n").split("\n") == found


def test_schema_is_package_data(install: Install) -> None:
    assert json.loads(install.safeguard("schema"))["$schema"] == "http://json-schema.org/draft-07/schema#"


def test_version_is_the_same_everywhere(install: Install) -> None:
    import safeguard

    assert install.safeguard("--version").split() == ["safeguard", safeguard.__version__]


def test_the_screeners_fitted_head_and_its_model_are_package_data(installed: Install) -> None:
    script = "from safeguard.screening import Screener\nprint(Screener().screen(['a vase of tulips']).scores.shape[0])"
    assert installed.run("-c", script).strip() == "1"


def test_the_console_script_runs(installed: Install) -> None:
    script = installed.python.with_name("safeguard")
    done = subprocess.run([str(script), "--help"], cwd=installed.elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "policy" in done.stdout


def test_the_wheel_holds_every_tracked_file_of_the_packages_and_no_other_package(wheel: Path) -> None:
    expected = set()
    for name in _tracked(tuple(SHIPPED)):
        folder = next(folder for folder in SHIPPED if name.startswith(f"{folder}/"))
        expected.add(SHIPPED[folder] + name.removeprefix(folder))
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    missing = expected - held
    assert not missing, f"state them in [tool.setuptools] of pyproject.toml: {sorted(missing)}"
    assert {name.split("/")[0] for name in held} == set(SHIPPED.values())


def test_the_wheel_states_licence_python_and_no_tool_as_a_requirement(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert "License-Expression: Apache-2.0" in lines
    assert "Requires-Python: >=3.11" in lines
    always = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in always if any(tool in line for tool in ("pytest", "ruff", "mypy", "matplotlib", "mkdocs"))]


def test_a_users_program_has_types(installed: Install) -> None:
    """The wheel brings its types (``py.typed``): what a user writes against them is checked by ``mypy --strict``."""
    program = shutil.copy(ROOT / "tests/typing/user_program.py", installed.elsewhere / "user_program.py")
    settings = installed.elsewhere / "mypy.ini"
    settings.write_text("[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\nignore_missing_imports = True\n")
    command = [sys.executable, "-m", "mypy", f"--config-file={settings}", f"--python-executable={installed.python}"]
    done = subprocess.run([*command, str(program)], cwd=installed.elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


CORE_LIMIT = 3 * 2**20  # bytes of the core wheel


def test_the_core_wheel_is_small_and_holds_no_tests_pages_or_demo(wheel: Path) -> None:
    assert wheel.stat().st_size < CORE_LIMIT
    with zipfile.ZipFile(wheel) as archive:
        parts = {part for name in archive.namelist() for part in Path(name).parts}
    assert not parts & {"tests", "docs", "studies", "safeguard_demo", "conftest.py", "site"}


CORE_ALONE = """
import importlib.util
import safeguard
from safeguard.testing import tiny_pipeline

assert importlib.util.find_spec("safeguard_demo") is None
pipe = tiny_pipeline()
paint = lambda: pipe(["a boat"], num_inference_steps=2, height=32, width=32, output_type="np").images.shape
with safeguard.protect(pipe, "own.yaml", audit="audit") as guard, guard.request() as request:
    print(paint())
print([(applied.eraser, decision.result) for decision in request.decisions for applied in decision.applied])
"""


def test_the_core_alone_protects_a_pipeline_validates_a_policy_and_verifies_the_log(installed: Install) -> None:
    (installed.elsewhere / "own.yaml").write_text(POLICY.replace("eraser: hush", "eraser: negative_prompt"))
    assert installed.safeguard("policy", "validate", "own.yaml").startswith("valid own.yaml: 1 concept")
    shape, recorded = installed.run("-c", CORE_ALONE).splitlines()
    assert (shape, recorded) == ("(1, 32, 32, 3)", "[('negative_prompt', 'erase')]")
    report = json.loads(installed.safeguard("audit", "verify", "audit", "--json"))
    assert (report["ok"], report["policies"]) == (True, 1)


def test_without_the_demo_its_pipeline_is_refused_with_what_to_install(installed: Install) -> None:
    command = [str(installed.python), "-m", "safeguard.cli.main", "doctor", "--pipeline", "unet"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=installed.elsewhere, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "safeguard-diffusion-demo" in done.stderr


BESIDE = """
from safeguard import _entry_points
for group in ("pipelines", "prompt_sets", "judges", "adapters", "image_encoders", "training_data"):
    print(group, *_entry_points.names(f"safeguard.{group}"))
"""


def test_the_demos_wheel_registers_what_it_brings_beside_the_core(with_demo: Install) -> None:
    assert with_demo.run("-c", BESIDE).splitlines() == [
        "pipelines language mmdit unet",
        "prompt_sets demo language",
        "judges demo demo-pixels demo-transformer",
        "adapters demo",
        "image_encoders demo",
        "training_data demo",
    ]


def test_the_demos_wheel_brings_its_pipelines(with_demo: Install) -> None:
    script = "from safeguard.evaluation.pipeline_sources import load_pipeline\nprint(type(load_pipeline('mmdit')).__name__)"
    assert with_demo.run("-c", script).strip() == "StableDiffusion3Pipeline"


EXAMPLE = ROOT / "docs/examples/safeguard-hush"
ERASED = """
import sys
import numpy, safeguard, torch
from safeguard_demo import load_pipeline

pipe = load_pipeline("unet")

def paint():
    noise = torch.Generator().manual_seed(1)
    return pipe("a car with blood", num_inference_steps=2, guidance_scale=4.0, generator=noise, output_type="np").images

plain = paint()
with safeguard.protect(pipe, sys.argv[1], screener=None) as guard, guard.request() as request:
    erased = paint()
print(numpy.array_equal(erased, plain), numpy.array_equal(paint(), plain))
print([(applied.eraser, applied.version, (applied.effect.mass or 0) > 0) for applied in request.decisions[0].applied])
"""
POLICY = """
apiVersion: safeguard.dev/v1
kind: Policy
metadata: {name: hush}
spec:
  concepts:
    blood: {phrases: [blood], eraser: hush, strength: strong, activation: always}
"""


def _with_example(example: Path, folder: Path, dependencies: Path) -> Install:
    """The checkout on the path, and the package of an example installed beside it."""
    made = _environment(folder, dependencies)
    copy = shutil.copytree(example, made.elsewhere / "package", ignore=shutil.ignore_patterns("__pycache__"))
    _pip("install", "--no-deps", "--no-build-isolation", str(copy), python=made.python)
    made.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    return made


@pytest.fixture(scope="module")
def beside(dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """The checkout, and the example of an eraser in a package of its own, installed as anyone's."""
    return _with_example(EXAMPLE, tmp_path_factory.mktemp("beside"), dependencies)


def test_an_eraser_of_another_package_acts_and_is_recorded(beside: Install) -> None:
    (beside.elsewhere / "hush.yaml").write_text(POLICY)
    acted, recorded = beside.run("-c", ERASED, "hush.yaml").splitlines()
    assert acted == "False True"
    assert recorded == "[('hush', '1.0', True)]"


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs/erasers/write.md").read_text(encoding="utf-8")
    assert (EXAMPLE / "safeguard_hush.py").read_text(encoding="utf-8") in page


TRAINED = ROOT / "docs/examples/safeguard-lull"


@pytest.fixture(scope="module")
def trained(dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """The checkout, and the example of a trained eraser, installed as anyone's and trained for two updates."""
    made = _with_example(TRAINED, tmp_path_factory.mktemp("trained"), dependencies)
    few = [part for number in ("updates=2", "steps=2", "share=0.8") for part in ("--set", number)]
    made.safeguard("train", "lull", "--concept", "blood", "--batch", "1", *few, "--out", "blood.safetensors")
    return made


def test_a_trained_eraser_of_another_package_acts_and_is_recorded(trained: Install) -> None:
    changed = "{phrases: [blood], eraser: lull, activation: always, params: {adapter: blood.safetensors}}"
    policy = POLICY[: POLICY.index("    blood:")].replace("hush", "lull")
    (trained.elsewhere / "lull.yaml").write_text(f"{policy}    blood: {changed}\n")
    acted, recorded = trained.run("-c", ERASED, "lull.yaml").splitlines()
    assert acted == "False True"
    assert recorded == "[('lull', '1.0', False)]"  # an edit of layers measures no mass


def test_the_command_has_the_trainer_of_another_package_and_its_settings(trained: Install) -> None:
    assert "lull: Goes a part of the way" in trained.safeguard("train", "--list")
    assert "--set share=0.5" in trained.safeguard("train", "lull", "--help")


@pytest.mark.parametrize("module", ["eraser.py", "train.py"])
def test_the_page_of_trained_erasers_shows_the_example_as_it_is(module: str) -> None:
    page = (ROOT / "docs/erasers/write.md").read_text(encoding="utf-8")
    assert (TRAINED / "safeguard_lull" / module).read_text(encoding="utf-8") in page
