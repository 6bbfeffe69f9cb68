"""The bundled encoder: the numbers of sentence-transformers, no network, no altered weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from safeguard.errors import AssetError, ScreenError
from safeguard.screening import encoder as module
from safeguard.screening.encoder import Encoder, bundled_folder

TEXTS = ["a cat", "", "  ", "a portrait of an old king, oil painting, 8k " * 12, "一只猫", "\ud800 lone", "🩸"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


def test_equal_to_sentence_transformers(encoder: Encoder) -> None:
    other = Encoder(bundled_folder())
    np.testing.assert_allclose(encoder.encode(TEXTS), other.encode(TEXTS), atol=1e-5)
    assert other.name.startswith("model@")


def test_unit_rows_in_order(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], encoder.encode(["a cat"])[0])


def test_batch_equals_single() -> None:
    alone = np.concatenate([Encoder(cache_size=0).encode([text]) for text in TEXTS[:4]])
    np.testing.assert_allclose(Encoder(cache_size=0).encode(TEXTS)[:4], alone, atol=1e-5)


def test_cache_is_bounded_and_changes_nothing() -> None:
    small = Encoder(cache_size=2)
    first = small.encode(TEXTS)
    np.testing.assert_allclose(small.encode(TEXTS[::-1])[::-1], first, atol=1e-6)
    assert len(small._cache) == 2


def test_nothing_to_encode(encoder: Encoder) -> None:
    assert len(encoder.encode([])) == 0


def test_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder(), folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00" if file.read(1) != b"\x00" else b"\x01")
    monkeypatch.setattr(module, "bundled_folder", lambda: folder)
    with pytest.raises(AssetError, match=r"model\.safetensors: SHA-256"):
        Encoder().encode(["a cat"])


def test_missing_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bundled_folder", lambda: tmp_path)
    with pytest.raises(AssetError, match="cannot be read"):
        Encoder().encode(["a cat"])


def test_unknown_model_is_a_screen_error(tmp_path: Path) -> None:
    with pytest.raises(ScreenError, match="cannot be loaded"):
        Encoder(tmp_path / "none").encode(["a cat"])
