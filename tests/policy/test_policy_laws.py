"""What holds for every document: nothing but PolicyError, one revision for one meaning, the laws of the merge rule."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safeguard.errors import PolicyError, Problem
from safeguard.policy import Policy, load_policy
from safeguard.policy.diff import compare
from safeguard.policy.merge import EMPTY, merge
from safeguard.policy.yaml_nodes import Mark, Node

NAMES = st.sampled_from(["blood", "weapon", "van-gogh", "self_harm", "style2"])
SHARES = st.floats(0, 1, allow_nan=False)
TEXTS = st.text(alphabet="abc é漢😀'\":#-{}[]", min_size=1, max_size=12).filter(lambda text: text.strip() != "")
PARAMS = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.recursive(
        st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-(2**53) + 1, 2**53 - 1) | TEXTS,
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    ),
    max_size=2,
)
OF_NO_GROUP = st.fixed_dictionaries(
    {"phrases": st.lists(TEXTS, min_size=1, max_size=3)},
    optional={
        "examples": st.fixed_dictionaries({}, optional={"unsafe": st.lists(TEXTS, max_size=2)}),
        "strength": st.sampled_from(["weak", "medium", "strong", "max"]) | st.floats(0, 20, allow_nan=False),
        "activation": st.sampled_from(["always", "screened", "adaptive", "off"]),
        "action": st.sampled_from(["erase", "block", "flag", "review"]),
        "steps": st.tuples(SHARES, SHARES).filter(lambda pair: pair[0] < pair[1]).map(list),
        "threshold": SHARES,
        "params": PARAMS,
        "contrasts": st.lists(
            st.fixed_dictionaries({"with": TEXTS, "without": TEXTS}).filter(lambda pair: pair["with"] != pair["without"]),
            max_size=2,
        ),
        "anchor": TEXTS,
        "on_residual": st.sampled_from(["record", "again", "withhold"]),
    },
)
OF_A_GROUP = st.fixed_dictionaries(
    {
        "phrases": st.lists(TEXTS, min_size=1, max_size=3),
        "one_of": NAMES,
        "activation": st.sampled_from(["always", "screened", "off"]),
    }
)
CONCEPTS = OF_NO_GROUP | OF_A_GROUP
DOCUMENTS = st.fixed_dictionaries(
    {
        "apiVersion": st.just("safeguard.dev/v1"),
        "kind": st.just("Policy"),
        "metadata": st.fixed_dictionaries({"name": NAMES}, optional={"description": TEXTS}),
        "spec": st.fixed_dictionaries({"concepts": st.dictionaries(NAMES, CONCEPTS, max_size=3)}),
    }
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["${A}", "<<"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def as_json(value: Any) -> str:
    """JSON that is YAML too: escaped surrogates are not."""
    return json.dumps(value, ensure_ascii=False)


def load_text(text: str | bytes, name: str = "policy.yaml") -> Policy:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return load_policy(path, environ={})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, child in children for inner in places(child, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


# nothing but PolicyError


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    assume("safeguard.dev" not in text)
    with pytest.raises(PolicyError):
        load_text(text)


@given(DOCUMENTS, st.data(), ANYTHING)
@settings(deadline=None, max_examples=60)
def test_anything_anywhere_loads_or_is_a_policy_error(document: Any, data: st.DataObject, junk: Any) -> None:
    path = data.draw(st.sampled_from(places(document)))
    text = as_json(changed(document, path, junk))
    with contextlib.suppress(PolicyError):
        policy = load_text(text)
        assert Policy.from_canonical(policy.canonical).concepts == policy.concepts


@given(DOCUMENTS, st.data(), st.binary(max_size=4))
@settings(deadline=None, max_examples=60)
def test_bytes_overwritten_load_or_are_a_policy_error(document: Any, data: st.DataObject, new: bytes) -> None:
    text = yaml.safe_dump(document, allow_unicode=True).encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    with contextlib.suppress(PolicyError):
        assert load_text(text[:start] + new + text[end:]).revision


@given(st.binary(max_size=200) | ANYTHING.map(lambda value: as_json(value).encode()))
def test_any_bytes_as_a_snapshot_are_a_policy_error(data: bytes) -> None:
    with pytest.raises(PolicyError):
        Policy.from_canonical(data)


# one revision for one meaning


def shuffled(value: Any, data: st.DataObject, *, keep: bool = False) -> Any:
    """The same maps with their keys in another order, but for that of the concepts."""
    if isinstance(value, dict):
        keys = list(value) if keep else data.draw(st.permutations(list(value)))
        return {key: shuffled(value[key], data, keep=key == "concepts") for key in keys}
    return [shuffled(item, data) for item in value] if isinstance(value, list) else value


@given(DOCUMENTS, st.data())
@settings(deadline=None, max_examples=60)
def test_key_order_comments_and_file_name_do_not_change_the_revision(document: Any, data: st.DataObject) -> None:
    text = "# a comment\n" + yaml.safe_dump(shuffled(document, data), sort_keys=False, allow_unicode=True)
    assert load_text(text, "other.yml").revision == load_text(as_json(document)).revision


@given(DOCUMENTS)
@settings(deadline=None, max_examples=60)
def test_moving_everything_into_a_base_document_does_not_change_the_revision(document: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "base.yaml").write_text(as_json(document))
        top = {**document, "spec": {"extends": ["base.yaml"]}}
        Path(folder, "top.yaml").write_text(as_json(top))
        assert load_policy(os.path.join(folder, "top.yaml")).revision == load_text(as_json(document)).revision


@given(DOCUMENTS, DOCUMENTS)
@settings(deadline=None, max_examples=60)
def test_revisions_differ_exactly_where_a_difference_is_told(one: Any, other: Any) -> None:
    first, second = load_text(as_json(one)), load_text(as_json(other))
    assert (first.revision == second.revision) == compare(first, second).same
    assert Policy.from_canonical(first.canonical).concepts == first.concepts


def test_true_and_one_are_not_the_same() -> None:
    head = "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: x}\nspec: {concepts: {a: {phrases: [a], "
    first, second = load_text(f"{head}params: {{p: true}}}}}}}}"), load_text(f"{head}params: {{p: 1}}}}}}}}")
    assert first.revision != second.revision
    assert [change.path for change in compare(first, second).changed] == ["concepts.a.params.p"]


def test_the_order_of_concepts_counts() -> None:
    head = "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: x}\nspec: {concepts: "
    one, other = "a: {phrases: [a]}", "b: {phrases: [b]}"
    assert load_text(f"{head}{{{one}, {other}}}}}").revision != load_text(f"{head}{{{other}, {one}}}}}").revision


# the merge rule

TREES = st.recursive(
    st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
MAPS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


def node(value: Any) -> Node:
    if isinstance(value, dict):
        return Node({key: node(child) for key, child in value.items()}, Mark("f"), dict.fromkeys(value, Mark("f")))
    return Node([node(item) for item in value] if isinstance(value, list) else value, Mark("f"))


def merged(*values: Any) -> Any:
    problems: list[Problem] = []
    result = EMPTY
    for value in values:
        result = merge(result, node(value), problems)
    assert problems == []
    return result.plain()


@given(MAPS)
def test_merging_with_nothing_or_with_itself_changes_nothing(value: Any) -> None:
    assert merged(value, {}) == merged(value, value) == merged(value) == value


@given(MAPS, MAPS)
def test_what_is_laid_on_top_is_there_afterwards(under: Any, over: Any) -> None:
    result = merged(under, over)
    assert merged(result, over) == result
    assert all(result[key] == over[key] for key in over if not isinstance(over[key], dict))
    assert all(result[key] == under[key] for key in under if key not in over)


# As in a policy: what a key holds, a map or a plain value, is the same in every document.
LEAVES = st.dictionaries(st.sampled_from("ab"), st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2), max_size=2)
SHAPED = st.builds(
    lambda leaves, maps: {**leaves, **maps},
    LEAVES,
    st.dictionaries(st.sampled_from("mn"), LEAVES),
)


@given(SHAPED, SHAPED, SHAPED)
def test_grouping_does_not_matter(one: Any, two: Any, three: Any) -> None:
    assert merged(one, merged(two, three)) == merged(merged(one, two), three)


@given(MAPS, st.data())
def test_null_deletes_exactly_what_it_names(value: Any, data: st.DataObject) -> None:
    assume(value)
    gone = data.draw(st.sampled_from(sorted(value)))
    assert merged(value, {gone: None}) == {key: child for key, child in value.items() if key != gone}


@given(MAPS)
def test_null_on_what_is_not_there_is_a_problem(value: Any) -> None:
    problems: list[Problem] = []
    merge(node(value), node({"z": None}), problems, "spec")
    assert [problem.path for problem in problems] == ["spec.z"]
