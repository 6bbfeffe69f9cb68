"""What is fitted and computed from the shipped texts, once for each encoder: the reference that every score is measured on.

For the bundled encoder it is shipped (``head.safetensors``, written by ``python -m safeguard.screening.fit_heads``); for a
model that the user names it is fitted in the process, from the same texts without their templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from safeguard.errors import AssetError
from safeguard.screening.corpus import Corpus, Family
from safeguard.screening.encoder import Encoder, Vectors

FILE = "head.safetensors"
UNION = "union"
FOLDS = 5


@dataclass(frozen=True, slots=True)
class FamilyHead:
    """A direction that tells unsafe from benign: ``vector @ weight``."""

    weight: Vectors  # [width]
    unseen: Vectors  # [benign]: what each benign text scores under a head fitted without it


@dataclass(frozen=True, slots=True)
class Reference:
    """``benign`` [b, width]; per family ``names`` [k, width] and ``examples`` [m, width]; ``heads`` by family and ``union``."""

    encoder: str
    benign: Vectors
    names: Mapping[str, Vectors]
    examples: Mapping[str, Vectors]
    heads: Mapping[str, FamilyHead]

    def neighbours(self) -> Vectors:
        """Cosines among the benign texts, [b, b], each text's to itself set to -1: it must not be its own neighbour."""
        cosines = self.benign @ self.benign.T
        np.fill_diagonal(cosines, -1.0)
        return cosines


def fit(encoder: Encoder, texts: Corpus, *, templates: bool = True) -> Reference:
    """Logistic heads on the texts alone: each family and the union against the benign texts. Deterministic."""
    forms = texts.templates if templates else ("{}",)
    benign = _forms(encoder, texts.benign, forms)  # [b, forms, width]
    unsafe = {name: _forms(encoder, _sayings(family), forms) for name, family in texts.families.items()}
    stacks = {UNION: np.concatenate(list(unsafe.values())), **unsafe}
    return Reference(
        encoder=encoder.name,
        benign=encoder.encode(texts.benign),
        names={name: encoder.encode(family.names) for name, family in texts.families.items()},
        examples={name: encoder.encode(family.examples) for name, family in texts.families.items()},
        heads={name: _fit_head(stack, benign) for name, stack in stacks.items()},
    )


def _sayings(family: Family) -> tuple[str, ...]:
    return family.names + family.phrases + family.examples


def _forms(encoder: Encoder, texts: tuple[str, ...], forms: tuple[str, ...]) -> Vectors:
    flat = encoder.encode([form.format(text) for text in texts for form in forms])
    return flat.reshape(len(texts), len(forms), -1)


def _fit_head(unsafe: Vectors, benign: Vectors) -> FamilyHead:
    """``unsafe`` [u, forms, width] against ``benign`` [b, forms, width]; folds are cut by text, never by form."""
    weight = _logistic(unsafe, benign)
    unseen = np.empty(len(benign), dtype=np.float32)
    for fold in range(FOLDS):
        out = np.arange(len(benign)) % FOLDS == fold
        unseen[out] = benign[out, 0] @ _logistic(unsafe, benign[~out])
    return FamilyHead(weight, unseen)


def _logistic(unsafe: Vectors, benign: Vectors) -> Vectors:
    from sklearn.linear_model import LogisticRegression

    width = benign.shape[-1]
    rows = np.concatenate([unsafe.reshape(-1, width), benign.reshape(-1, width)]).astype(np.float64)
    labels = np.repeat([1, 0], [len(rows) - benign.size // width, benign.size // width])
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000, tol=1e-6)
    model.fit(rows, labels)
    return np.asarray(model.coef_[0], dtype=np.float32)


def save(reference: Reference, texts: Corpus, path: Path) -> None:
    """Half precision: about half a megabyte; cosines move by less than 0.001."""
    from safetensors.numpy import save_file

    arrays = {"benign": reference.benign}
    for name in reference.names:
        arrays |= {f"names.{name}": reference.names[name], f"examples.{name}": reference.examples[name]}
    for name, head in reference.heads.items():
        arrays |= {f"head.{name}.weight": head.weight, f"head.{name}.unseen": head.unseen}
    metadata = {"encoder": reference.encoder, "texts": texts.digest, "families": json.dumps(list(reference.names))}
    save_file({key: value.astype(np.float16) for key, value in arrays.items()}, path, metadata=metadata)


def load(encoder_name: str, texts: Corpus, path: Path | None = None) -> Reference:
    """Read what ``save`` wrote. Raises AssetError if it is missing, damaged, or of another encoder or other texts."""
    from safetensors import SafetensorError, safe_open

    try:
        with as_file(files("safeguard.screening").joinpath(FILE)) as shipped, safe_open(path or shipped, "numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            arrays = {key: np.asarray(file.get_tensor(key), dtype=np.float32) for key in file.keys()}  # noqa: SIM118
        if (metadata["encoder"], metadata["texts"]) != (encoder_name, texts.digest):
            raise AssetError(
                f"{FILE} was fitted on another encoder or other texts; run: python -m safeguard.screening.fit_heads"
            )
        families: list[str] = json.loads(metadata["families"])
        return Reference(
            encoder=encoder_name,
            benign=_unit(arrays["benign"]),
            names={name: _unit(arrays[f"names.{name}"]) for name in families},
            examples={name: _unit(arrays[f"examples.{name}"]) for name in families},
            heads={
                name: FamilyHead(arrays[f"head.{name}.weight"], arrays[f"head.{name}.unseen"]) for name in (UNION, *families)
            },
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise AssetError(f"{FILE}: {type(error).__name__}; reinstall the package, or fit it again") from error


def _unit(rows: npt.NDArray[np.float32]) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)
