"""Documents that extend documents: the merge rule, defaults, the policy root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from safeguard.errors import PolicyError, Problem
from safeguard.policy import Policy, load_policy

Load = Callable[..., Policy]
Problems = Callable[..., tuple[Problem, ...]]

BLOOD = "concepts: {blood: {phrases: [blood, gore]}}"


def test_maps_merge_lists_replace_null_deletes(load: Load) -> None:
    policy = load(
        """
        extends: [./base.yaml]
        concepts:
          blood: {phrases: [blood], threshold: null}
          gone: null
        """,
        base="""
        concepts:
          blood: {phrases: [gore, guts], strength: max, threshold: 0.3}
          gone: {phrases: [x]}
        """,
    )
    blood = policy.concepts["blood"]
    assert list(policy.concepts) == ["blood"]
    assert (blood.phrases, blood.strength, blood.threshold) == (("blood",), "max", None)


def test_later_entries_win_and_the_document_wins_over_all(load: Load) -> None:
    policy = load(
        "{extends: [a.yaml, b.yaml], concepts: {x: {threshold: 0.3}}, settings: {capture: none}}",
        a="{concepts: {x: {phrases: [a], strength: 1, threshold: 0.1}}, settings: {on_error: allow, capture: full}}",
        b="{concepts: {x: {phrases: [b], threshold: 0.2}}, settings: {on_error: block, capture: redacted}}",
    )
    concept = policy.concepts["x"]
    assert (concept.phrases, concept.strength, concept.threshold) == (("b",), 1.0, 0.3)
    assert (policy.settings.on_error, policy.settings.capture) == ("block", "none")


def test_defaults_do_not_reach_concepts_that_the_document_does_not_list(load: Load) -> None:
    policy = load(
        "{extends: [strict.yaml, lenient.yaml], defaults: {activation: off}, concepts: {own: {phrases: [o]}}}",
        strict="{defaults: {activation: always}, concepts: {strict: {phrases: [s]}}}",
        lenient="{defaults: {activation: screened}, concepts: {lenient: {phrases: [l]}}}",
    )
    assert {name: concept.activation for name, concept in policy.concepts.items()} == {
        "strict": "always",
        "lenient": "screened",
        "own": "off",
    }


def test_what_any_document_states_wins_over_any_default(load: Load) -> None:
    policy = load(
        "{extends: [base.yaml], defaults: {strength: weak, action: block}, concepts: {x: {threshold: 0.5}}}",
        base="{concepts: {x: {phrases: [x], strength: max}}}",
    )
    assert (policy.concepts["x"].strength, policy.concepts["x"].action) == ("max", "block")


def test_null_deletes_an_inherited_default_too(load: Load) -> None:
    policy = load(
        "{extends: [base.yaml], concepts: {x: {strength: null}}}",
        base="{defaults: {strength: max}, concepts: {x: {phrases: [x]}}}",
    )
    assert policy.concepts["x"].strength == "strong"


def test_a_deletion_stays_inside_the_document_that_says_it(load: Load) -> None:
    policy = load(
        "extends: [a.yaml, b.yaml]",
        a="concepts: {x: {phrases: [x]}}",
        b="{extends: [a.yaml], concepts: {x: null, y: {phrases: [y]}}}",
    )
    assert list(policy.concepts) == ["x", "y"]


def test_documents_in_subfolders_extend_relative_to_themselves(load: Load, write: Callable[..., Path]) -> None:
    write("concepts: {x: {phrases: [x]}}", "parts/deep/x.yaml")
    write("extends: [deep/x.yaml]", "parts/list.yaml")
    assert list(load("extends: [parts/list.yaml]").concepts) == ["x"]


def test_a_chain_of_diamonds_loads_each_document_once(load: Load) -> None:
    pairs = [(depth, side) for depth in range(20) for side in "ab"]
    layers = {f"l{depth}{side}": f"extends: [l{depth + 1}a.yaml, l{depth + 1}b.yaml]" for depth, side in pairs}
    policy = load("extends: [l0a.yaml]", **layers, l20a=BLOOD, l20b=BLOOD)
    assert len(policy.files) == 1 + 39 + 2


def test_a_document_may_extend_a_built_in_policy(load: Load) -> None:
    policy = load("{extends: ['builtin://demo'], concepts: {weapon: null, blood: {strength: max}}}")
    assert list(policy.concepts) == ["blood", "veska-rimm", "orlo-tandt", "juno-kaldar"]
    assert policy.concepts["blood"].strength == "max"


def test_files_are_all_that_took_part(load: Load, tmp_path: Path) -> None:
    policy = load("extends: [base.yaml]", base=BLOOD)
    assert policy.files == (tmp_path / "policy.yaml", tmp_path / "base.yaml")


@pytest.mark.parametrize("entry", ["../up.yaml", "/etc/hostname", "./x/../../up.yaml", "link.yaml", "folder/up.yaml"])
def test_paths_out_of_the_root_are_refused(write: Callable[..., Path], tmp_path: Path, entry: str) -> None:
    write(BLOOD, "up.yaml")
    path = write(f"extends: [{entry}]", "root/policy.yaml")
    (tmp_path / "root" / "link.yaml").symlink_to(tmp_path / "up.yaml")
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    with pytest.raises(PolicyError, match="out of the policy root") as raised:
        load_policy(path)
    assert raised.value.problems[0].path == "spec.extends[0]"


def test_a_linked_policy_folder_is_followed(write: Callable[..., Path], tmp_path: Path) -> None:
    """The layout of a mounted Kubernetes ConfigMap: each file a link into a versioned folder."""
    write("extends: [base.yaml]", "mount/..v1/policy.yaml")
    write(BLOOD, "mount/..v1/base.yaml")
    for name in ("policy.yaml", "base.yaml"):
        (tmp_path / "mount" / name).symlink_to(tmp_path / "mount" / "..v1" / name)
    assert list(load_policy(tmp_path / "mount" / "policy.yaml").concepts) == ["blood"]


def test_a_circle_is_told_with_its_documents(problems: Problems) -> None:
    (problem,) = problems("extends: [a.yaml]", a="extends: [b.yaml]", b="extends: [a.yaml]")
    assert "a.yaml" in problem.message
    assert "b.yaml" in problem.message
    assert problem.file.endswith("b.yaml")


def test_a_document_cannot_extend_itself(problems: Problems) -> None:
    assert [problem.path for problem in problems("extends: [policy.yaml]")] == ["spec.extends[0]"]


def test_a_long_chain_is_refused(problems: Problems) -> None:
    chain = {f"c{index}": f"extends: [c{index + 1}.yaml]" for index in range(80)}
    assert "documents take part" in problems("extends: [c0.yaml]", **chain, c80=BLOOD)[0].message


@pytest.mark.parametrize(
    ("entry", "words"),
    [("nope.yaml", "cannot read"), (".", "is not a file"), ("builtin://demoo", "no built-in"), ('"a\\0b"', "U+0000")],
)
def test_an_entry_that_cannot_be_read_is_told_where_it_stands(problems: Problems, entry: str, words: str) -> None:
    (problem,) = problems(f"extends: [{entry}]")
    assert words in problem.message
    assert (problem.line, problem.path) == (5, "spec.extends[0]")


def test_a_pipe_is_refused_and_not_waited_for(problems: Problems, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is not a file" in problems("extends: [pipe.yaml]")[0].message


@pytest.mark.parametrize("source", ["nope.yaml", "builtin://nope", "builtin://../demo", "builtin://demo_test", ""])
def test_a_source_that_cannot_be_read_is_a_policy_error(source: str) -> None:
    with pytest.raises(PolicyError):
        load_policy(source)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("concepts: {x: null}", "spec.concepts.x"),
        ("concepts: {x: {phrases: [x], threshold: null}}", "spec.concepts.x.threshold"),
        ("concepts: {x: {phrases: [x], params: {a: null}}}", "spec.concepts.x.params.a"),
        ("settings: {capture: null}", "spec.settings.capture"),
        ("defaults: {strength: null}", "spec.defaults.strength"),
    ],
)
def test_deleting_what_is_not_inherited_is_an_error(problems: Problems, spec: str, path: str) -> None:
    (problem,) = problems(spec)
    assert problem.path == path
    assert "null deletes" in problem.message
