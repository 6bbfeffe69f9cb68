"""The shipped texts (``texts.yaml``): what the heads are fitted on and every threshold is calibrated on."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.resources import files

import yaml

from safeguard.errors import AssetError


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of unsafe content: abstract names, concrete phrases, list words, whole prompts, and what policies call it."""

    names: tuple[str, ...]
    phrases: tuple[str, ...]
    words: tuple[str, ...]
    examples: tuple[str, ...]
    aliases: frozenset[str]


@dataclass(frozen=True, slots=True)
class Corpus:
    families: dict[str, Family]
    benign: tuple[str, ...]
    hard: tuple[bool, ...]  # per benign text: is it a hard negative (killer whale)?
    templates: tuple[str, ...]  # each with one {}
    digest: str  # SHA-256 of the file


@functools.cache
def shipped_corpus() -> Corpus:
    """Read once a process. Raises AssetError if the file is missing or no longer has its shape."""
    try:
        data = files("safeguard.screening").joinpath("texts.yaml").read_bytes()
        document = yaml.safe_load(data)
        families = {
            name: Family(
                names=_lines(body["names"]),
                phrases=_lines(body["phrases"]),
                words=tuple(body["words"].split()),
                examples=_lines(body["examples"]),
                aliases=frozenset(body["aliases"].split()),
            )
            for name, body in document["families"].items()
        }
        benign = {kind: _lines(block) for kind, block in document["benign"].items()}
        return Corpus(
            families=families,
            benign=tuple(line for lines in benign.values() for line in lines),
            hard=tuple(kind == "hard" for kind, lines in benign.items() for _ in lines),
            templates=_lines(document["templates"]),
            digest=hashlib.sha256(data).hexdigest(),
        )
    except (OSError, yaml.YAMLError, KeyError, AttributeError, TypeError) as error:
        raise AssetError(f"safeguard/screening/texts.yaml: {type(error).__name__}; reinstall the package") from error


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line for line in block.splitlines() if line)
