"""How a compiled graph hands on what its denoiser was called with: tensors by their paths, and the rest in words."""

from __future__ import annotations

import ast
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from safeguard.instrument.hooks.graph_values import flatten, rest_of, restore, spell, unflatten

PLAIN = st.none() | st.booleans() | st.text(max_size=8)
NAMES = st.text("abcdefgh_", min_size=1, max_size=5)
NUMBERS = st.integers(-(2**50), 2**50) | st.floats(allow_nan=False, allow_infinity=False)
LISTED = st.recursive(PLAIN | st.integers(0, 99), lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner))
CALLS = st.dictionaries(NAMES, PLAIN | NUMBERS | LISTED | st.dictionaries(NAMES, PLAIN | NUMBERS, max_size=3), max_size=5)


def handed_on(values: dict[str, Any]) -> dict[str, Any]:
    flat = dict(flatten(values))
    made = unflatten(list(flat.values()), " ".join(flat))
    said = "{" + ", ".join(f"{path!r}: {value}" for path, value in rest_of(values)) + "}"
    restore(made, ast.literal_eval(said))
    return made


@given(CALLS)
def test_what_holds_no_tensor_comes_out_as_it_went_in(values: dict[str, Any]) -> None:
    assert handed_on(values) == values


def test_tensors_keep_their_places() -> None:
    values: dict[str, Any] = {
        "sample": torch.ones(2),
        "added": {"ids": torch.zeros(3), "scale": 0.5},
        "texts": [torch.ones(1), torch.zeros(1)],
    }
    made = handed_on({**values, "return_dict": False})
    assert made["sample"] is values["sample"]
    assert made["added"]["ids"] is values["added"]["ids"]
    assert (made["added"]["scale"], made["return_dict"]) == (0.5, False)
    assert [one is other for one, other in zip(made["texts"], values["texts"], strict=True)] == [True, True]


def test_what_no_words_tell_is_known_to_be_missing() -> None:
    assert spell({"processor": object()}) == ""
    assert spell([float("nan")]) == spell((1.0, float("inf"))) == ""
    assert spell([(1, 2), "three", None]) == "[(1, 2,), 'three', None]"
