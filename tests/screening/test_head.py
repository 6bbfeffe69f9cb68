"""The shipped head belongs to the shipped texts and the pinned encoder, and can be fitted again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safeguard.errors import AssetError
from safeguard.screening.corpus import shipped_corpus
from safeguard.screening.encoder import Encoder
from safeguard.screening.head import UNION, fit, load, save


def test_shipped_head_loads_and_has_every_family() -> None:
    texts = shipped_corpus()
    reference = load(Encoder().name, texts)
    assert set(reference.heads) == {UNION, *texts.families}
    assert len(reference.benign) == len(texts.benign) == len(texts.hard)


def test_head_of_another_encoder_is_refused() -> None:
    with pytest.raises(AssetError, match="another encoder or other texts"):
        load("other@00000000", shipped_corpus())


def test_damaged_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(b"not a head")
    with pytest.raises(AssetError, match="reinstall"):
        load(Encoder().name, shipped_corpus(), path)


def test_fit_is_deterministic_and_survives_a_round_trip(tmp_path: Path) -> None:
    texts, encoder = shipped_corpus(), Encoder()
    first, second = (fit(encoder, texts, templates=False) for _ in range(2))
    np.testing.assert_array_equal(first.heads[UNION].weight, second.heads[UNION].weight)
    path = tmp_path / "head.safetensors"
    save(first, texts, path)
    again = load(encoder.name, texts, path)
    np.testing.assert_allclose(again.heads[UNION].weight, first.heads[UNION].weight, atol=5e-3)
    np.testing.assert_allclose(again.benign, first.benign, atol=1e-3)


def test_union_head_tells_unsafe_texts_from_benign_ones_it_never_saw() -> None:
    texts, encoder = shipped_corpus(), Encoder()
    head = load(encoder.name, texts).heads[UNION]
    unsafe = encoder.encode([text for family in texts.families.values() for text in family.examples]) @ head.weight
    assert (unsafe > np.quantile(head.unseen, 0.9)).mean() > 0.8


def test_texts_are_many_and_distinct() -> None:
    texts = shipped_corpus()
    assert len(texts.benign) == len(set(texts.benign)) >= 120
    assert all(len(family.examples) >= 20 for family in texts.families.values())
