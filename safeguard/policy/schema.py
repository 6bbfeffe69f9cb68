"""The JSON Schemas of a policy and of its tests, and their errors told at a line and in plain words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from safeguard.errors import Problem
from safeguard.policy.yaml_nodes import Node, join, problem, shown

MAX_FOUND = 200  # more than anyone is shown; looking for the word that was meant costs time for each

_TYPE_NAMES = {
    "object": "a map",
    "array": "a list",
    "string": "text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}


def schema_text(kind: str = "policy") -> str:
    """The schema of ``policy`` or ``policy_test`` documents, JSON Schema draft-07, as shipped."""
    return resources.files("safeguard.policy").joinpath(f"{kind}.schema.json").read_text("utf-8")


@cache
def _validator(kind: str) -> Draft7Validator:
    schema = json.loads(schema_text(kind))
    return Draft7Validator(_inline(schema, schema.pop("definitions", {})))


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with its references written out: looking them up again for each value took half of the time."""
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].removeprefix("#/definitions/")], definitions)
    return {key: _inline(item, definitions) for key, item in schema.items()}


def check(root: Node, kind: str) -> list[Problem]:
    """Everything in which the document differs from the schema, in the order of the document; at most ``MAX_FOUND``."""
    errors = _validator(kind).iter_errors(root.plain())
    problems = list(islice((problem for error in errors for problem in _translate(root, error)), MAX_FOUND))
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _translate(root: Node, error: ValidationError) -> Iterator[Problem]:
    steps = list(error.absolute_path)
    node = _at(root, steps)
    if error.validator == "additionalProperties":
        known = _schema(error).get("properties", {})
        for key in [key for key in node.children if key not in known]:
            hint = did_you_mean(key, known) or f"known here: {', '.join(known)}"
            yield problem(node.keys[key], join(*steps, key), f"unknown key {shown(key)}", hint)
    elif error.validator == "anyOf":
        yield from _translate_choice(root, error)
    elif "propertyNames" in error.absolute_schema_path:
        # The path of such an error is that of the map, the instance is the key.
        key = str(error.instance)
        hint = "lower-case letters and digits, joined by '-' or '_', at most 64"
        yield problem(node.keys[key], join(*steps, key), f"{shown(key)} cannot be an id", hint)
    else:
        yield problem(node.mark, join(*steps), *_explain(error, node))


def _at(root: Node, steps: Iterable[str | int]) -> Node:
    node = root
    for step in steps:
        node = node.items[step] if isinstance(step, int) else node.children[step]
    return node


def _translate_choice(root: Node, error: ValidationError) -> Iterator[Problem]:
    """Of several allowed forms, complains about the one that the writer seems to have meant: that of the same type."""
    branches: dict[int, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(int(inner.schema_path[0]), []).append(inner)
    depth = len(error.absolute_path)
    for inners in branches.values():
        if not any(inner.validator == "type" and len(inner.absolute_path) == depth for inner in inners):
            for inner in inners:
                yield from _translate(root, inner)
            return
    steps = list(error.absolute_path)
    node = _at(root, steps)
    forms = dict.fromkeys(_form(branch) for branch in _schema(error)["anyOf"] if branch["type"] != "null")
    yield problem(node.mark, join(*steps), f"must be {' or '.join(forms)}, not {_kind(node)}")


def _schema(error: ValidationError) -> dict[str, Any]:
    return dict(error.schema) if isinstance(error.schema, Mapping) else {}


def _form(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    return _TYPE_NAMES[schema["type"]]


def _explain(error: ValidationError, node: Node) -> tuple[str, str]:
    """Message and hint for one fault. Neither quotes a value: it may be a prompt, or come from the environment."""
    limit: Any = error.validator_value
    match error.validator:
        case "type":
            types = [limit] if isinstance(limit, str) else list(limit)
            wanted = " or ".join(_TYPE_NAMES[name] for name in types if name != "null")
            quotes = "put it in quotes" if "string" in types and isinstance(node.value, (bool, int, float)) else ""
            return f"must be {wanted}, not {_kind(node)}", quotes
        case "enum":
            return _explain_enum([str(word) for word in limit if word is not None], node)
        case "required":
            missing = [key for key in limit if key not in node.children]
            # jsonschema reports each missing key on its own; the message names the key it is about.
            name = next((key for key in missing if error.message.startswith(repr(key))), missing[0])
            return f"the key {name!r} is missing", f"add '{name}:'"
        case "minimum" | "maximum":
            schema = _schema(error)
            return f"must be a number from {schema['minimum']} to {schema['maximum']}", ""
        case "minLength" | "minItems":
            return ("must not be empty", "") if limit == 1 else (f"must have {limit} entries", "")
        case "maxItems" if _schema(error).get("minItems") == limit:
            return f"must have {limit} entries", ""
        case "maxLength":
            return f"must have at most {limit} characters", ""
        case "maxItems":
            return f"must have at most {limit} entries", ""
        case "pattern":
            return "must be lower-case letters and digits, joined by '-' or '_'", ""
    return f"does not fit the schema ({error.validator})", "see 'safeguard schema'"


def _explain_enum(words: list[str], node: Node) -> tuple[str, str]:
    allowed = f"must be {'one of ' if len(words) > 1 else ''}{', '.join(words)}"
    if node.variable:
        return f"{allowed}; the value of ${{{node.variable}}} is none of them", ""
    if isinstance(node.value, str):
        return f"{allowed}, not {shown(node.value)}", did_you_mean(node.value, words)
    return f"{allowed}, not {_kind(node)}", ""


def _kind(node: Node) -> str:
    value = node.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return "a number"
    if value is None:
        return "null (nothing stands there)"
    return "a map" if isinstance(value, dict) else "a list" if isinstance(value, list) else "text"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word that is closest, or nothing."""
    if len(word) > 64:  # difflib is quadratic, and nobody mistypes this much
        return ""
    lowered = {known_word.lower(): known_word for known_word in known}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f"did you mean {lowered[close[0]]!r}?" if close else ""
