"""What an import or a verb brings with it: counted in modules, for a second of torch is what makes a command slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "diffusers", "transformers", "sentence_transformers", "scipy", "sklearn", "matplotlib", "skimage")

VERB = """
import json, sys
from safeguard.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print("\\n" + json.dumps({"code": code, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def _run(script: str, *arguments: str, cwd: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of one decision, and a feedback store."""
    from safeguard.audit import AuditLog, Decision, Model, Subject
    from safeguard.feedback import FeedbackStore
    from safeguard.policy import load_policy

    policy = load_policy("builtin://demo")
    folder = tmp_path_factory.mktemp("log")
    with AuditLog(folder / "audit") as written:
        written.store_policy(policy.revision, policy.canonical)
        written.append(
            [
                Decision(
                    policy_name=policy.name,
                    policy_revision=policy.revision,
                    result="pass",
                    subject=Subject("a red rose"),
                    model=Model("StableDiffusionPipeline"),
                )
            ]
        )
    FeedbackStore(folder / "asked", create=True)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["schema"],
        ["policy", "validate", "builtin://demo"],
        ["policy", "explain", "builtin://nsfw"],
        ["policy", "diff", "builtin://nsfw", "builtin://violence"],
        ["audit", "verify", "audit"],
        ["audit", "query", "audit"],
        ["plugins", "list"],
        ["screen", "--help"],
        ["generate", "--help"],
        ["feedback", "--help"],
        ["feedback", "show", "asked"],
    ],
    ids=" ".join,
)
def test_a_verb_that_needs_no_model_loads_none(arguments: list[str], log: Path) -> None:
    last = json.loads(_run(VERB, *arguments, cwd=log)[-1])
    assert last["code"] == 0
    assert not set(HEAVY) & set(last["modules"])


@pytest.mark.parametrize(
    "module",
    ["safeguard", "safeguard.policy", "safeguard.audit", "safeguard.feedback", "safeguard.screening", "safeguard.sdk"],
)
def test_an_import_loads_no_model(module: str, tmp_path: Path) -> None:
    script = f"import sys, {module}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    assert not set(HEAVY) & set(_run(script, cwd=tmp_path)[-1].split())


def test_a_protected_call_with_the_default_screener_does_not_load_sentence_transformers(tmp_path: Path) -> None:
    script = """
import sys, safeguard
from safeguard_demo import call_options, load_pipeline
pipe = load_pipeline("unet")
with safeguard.protect(pipe, "builtin://demo"):
    pipe("a red boat", num_inference_steps=1, **call_options(pipe))
print("sentence_transformers" in sys.modules)
"""
    assert _run(script, cwd=tmp_path)[-1] == "False"


def test_the_screen_verb_does_not_load_sentence_transformers(tmp_path: Path) -> None:
    last = json.loads(_run(VERB, "screen", "a red boat", cwd=tmp_path)[-1])
    assert last["code"] == 0
    assert "sentence_transformers" not in last["modules"]


def test_every_public_name_can_be_had(tmp_path: Path) -> None:
    import safeguard

    assert [name for name in safeguard.__all__ if getattr(safeguard, name, None) is None] == []
