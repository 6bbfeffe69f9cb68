"""YAML as a stranger may write it: traps, bombs and things that are not YAML."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeguard.policy.yaml_nodes import MAX_BYTES, MAX_DEPTH, MAX_NODES, read


def value_of(text: str) -> Any:
    root, problems = read(text.encode(), "f.yaml")
    assert problems == []
    assert root is not None
    return root.plain()


def only_problem(data: str | bytes) -> Any:
    _, problems = read(data if isinstance(data, bytes) else data.encode(), "f.yaml")
    assert len(problems) == 1
    return problems[0]


@pytest.mark.parametrize("word", ["off", "on", "no", "yes", "No", "12:30:00", "2024-01-01", "1_000", "0b11", "="])
def test_what_yaml_1_1_would_convert_stays_a_word(word: str) -> None:
    assert value_of(f"key: {word}") == {"key": word}


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("FALSE", False), ("~", None), ("", None), ("010", 10), ("0x1F", 31), ("0o17", 15), ("3.10", 3.1)],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = value_of(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_quoted_scalars_are_text() -> None:
    assert value_of("['true', \"3\", '~', '']") == ["true", "3", "~", ""]


def test_every_value_and_key_knows_its_place() -> None:
    root, _ = read(b"a: 1\nb:\n  - x\n  - {c: y}\n", "f.yaml")
    assert root is not None
    inner = root.children["b"].items[1]
    assert inner.keys["c"][1:] == (4, 6)
    assert inner.children["c"].mark[1:] == (4, 9)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "stands twice"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, 3, "merge keys"),
        ("a: !!python/object/apply:os.system [x]\n", 1, 4, "tags"),
        ("a: !!str 3\n", 1, 4, "tags"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
        ("", 1, 1, "empty"),
        ("# only a comment\n", 1, 1, "empty"),
        ("? [a]\n: 1\n", 1, 3, "plain text"),
        ("1: a\n", 1, 1, "must be text"),
        ("a: [1,\nb: 2\n", 3, 1, "not YAML"),
        ("a:\n\t- b\n", 2, 1, "not YAML"),
        ("a: .nan\n", 1, 4, "finite"),
        ("a: 1e999\n", 1, 4, "finite"),
        ("a: 99999999999999999999\n", 1, 4, "exactly"),
        ("a: 9007199254740992.0\n", 1, 4, "exactly"),
        ("a: *x\n", 1, 4, "without an anchor"),
        ("a: &x [*x]\n", 1, 8, "stands in"),
    ],
)
def test_a_fault_is_told_at_its_place(text: str, line: int, column: int, words: str) -> None:
    problem = only_problem(text)
    assert (problem.line, problem.column) == (line, column)
    assert words in problem.message


def test_bytes_that_are_not_utf8_are_told_at_their_place() -> None:
    problem = only_problem(b"a: b\nb: \xe9\n")
    assert (problem.line, problem.column) == (2, 4)


def test_a_control_character_is_told_at_its_place() -> None:
    problem = only_problem(b"a: b\nb: x\x00\n")
    assert (problem.line, problem.column) == (2, 5)
    assert "U+0000" in problem.message


def test_a_byte_order_mark_is_skipped() -> None:
    root, problems = read(b"\xef\xbb\xbfa: 1", "f.yaml")
    assert not problems
    assert root is not None
    assert root.plain() == {"a": 1}


def test_modest_aliases_are_written_out() -> None:
    assert value_of("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        "{a: " * 200_000,
        "- " * 400_000,
        "? " * 400_000,
        "\n".join(" " * depth + "a:" for depth in range(1_000)),
        LAUGHS,
        "a: &a " + "x" * 4_000 + "\nb: [" + ", ".join(["*a"] * 10_000) + "]",
        "a: " + "x" * 900_000,
        "\n".join(f"k{index}: 1" for index in range(60_000)),
        "&a " * 300_000,
        "x" * (MAX_BYTES + 1),
    ],
    ids=["list", "map", "dashes", "questions", "blocks", "laughs", "blow-up", "text", "many keys", "anchors", "large"],
)
def test_a_hostile_document_is_one_problem(text: str) -> None:
    assert only_problem(text).line >= 1


def test_the_bounds_leave_room_up_to_the_last_value() -> None:
    count = MAX_NODES - 1
    assert len(value_of("[" + "x," * count + "]")) == count
    assert value_of("[" * MAX_DEPTH + "]" * MAX_DEPTH)


def test_an_alias_cannot_reach_below_the_depth_bound() -> None:
    text = f"a: &a {'[' * 20}{']' * 20}\nb: [[[[[*a]]]]]\n"
    assert "deeper" in only_problem(text).message


@given(st.binary(max_size=300))
def test_any_bytes_give_a_tree_or_problems(data: bytes) -> None:
    root, problems = read(data, "f.yaml")
    assert root is not None or problems


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#,?%@` \n\t~0.1<", max_size=80))
def test_any_text_near_yaml_gives_a_tree_or_problems(text: str) -> None:
    root, problems = read(text.encode(), "f.yaml")
    assert root is not None or problems
    assert all(problem.line >= 1 for problem in problems)
