"""A reward model (of HFI, arXiv 2407.21032): how much of a concept a picture shows, as people would say, and the file of one.

``r(x) = MLP(features(x))`` over a frozen encoder. A higher ``r`` is more of the concept. Learnt from answers it is about 0 for
pictures without the concept and 1 for those with it; learnt from rankings only its differences mean something, and its mean
over the pictures that it was learnt from is 0. `safeguard.training.reward_fit` learns it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from safeguard.erasing.adapter import Perceptron, write_whole
from safeguard.errors import CapabilityError
from safeguard.training.features import Encoder, Pixels, open_encoder

SCHEMA: Final = "safeguard.dev/reward/v1"
_KEY: Final = "safeguard"
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reward:
    """A trained reward model of one ``concept``, bound to its ``encoder`` by that one's digest.

    ``settings`` say what it was learnt from and how; ``report`` how it did on pictures that were left out.
    """

    concept: str
    kind: str
    encoder: Encoder = field(repr=False)
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
        from safetensors.torch import save

        tensors = {name: one.detach().cpu().contiguous() for name, one in self.tensors.items()}
        write_whole(Path(path), save(tensors, {_KEY: json.dumps(self.to_dict())}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: Encoder | str | os.PathLike[str] | None = None) -> Reward:
        """Read a file that `save` wrote; reading runs no code. ``encoder``: where its encoder lies now, if not where it lay.

        Raises CapabilityError for a file that is none and for an encoder with other weights, AssetError for none.
        """
        from safetensors import SafetensorError, safe_open

        name = os.fspath(path)
        try:
            with safe_open(path, "pt") as file:
                data = json.loads((file.metadata() or {})[_KEY])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            if data["schema"] != SCHEMA:
                raise ValueError("another schema")
            bound = data["encoder"]
            place, digest, width = str(bound["place"]), str(bound["digest"]), int(bound["width"])
            Perceptron(tensors, width, 1)
            rest = (str(data["concept"]), str(data["kind"])), (dict(data["settings"]), dict(data["report"]))
        except FileNotFoundError as fault:
            raise _refusal(f"{name}: there is no such file") from fault
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
            raise _refusal(f"{name}: this is no reward model ({fault})") from fault
        found = encoder if isinstance(encoder, Encoder) else open_encoder(place if encoder is None else encoder)
        if (found.digest, found.width) != (digest, width):
            raise _refusal(f"{name}: it was learnt on another encoder than {found.place}; name the one that lay at {place}")
        return cls(*rest[0], found, tensors, *rest[1])

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
        total = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode())
        for name in sorted(self.tensors):
            total.update(name.encode() + self.tensors[name].detach().cpu().contiguous().float().numpy().tobytes())
        return total.hexdigest()


def _refusal(what: str) -> CapabilityError:
    return CapabilityError(f"{what}; make one with safeguard feedback fit", missing="reward")
