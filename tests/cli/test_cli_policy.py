"""The command itself, and the verbs that need no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safeguard.cli.main import VERBS, app
from safeguard.cli.output import emit

HEAD = "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: test}\nspec:\n"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(HEAD + "  concepts: {blood: {phrases: [blood], strength: 2}, weapon: {phrases: [sword]}}\n")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(HEAD + "  concepts:\n    blood: {phrases: [blood], strenght: max}\n    weapon: {}\n")
    return path


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def modules_after(*args: str) -> set[str]:
    """The modules that a fresh process has imported once it has run the command."""
    code = (
        "import sys\nfrom safeguard.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.stderr.write('MODULES ' + ' '.join(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return set(process.stderr.rpartition("MODULES ")[2].split())


def test_help_names_every_verb_and_imports_none() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)
    assert not {module for module, _ in VERBS.values()} & modules_after("--help")


@pytest.mark.parametrize(
    "args",
    [("--help",), ("policy", "validate", "builtin://demo"), ("policy", "explain", "builtin://nsfw"), ("schema",)],
)
def test_verbs_without_a_model_import_no_model(args: tuple[str, ...]) -> None:
    assert not {"torch", "diffusers", "transformers", "sentence_transformers"} & modules_after(*args)


def test_the_version_is_printed() -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("safeguard ")


def test_an_unknown_verb_is_a_usage_error_with_a_guess() -> None:
    code, _, err = run("polcy")
    assert code == 2
    assert "policy" in err


def test_a_verb_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "absent", ("safeguard.cli.absent", "Not there."))
    code, _, err = run("absent")
    assert code == 1
    assert "not part of this installation" in err


def test_a_verb_that_lacks_a_package_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "verb_without_package.py").write_text("import package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VERBS, "poor", ("verb_without_package", "Poor."))
    code, _, err = run("poor")
    assert code == 1
    assert "package_that_is_not_there" in err


def test_valid_policies_pass(good: Path) -> None:
    code, out, err = run("policy", "validate", good, "builtin://demo")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == [f"valid {good}", "valid builtin"]
    assert "2 concepts" in out


def test_problems_go_to_stderr_one_a_line_with_place_path_and_hint(good: Path, bad: Path) -> None:
    code, out, err = run("policy", "validate", bad, good)
    assert code == 3
    assert f"valid {good}" in out
    assert err.splitlines() == [
        f"{bad}:6:31: spec.concepts.blood.strenght: unknown key 'strenght' (did you mean 'strength'?)",
        f"{bad}:7:5: spec.concepts.weapon: the concept has no phrases, here or inherited"
        " (add 'phrases: [weapon]', or extend a policy that has it)",
    ]


def test_validate_speaks_json(bad: Path) -> None:
    code, out, err = run("policy", "validate", bad, "builtin://demo", "--json")
    data = json.loads(out)
    assert (code, err, data["valid"]) == (3, "", False)
    assert [policy["valid"] for policy in data["policies"]] == [False, True]
    assert data["policies"][0]["problems"][0]["path"] == "spec.concepts.blood.strenght"
    assert len(data["policies"][1]["revision"]) == 64


@pytest.mark.parametrize("verb", ["explain", "test"])
def test_other_verbs_exit_with_3_on_an_invalid_policy(bad: Path, verb: str) -> None:
    code, out, err = run("policy", verb, bad)
    assert (code, out) == (3, "")
    assert "strenght" in err


def test_explain_shows_the_flat_policy(good: Path) -> None:
    code, out, _ = run("policy", "explain", good, "--origins")
    assert code == 0
    assert all(word in out for word in ("blood", "sword", "eiup", "adaptive", "revision", "good.yaml:5"))
    assert "it acts in every image" in " ".join(out.split())


def test_explain_speaks_json(good: Path) -> None:
    data = json.loads(run("policy", "explain", good, "--json")[1])
    assert [concept["id"] for concept in data["concepts"]] == ["blood", "weapon"]
    assert data["places"]["blood"]["strength"] == f"{good}:5"
    assert data["notes"]


def test_explain_names_the_groups(good: Path) -> None:
    grouped = good.with_name("grouped.yaml")
    spec = "spec: {defaults: {activation: always, one_of: colour}, concepts: {red: {phrases: [red]}, blue: {phrases: [blue]}}}"
    grouped.write_text(f"apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {{name: test}}\n{spec}\n")
    _, out, _ = run("policy", "explain", grouped, "--origins")
    assert "one of colour, drawn for each image: red, blue" in out
    assert "blue.one_of" in out


def test_diff_names_what_changes(good: Path) -> None:
    code, out, _ = run("policy", "diff", good, "builtin://demo")
    assert code == 0
    assert "+ concepts.veska-rimm" in out
    assert "concepts.blood.strength" in out


def test_diff_speaks_json(good: Path) -> None:
    data = json.loads(run("policy", "diff", good, "builtin://demo", "--json")[1])
    assert data["added"] == ["veska-rimm", "orlo-tandt", "juno-kaldar"]
    assert {"path": "concepts.blood.strength", "before": 2, "after": "strong"} in data["changed"]
    assert json.loads(run("policy", "diff", good, good, "--json")[1])["same"]


def test_policy_tests_exit_with_4_where_one_fails(good: Path) -> None:
    cases = "spec: {cases: [{prompt: a lake in the morning, activates: [blood]}]}\n"
    head = "apiVersion: safeguard.dev/v1\nkind: PolicyTest\nmetadata: {name: test}\n"
    good.with_name("good_test.yaml").write_text(head + cases)
    code, out, _ = run("policy", "test", good, "--json")
    data = json.loads(out)
    assert (code, data["failed"], data["cases"][0]["missing"]) == (4, 1, ["blood"])


@pytest.mark.parametrize("name", ["demo", "nsfw", "violence", "artist-styles"])
def test_the_tests_of_the_built_in_policies_pass(name: str) -> None:
    code, out, _ = run("policy", "test", f"builtin://{name}", "--json")
    assert [case for case in json.loads(out)["cases"] if not case["passed"]] == []
    assert code == 0


@pytest.mark.parametrize("args", [(), ("--tests",), ("--json",)])
def test_schema_prints_json_schema(args: tuple[str, ...]) -> None:
    code, out, _ = run("schema", *args)
    assert code == 0
    assert json.loads(out)["$schema"].startswith("http://json-schema.org/draft-07/")


def test_json_output_is_plain_whatever_the_data_holds(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"path": Path("a"), "set": {1}, "nan": float("nan"), "pair": (1.5, None)}, True, lambda console: None)
    assert json.loads(capsys.readouterr().out) == {"path": "a", "set": [1], "nan": None, "pair": [1.5, None]}


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("safeguard")
    environment = {**os.environ, "NO_COLOR": "1"}
    arguments = [command, "policy", "validate", "nope.yaml"]
    process = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert process.returncode == 3
    assert process.stderr.startswith("nope.yaml: cannot read 'nope.yaml'")
