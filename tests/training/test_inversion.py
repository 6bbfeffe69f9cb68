"""Stage 3 of HFI: which pictures a word is learnt from, by which weights, and what its learning changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from safeguard.errors import CapabilityError, SafeguardError
from safeguard.training.feedback_inversion import Inversion, InversionSettings, best
from safeguard.training.frozen_pipeline import FrozenPipeline, weights_digest
from safeguard.training.textual_inversion import beside, embedding_tables, plain
from tests.support.families import FAMILIES, SIDE, TOKENS

FEW = InversionSettings(updates=3, batch=2, rate=1e-2)
REWARDS = np.array([0.1, 0.9, 0.6, 0.8], np.float32)


class StoppedError(RuntimeError):
    """What a test stops a learning with."""


def latents(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(seed))


def inversion(pipe: Any, weights: torch.Tensor | None = None, vectors: int = 1, **more: Any) -> Inversion:
    word = plain(pipe, "<blood>", "blood", vectors)
    frozen = FrozenPipeline(beside(pipe, [word]))
    settings = replace(FEW, **more.pop("changes", {}))
    return Inversion(frozen, [word], latents(), torch.ones(4) if weights is None else weights, settings, **more)


@pytest.fixture
def pipe() -> Any:
    return FAMILIES["sd1"]()


def test_the_best_pictures_are_weighed_by_how_likely_each_is_put_highest() -> None:
    places, weights = best(REWARDS, 3)
    assert places == [1, 3, 2]
    likely = np.exp([0.9, 0.8, 0.6]) / np.exp([0.9, 0.8, 0.6]).sum()
    assert weights.tolist() == pytest.approx((3 * likely).tolist(), rel=1e-5)
    torch.testing.assert_close(best(REWARDS + 8, 3)[1], weights)  # only differences count


def test_equal_rewards_weigh_one() -> None:
    places, weights = best(np.full(4, 0.7, np.float32), 9)
    assert (places, weights.tolist()) == ([0, 1, 2, 3], [1.0] * 4)


def test_pictures_below_a_bound_are_left_out() -> None:
    assert best(REWARDS, 9, above=0.5)[0] == [1, 3, 2]


def test_a_constant_reward_is_plain_inversion_up_to_a_factor(pipe: Any) -> None:
    plainly, doubled = (inversion(pipe, torch.full((4,), weight)) for weight in (1.0, 2.0))
    for step in range(3):
        with torch.no_grad(), plainly.lesson.under_way(), doubled.lesson.under_way():
            assert doubled.loss(step).item() == pytest.approx(2 * plainly.loss(step).item(), rel=1e-6)
    _, weights = best(np.full(4, 0.3, np.float32), 4)
    (one,), (other,) = (inversion(pipe, made).run() for made in (None, weights))
    assert torch.equal(one.rows["clip_l"], other.rows["clip_l"])


def test_the_loss_is_the_denoisers_error_on_a_text_with_the_word(pipe: Any) -> None:
    work = inversion(pipe, texts=[["a <blood>"]] * 4, changes={"batch": 1})
    frozen, word = work._frozen, work.lesson.words[0]
    with torch.no_grad(), work.lesson.under_way():
        found = work.loss(0)
        ids = frozen.pipe.tokenizer("a <blood>", padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        table = embedding_tables(frozen.pipe)[0].table.weight
        embedded = F.embedding(ids, table)
        assert torch.equal(embedded[0, 2], word.rows["clip_l"][0])
        states = frozen.pipe.text_encoder(ids)[0]
        given = frozen.arguments(["a <blood>"])["encoder_hidden_states"]
    assert torch.equal(states, given)
    assert found.item() > 0


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_only_the_rows_of_the_word_are_learnt(family: str, vectors: int) -> None:
    pipe = FAMILIES[family]()
    before = weights_digest(pipe.components)
    work = inversion(pipe, vectors=vectors)
    twin = work._frozen.pipe
    tables = {one.key: one.table.weight.detach().clone() for one in embedding_tables(twin)}
    began = work.lesson.words[0]
    (learnt,) = work.run()
    for one in embedding_tables(twin):
        assert not torch.equal(learnt.rows[one.key], began.rows[one.key])
        changed = (one.table.weight != tables[one.key]).any(1).nonzero().flatten().tolist()
        assert changed == one.numbers("<blood>", vectors)
    assert weights_digest(pipe.components) == before
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())


def test_the_loss_falls(pipe: Any) -> None:
    work = inversion(pipe, changes={"updates": 20, "rate": 5e-2})
    work.run()
    report = work.report()
    assert report["loss_after"] < report["loss_before"]
    assert report["moved"] > 0


def test_the_same_seed_gives_the_same_word(pipe: Any) -> None:
    (one,), (other,), (third,) = (inversion(pipe, changes={"seed": seed}).run() for seed in (0, 0, 1))
    assert one.digest == other.digest != third.digest


def test_a_learning_that_was_stopped_goes_on(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard.training.feedback_inversion.SAVED", 2)

    def stop(done: int, whole: int) -> None:
        if done == 3:
            raise StoppedError

    kept = {"checkpoint": tmp_path / "checkpoint", "changes": {"updates": 4}}
    with pytest.raises(StoppedError):
        inversion(pipe, **kept).run(stop)
    steps: list[int] = []
    (made,) = inversion(pipe, **{**kept, "changes": {"updates": 4}}).run(lambda done, whole: steps.append(done))
    assert steps == [3, 4]
    assert made.digest == inversion(pipe, changes={"updates": 4}).run()[0].digest


def test_a_pipeline_through_whose_text_no_gradient_comes_is_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = type(pipe).encode_prompt
    monkeypatch.setattr(type(pipe), "encode_prompt", torch.no_grad()(encode))
    with pytest.raises(CapabilityError, match="no gradient comes through the text of StableDiffusionPipeline"):
        inversion(pipe).run()


def test_pictures_of_another_size_are_refused(pipe: Any) -> None:
    word = plain(pipe, "<blood>", "blood")
    frozen = FrozenPipeline(beside(pipe, [word]))
    with pytest.raises(CapabilityError, match="does not give its unet latents of 4x4x4, as its autoencoder makes them"):
        Inversion(frozen, [word], torch.zeros(4, 4, 4, 4), torch.ones(4), FEW)


def test_pictures_become_latents_by_the_pipelines_own_scale(pipe: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        expected = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(FrozenPipeline(pipe).latents_of(images, batch=2), expected, atol=1e-5)
    shifted = FAMILIES["sd3"]()
    with torch.no_grad():
        expected = (shifted.vae.encode(pixels).latent_dist.mode() - 0.1) * shifted.vae.config.scaling_factor
    beside_it = FrozenPipeline(shifted, {"max_sequence_length": 0})
    assert torch.allclose(beside_it.latents_of(images), expected, atol=1e-5)


def test_a_batch_that_does_not_fit_into_memory_is_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard.training.memory_check.free_memory", lambda device: 1000)
    with pytest.raises(SafeguardError, match=r"training a learned word of StableDiffusionPipeline takes .* with --batch"):
        inversion(pipe).run()


def test_a_pipeline_that_makes_no_latents_is_refused(pipe: Any) -> None:
    frozen = FrozenPipeline(pipe)
    pipe.vae = None
    with pytest.raises(CapabilityError, match="does not say by one factor how pictures become latents"):
        frozen.latents_of(np.zeros((1, SIDE, SIDE, 3), np.uint8))
