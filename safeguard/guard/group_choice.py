"""Which one concept of a group (``one_of`` in a policy) acts in an image: drawn uniformly, and so that it can be told again.

An image is known by the state that its generator has when the call begins, since that decides its noise as well: the same seed
gives the same draw, and a generator that goes on from call to call gives a new one each time. Nothing is taken from any
generator. The concept of the lowest digest is drawn, so the order of the concepts makes no difference, and one that is added to
a group takes over its share of the images and leaves the others as they were.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safeguard.audit import GroupChoice
from safeguard.guard.call_args import PipelineCall


@dataclass(frozen=True, slots=True)
class Key:
    """What an image is drawn ``by`` (``generator``, ``request`` or ``chance``), and the hex SHA-256 of it."""

    by: str
    digest: str


def keys_of(asked: PipelineCall, request_id: str | None = None, earlier: int = 0) -> tuple[Key, ...]:
    """A key for each image of a call: by its generator, else by the name of the request, in which ``earlier`` images were made
    before, else by chance. Images that share a generator are told apart by their number.
    """
    named = request_id if request_id is not None else secrets.token_hex(32)
    keys, shared = [], Counter[int]()
    for image in range(asked.images):
        generator = asked.generators[image] if image < len(asked.generators) else None
        if generator is None:
            keys.append(_key("chance" if request_id is None else "request", named, earlier + image))
        else:
            keys.append(_key("generator", _state(generator), shared[id(generator)]))
            shared[id(generator)] += 1
    return tuple(keys)


def choose(groups: Mapping[str, Sequence[str]], key: Key) -> tuple[GroupChoice, ...]:
    """One concept of each group, of those that would act in the image."""
    return tuple(
        GroupChoice(group, lowest(names, group, key.digest), tuple(names), key.by, key.digest)
        for group, names in groups.items()
    )


def lowest(concepts: Iterable[str], group: str, key: str) -> str:
    """The concept whose SHA-256 of key, group and id, a line each, is the lowest."""
    return min(concepts, key=lambda name: hashlib.sha256(f"{key}\n{group}\n{name}\n".encode()).digest())


def _key(by: str, what: str, number: int) -> Key:
    return Key(by, hashlib.sha256(json.dumps([by, what, number]).encode()).hexdigest())


def _state(generator: Any) -> str:
    """A digest of where a generator stands; reading it takes nothing from it."""
    state = generator.get_state()
    return hashlib.sha256(state.cpu().numpy().tobytes()).hexdigest()
