"""From documents to one flat policy."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from safeguard.errors import PolicyError, Problem
from safeguard.policy import Policy, builtin_names, load_policy, resolve, schema_text

Load = Callable[..., Policy]
Problems = Callable[..., tuple[Problem, ...]]

BLOOD = "concepts: {blood: {phrases: [blood, gore]}}"


def test_a_concept_without_further_words_has_the_documented_defaults(load: Load) -> None:
    blood = load(BLOOD).concepts["blood"]
    assert (blood.eraser, blood.strength, blood.activation, blood.action) == ("eiup", "strong", "adaptive", "erase")
    assert (blood.steps, blood.threshold, dict(blood.params)) == ((0.0, 1.0), None, {})
    assert (blood.unsafe_examples, blood.safe_examples) == ((), ())


def test_every_key_of_a_concept_arrives(load: Load) -> None:
    policy = load(
        """
        concepts:
          blood:
            phrases: [blood]
            examples: {unsafe: [a battlefield at dawn], safe: [a red rose]}
            eraser: other
            strength: 2
            activation: off
            action: block
            steps: [0, 0.8]
            threshold: 0.42
            params: {heads: [1, 2], nested: {on: true}}
        """
    )
    blood = policy.concepts["blood"]
    assert (blood.unsafe_examples, blood.safe_examples) == (("a battlefield at dawn",), ("a red rose",))
    assert (blood.eraser, blood.strength, blood.activation, blood.action) == ("other", 2.0, "off", "block")
    assert (blood.steps, blood.threshold) == ((0.0, 0.8), 0.42)
    assert blood.params == {"heads": (1, 2), "nested": {"on": True}}


def test_settings_have_defaults_and_take_words(load: Load) -> None:
    settings = load("settings: {on_error: allow}").settings
    assert (settings.on_error, settings.prompt_embeds, settings.capture) == ("allow", "protect", "hmac")


def test_concepts_keep_the_order_of_the_document(load: Load) -> None:
    policy = load("concepts: {b: {phrases: [x]}, a: {phrases: [x]}, c: {phrases: [x]}}")
    assert list(policy.concepts) == ["b", "a", "c"]


def test_defaults_fill_what_a_concept_does_not_state(load: Load) -> None:
    policy = load(
        """
        defaults: {strength: max, params: {a: 1, b: 1}}
        concepts: {x: {phrases: [x], params: {b: 2}}, y: {phrases: [y], strength: weak}}
        """
    )
    assert (policy.concepts["x"].strength, policy.concepts["y"].strength) == ("max", "weak")
    assert policy.concepts["x"].params == {"a": 1, "b": 2}


# every problem at once


def test_every_problem_of_every_document_comes_in_one_report(problems: Problems) -> None:
    found = problems(
        """
        extends: [base.yaml]
        defaults: {strength: strnog}
        concepts:
          Blood: {phrases: [x]}
          blood:
            phrase: [x]
            steps: [0.8, 0.2]
            threshold: 2
        """,
        base="concepts: {x: {phrases: [' '], activation: alwys}}",
    )
    assert [problem.path for problem in found] == [
        "spec.defaults.strength",
        "spec.concepts.Blood",
        "spec.concepts.blood.phrase",
        "spec.concepts.blood.steps",
        "spec.concepts.blood.threshold",
        "spec.concepts.x.phrases[0]",
        "spec.concepts.x.activation",
    ]
    hints = [problem.hint for problem in found]
    assert "'strong'" in hints[0]
    assert "'phrases'" in hints[2]
    assert "'always'" in hints[6]


def test_an_unknown_key_is_told_at_the_key(problems: Problems) -> None:
    (problem,) = problems("concepts:\n  blood:\n    phrases: [blood]\n    strenght: max")
    assert (problem.line, problem.column) == (8, 7)
    assert problem.hint == "did you mean 'strength'?"


@pytest.mark.parametrize(
    ("concept", "words"),
    [
        ("{phrases: []}", "must not be empty"),
        ("{phrases: ['']}", "must not be empty"),
        ('{phrases: ["\\u200b "]}', "must not be blank"),
        ("{phrases: [3.10]}", "must be text, not a number"),
        ("{phrases: [true]}", "must be text, not true"),
        ("{phrases: text}", "must be a list, not text"),
        ("{phrases: [x], strength: -1}", "from 0 to 20"),
        ("{phrases: [x], strength: 21}", "from 0 to 20"),
        ("{phrases: [x], strength: true}", "weak, medium, strong, max, auto or a number, not true"),
        ("{phrases: [x], strength: .inf}", "finite"),
        ("{phrases: [x], activation: false}", "always, screened, adaptive, off, not false"),
        ("{phrases: [x], steps: [0]}", "2 entries"),
        ("{phrases: [x], steps: [0, 0.5, 1]}", "2 entries"),
        ("{phrases: [x], steps: [0.5, 0.5]}", "smaller"),
        ("{phrases: [x], steps: [0, 1.5]}", "from 0 to 1"),
        ("{phrases: [x], threshold: high}", "must be a number, not text"),
        ("{phrases: [x], eraser: '../x'}", "lower-case"),
        ("{phrases: [x], params: []}", "must be a map, not a list"),
        ("{phrases: [x], examples: {bad: [x]}}", "unknown key 'bad'"),
        ("[x]", "must be a map, not a list"),
        ("{threshold: 0.5}", "no phrases"),
    ],
)
def test_a_concept_that_cannot_be_is_one_clear_problem(problems: Problems, concept: str, words: str) -> None:
    (problem,) = problems(f"concepts: {{x: {concept}}}")
    assert words in problem.message
    assert problem.line == 5


@pytest.mark.parametrize("name", ["Blood", "-x", "x-", "a b", '"blood\\n"', "ä", '""', "x" * 65, "'1'"])
def test_an_id_is_lower_case_words(problems: Problems, name: str) -> None:
    assert "cannot be an id" in problems(f"concepts: {{{name}: {{phrases: [x]}}}}")[0].message


@pytest.mark.parametrize("name", ["a", "van-gogh", "self_harm", "style2-b_c"])
def test_ids_may_be_kebab_or_snake(load: Load, name: str) -> None:
    assert list(load(f"concepts: {{{name}: {{phrases: [x]}}}}").concepts) == [name]


def test_a_document_that_is_not_a_map_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(PolicyError, match="must be a map, not a list"):
        load_policy(path)


def test_missing_keys_are_each_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("metadata: {}\n")
    with pytest.raises(PolicyError) as raised:
        load_policy(path)
    text = str(raised.value)
    assert all(f"the key '{key}' is missing" in text for key in ("apiVersion", "kind", "spec", "name"))


def test_a_flood_of_problems_is_cut(problems: Problems) -> None:
    found = problems("concepts: {" + ", ".join(f"X{index}: 1" for index in range(500)) + "}")
    assert len(found) == 101
    assert "more problems" in found[-1].message


# variables


def test_variables_are_filled_in_settings(write: Callable[..., Path]) -> None:
    path = write("settings: {on_error: '${ON_ERROR}', capture: '${CAPTURE:none}'}", "policy.yaml")
    settings = load_policy(path, environ={"ON_ERROR": "allow"}).settings
    assert (settings.on_error, settings.capture) == ("allow", "none")


@pytest.mark.parametrize(
    ("text", "words"),
    [("${UNSET}", "UNSET is not set"), ("${a-b}", "cannot be read"), ("${", "cannot be"), ("${NESTED}", "cannot be")],
)
def test_a_variable_without_a_value_is_an_error(write: Callable[..., Path], text: str, words: str) -> None:
    path = write(f"settings: {{capture: '{text}'}}", "policy.yaml")
    with pytest.raises(PolicyError, match=words) as raised:
        load_policy(path, environ={"NESTED": "${UNSET}"})
    assert len(raised.value.problems) == 1


def test_the_value_of_a_variable_is_not_shown(write: Callable[..., Path]) -> None:
    path = write("settings: {capture: '${TOKEN}'}", "policy.yaml")
    with pytest.raises(PolicyError, match=r"\$\{TOKEN\}") as raised:
        load_policy(path, environ={"TOKEN": "s3cret"})
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "spec",
    ["concepts: {x: {phrases: ['${A:x}']}}", "concepts: {x: {phrases: [x], params: {'${A}': 1}}}", "extends: ['${A}']"],
)
def test_variables_elsewhere_are_an_error(problems: Problems, spec: str) -> None:
    assert "settings only" in problems(spec)[0].message


# the snapshot


def test_a_policy_cannot_be_changed(load: Load) -> None:
    policy = load("concepts: {x: {phrases: [x], params: {a: {b: [1]}}}}")
    with pytest.raises(AttributeError):
        policy.name = "other"
    with pytest.raises(TypeError):
        policy.concepts["y"] = policy.concepts["x"]  # type: ignore[index]
    with pytest.raises(TypeError):
        policy.concepts["x"].params["a"]["b"] = 2


def test_policies_copy_and_pickle(load: Load) -> None:
    policy = load("concepts: {x: {phrases: [x], params: {a: {b: [1]}}}}")
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert twin == policy
        assert twin.concepts == policy.concepts
        assert twin.files == policy.files
        assert hash(twin.concepts["x"]) == hash(policy.concepts["x"])


def test_a_snapshot_reads_back(load: Load) -> None:
    policy = load("{settings: {capture: full}, concepts: {x: {phrases: [x], strength: 1.5, params: {a: [1, 0.5]}}}}")
    twin = Policy.from_canonical(policy.canonical)
    assert (twin, twin.concepts, twin.settings, twin.name) == (policy, policy.concepts, policy.settings, policy.name)


def test_places_point_at_the_document_that_gave_the_value(write: Callable[..., Path]) -> None:
    write("defaults: {strength: max}\nconcepts: {x: {phrases: [x], threshold: 0.5}}", "base.yaml")
    places = resolve(write("extends: [base.yaml]\nconcepts:\n  x: {threshold: 0.6}", "policy.yaml")).places["x"]
    assert {name: (Path(mark.file).name, mark.line) for name, mark in places.items()} == {
        "phrases": ("base.yaml", 6),
        "strength": ("base.yaml", 5),
        "threshold": ("policy.yaml", 7),
    }


# what is shipped


@pytest.mark.parametrize("kind", ["policy", "policy_test"])
def test_the_schemas_are_draft_7(kind: str) -> None:
    schema = json.loads(schema_text(kind))
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    Draft7Validator.check_schema(schema)


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_policies_load_and_name_their_schema(name: str) -> None:
    policy = load_policy(f"builtin://{name}")
    assert policy.name == name
    assert policy.concepts
    first = policy.files[0].read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (policy.files[0].parent / first.split("=")[1]).is_file()


def test_the_promised_built_in_policies_are_there() -> None:
    assert {"demo", "nsfw", "violence", "artist-styles"} <= set(builtin_names())
