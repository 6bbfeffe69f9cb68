"""A reward model (of HFI, arXiv 2407.21032): how much of a concept a picture shows, as people would say, and the file of one.

``r(x) = MLP(features(x))`` over a frozen encoder. A higher ``r`` is more of the concept. Learnt from answers it is about 0 for
pictures without the concept and 1 for those with it; learnt from rankings only its differences mean something, and its mean
over the pictures that it was learnt from is 0. `safeguard.training.reward_fit` learns it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from safeguard._io import write_whole
from safeguard._tensor_files import digest_of, load, to_bytes
from safeguard.errors import CapabilityError
from safeguard.sdk.adapter import Perceptron
from safeguard.training.frozen_pipeline import Pixels
from safeguard.training.image_features import ImageEncoder, open_encoder

SCHEMA: Final = "safeguard.dev/reward/v1"
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reward:
    """A trained reward model of one ``concept``, bound to its ``encoder`` by that one's digest.

    ``settings`` say what it was learnt from and how; ``report`` how it did on pictures that were left out.
    """

    concept: str
    kind: str
    encoder: ImageEncoder = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, float | int | None] = field(default_factory=dict)

    def __call__(self, images: Pixels) -> Scores:
        """Pictures uint8 [n, h, w, 3] to rewards float32 [n]."""
        return self.of(self.encoder(images)).numpy()

    def of(self, features: Tensor) -> Tensor:
        """Features [n, width] of its encoder to rewards [n]."""
        return Perceptron(self.tensors, self.encoder.width, 1)(features)[:, 0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all. The same model gives the same bytes."""
        write_whole(Path(path), to_bytes(self.tensors, self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: ImageEncoder | str | os.PathLike[str] | None = None) -> Reward:
        """Read a file that `save` wrote; reading runs no code. ``encoder``: where its encoder lies now, if not where it lay.

        Raises CapabilityError for a file that is none and for an encoder with other weights, AssetError for none.
        """
        name = os.fspath(path)
        try:
            data, tensors = load(path)
            if data["schema"] != SCHEMA:
                raise ValueError("another schema")
            bound = data["encoder"]
            place, digest, width = str(bound["place"]), str(bound["digest"]), int(bound["width"])
            Perceptron(tensors, width, 1)
            rest = (str(data["concept"]), str(data["kind"])), (dict(data["settings"]), dict(data["report"]))
        except FileNotFoundError as fault:
            raise _refusal(f"{name}: there is no such file") from fault
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
            raise _refusal(f"{name}: this is no reward model ({fault})") from fault
        opened = encoder if isinstance(encoder, ImageEncoder) else open_encoder(place if encoder is None else encoder)
        if (opened.digest, opened.width) != (digest, width):
            raise _refusal(f"{name}: it was learnt on another encoder than {opened.place}; name the one that lay at {place}")
        return cls(*rest[0], opened, tensors, *rest[1])

    def to_dict(self) -> dict[str, Any]:
        """All but the weights, as it stands in the file."""
        bound = {"place": self.encoder.place, "kind": self.encoder.kind}
        return {
            "schema": SCHEMA,
            "concept": self.concept,
            "kind": self.kind,
            "encoder": {**bound, "digest": self.encoder.digest, "width": self.encoder.width},
            "settings": dict(self.settings),
            "report": dict(self.report),
        }

    @property
    def digest(self) -> str:
        """Names the model: hex SHA-256 over all of it."""
        return digest_of(self.tensors, self.to_dict())


def _refusal(what: str) -> CapabilityError:
    return CapabilityError(f"{what}; make one with safeguard feedback fit", missing="reward")
