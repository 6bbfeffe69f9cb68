"""The reward model: what its losses say, what it learns from a store, and the file that keeps it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safeguard_demo import Judge
from safeguard_demo.captions import combinations
from safeguard_demo.training_data import DemoTrainingData
from safeguard_demo.world import BENIGN_PLACES, Scene, render

from safeguard.errors import AssetError, CapabilityError, FeedbackError
from safeguard.feedback import FeedbackStore, PictureModel
from safeguard.sdk.adapter import Perceptron
from safeguard.training.feedback_collection import paint, stand_in
from safeguard.training.image_features import ImageEncoder, open_encoder
from safeguard.training.reward import Reward
from safeguard.training.reward_fit import Labels, answer_loss, fit, labels_of, pair_loss, report, train_reward

NAMES = tuple(f"{place:064x}" for place in range(60))


def _points(count: int = 60) -> torch.Tensor:
    """Features [count, 3], the first of which tells all."""
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def _rewards(layers: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    return Perceptron(layers, features.shape[1], 1)(features)[:, 0]


def test_the_pair_loss_is_the_likelihood_of_bradley_and_terry() -> None:
    more, less = torch.tensor([0.3, -1.0]), torch.tensor([-0.2, 2.0])
    expected = -((1 / (1 + np.exp(-0.5))) * 1.0), -(1 / (1 + np.exp(3.0)))
    assert pair_loss(more, less).item() == pytest.approx(-np.mean(np.log([-one for one in expected])), abs=1e-6)


def test_to_swap_more_and_less_turns_the_gradient_round() -> None:
    r = torch.tensor([0.4, 0.4], requires_grad=True)
    (one,) = torch.autograd.grad(pair_loss(r[:1], r[1:]), r)
    (other,) = torch.autograd.grad(pair_loss(r[1:], r[:1]), r)
    assert torch.equal(one, -other)
    assert one[0] < 0 < one[1]  # a step down the gradient raises what was put higher
    r = torch.tensor([1.5, -0.7], requires_grad=True)
    (one,) = torch.autograd.grad(pair_loss(r[:1], r[1:]), r)
    (other,) = torch.autograd.grad(pair_loss(r[1:], r[:1]), r)
    assert torch.equal(one.sign(), -other.sign())


def test_a_set_that_can_be_told_apart_reaches_next_to_no_loss() -> None:
    x = _points()
    order = x[:, 0].argsort().tolist()
    pairs = tuple((order[at], order[at + 10]) for at in range(50))
    r = _rewards(fit(x, Labels(NAMES, pairs=pairs), updates=2000), x)
    less, more = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert pair_loss(r[more], r[less]).item() < 0.02
    assert r.mean().item() == pytest.approx(0.0, abs=1e-4)
    values = (x[:, 0] > 0).float()
    r = _rewards(fit(x, Labels(NAMES, tuple(values.tolist())), updates=2000), x)
    assert answer_loss(r, values).item() < 0.01


@pytest.mark.parametrize("said", [0.0, 1.0, 0.5])
def test_where_all_say_the_same_that_is_what_is_learnt(said: float) -> None:
    x = _points()
    assert torch.equal(_rewards(fit(x, Labels(NAMES, (said,) * 60)), 50 * x), torch.full((60,), said))


def test_the_same_labels_and_seed_give_the_same_bits_and_leave_torchs_own_seed_alone() -> None:
    x, labels = _points(), Labels(NAMES, tuple((_points()[:, 0] > 0).float().tolist()))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other, third = (fit(x, labels, seed, 20) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["0.weight"], third["0.weight"])


def test_the_report_is_of_pictures_that_were_left_out() -> None:
    x = _points()
    noise = tuple(torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(2)).float().tolist())
    told, untold = report(x, Labels(NAMES, tuple((x[:, 0] > 0).float().tolist()))), report(x, Labels(NAMES, noise))
    assert told["auroc"] > 0.95  # type: ignore[operator]
    assert untold["auroc"] < 0.7  # type: ignore[operator]
    assert report(x, Labels(NAMES, (1.0,) * 60))["auroc"] is None
    order = x[:, 0].argsort().tolist()
    pairs = tuple((order[at], order[at + 20]) for at in range(40))
    assert report(x, Labels(NAMES, pairs=pairs))["pair_accuracy"] > 0.9  # type: ignore[operator]


def _drawn(concepts: tuple[str, ...], rng: random.Random) -> Any:
    subject, colour, _ = rng.choice(combinations("train", BENIGN_PLACES))
    return render(Scene(subject, colour, rng.choice(BENIGN_PLACES), concepts), rng)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> FeedbackStore:
    """A store of forty drawn pictures, every other one with blood, of which the judge has said so and ranked some."""
    store, rng = FeedbackStore(tmp_path_factory.mktemp("asked") / "store", create=True), random.Random(0)
    for number in range(40):
        store.add(_drawn(("blood",) if number % 2 else (), rng), "blood", model=PictureModel("drawn"), seed=number)
    stand_in(store, "blood", Judge())
    stand_in(store, "blood", Judge(), rankings=12)
    return store


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return open_encoder()


@pytest.fixture(scope="module")
def learnt(asked: FeedbackStore, encoder: ImageEncoder) -> Reward:
    return train_reward(asked, "blood", encoder=encoder)


def test_the_judge_stands_in_and_is_never_taken_for_a_person(asked: FeedbackStore) -> None:
    assert {(one.who, one.by) for one in asked.judgements()} == {("judge", "judge")}
    assert 15 <= sum(given["judge"] == "yes" for given in asked.labels("blood").values()) <= 25
    assert len(asked.rankings("blood")) == 12


def test_a_reward_learns_what_was_said_and_says_from_what(asked: FeedbackStore, learnt: Reward) -> None:
    assert (learnt.concept, learnt.kind, learnt.encoder.kind) == ("blood", "binary", "autoencoder")
    assert learnt.report["auroc"] >= 0.9  # type: ignore[operator]
    said = asked.labels("blood")
    r = learnt(asked.pixels(said))
    assert (r.dtype, r.shape) == (np.float32, (40,))
    yes = np.array([given["judge"] == "yes" for given in said.values()])
    assert r[yes].mean() > 0.9 > 0.1 > r[~yes].mean()
    assert (learnt.settings["by_judge"], learnt.settings["by_person"], learnt.settings["pictures"]) == (40, 0, 40)
    assert learnt(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0,)


def test_a_reward_is_learnt_from_rankings(asked: FeedbackStore, encoder: ImageEncoder) -> None:
    made = train_reward(asked, "blood", kind="ranking", encoder=encoder)
    assert (made.kind, made.settings["pairs"]) == ("ranking", 12 * 6)
    assert made.report["pair_accuracy"] >= 0.7  # type: ignore[operator]
    pictures = asked.pixels(asked.labels("blood"))
    assert made(pictures).mean() == pytest.approx(0.0, abs=1e-3)


def test_people_outvote_one_another_and_unsure_does_not_count(asked: FeedbackStore, tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "s", create=True)
    rng = random.Random(3)
    images = [store.add(_drawn((), rng), "blood", model=PictureModel("drawn")).image for _ in range(11)]
    for who, answers in (("ana", ["yes"] * 10), ("ben", ["no"] * 5 + ["unsure"] * 5), ("cleo", ["yes", "unsure"])):
        store.answer_all("blood", dict(zip(images, answers, strict=False)), who=who)
    store.answer("blood", images[10], "unsure", who="ana")
    labels = labels_of(store, "blood", "binary")
    told = dict(zip(labels.images, labels.values, strict=True))
    assert images[10] not in told
    assert [told[image] for image in images[:10]] == [pytest.approx(2 / 3), *[0.5] * 4, *[1.0] * 5]


def test_the_file_gives_the_same_model_and_the_same_bytes(learnt: Reward, asked: FeedbackStore, tmp_path: Path) -> None:
    learnt.save(tmp_path / "a.safetensors")
    again = Reward.load(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert again.digest == learnt.digest == train_reward(asked, "blood").digest
    pictures = asked.pixels(asked.labels("blood"))
    assert np.array_equal(again(pictures), learnt(pictures))


def test_a_file_is_bound_to_its_encoder(learnt: Reward, encoder: ImageEncoder, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    learnt.save(file)
    with pytest.raises(CapabilityError, match="learnt on another encoder than demo; name the one that lay at demo"):
        Reward.load(file, replace(encoder, digest="0" * 64))
    with pytest.raises(AssetError, match="holds no image encoder"):
        Reward.load(file, tmp_path / "none")
    with pytest.raises(CapabilityError, match="there is no such file; make one with safeguard feedback fit"):
        Reward.load(tmp_path / "none.safetensors")
    file.write_bytes(b"no model")
    with pytest.raises(CapabilityError, match="this is no reward model"):
        Reward.load(file)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained CLIP vision tower of 32 pixels."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("clip") / "tower"
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPVisionConfig(**small, image_size=32, patch_size=8, projection_dim=24)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_clips_vision_tower_is_an_encoder_as_in_the_paper(clip: Path, asked: FeedbackStore, tmp_path: Path) -> None:
    found = open_encoder(clip)
    pictures = asked.pixels(list(asked.labels("blood"))[:3])
    features = found(pictures)
    assert (found.kind, tuple(features.shape), features.dtype) == ("clip", (3, 24), torch.float32)
    assert torch.allclose(found(pictures[1:2]), features[1:2], atol=1e-5)
    made = train_reward(asked, "blood", encoder=found)
    made.save(tmp_path / "r.safetensors")
    moved = clip.rename(clip.with_name("moved"))
    with pytest.raises(AssetError):
        Reward.load(tmp_path / "r.safetensors")
    assert np.allclose(Reward.load(tmp_path / "r.safetensors", moved)(pictures), made(pictures), atol=1e-5)
    moved.rename(clip)


def test_another_folder_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(AssetError, match="neither a CLIP vision tower nor an autoencoder"):
        open_encoder(tmp_path)


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1), np.uint8)])
def test_pictures_of_another_form_are_refused(encoder: ImageEncoder, wrong: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encoder(wrong)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda store: train_reward(store, "weapon"), "nobody is asked about 'weapon' here, but about blood"),
        (lambda store: train_reward(store, "blood", kind="stars"), "a reward is learnt from binary or ranking, not 'stars'"),
        (lambda store: train_reward(store, "blood", by="person"), "0 pictures are answered with yes or no for 'blood'"),
        (lambda store: train_reward(store, "blood", kind="ranking", by="person"), "0 pictures are ranked for 'blood'"),
        (lambda store: stand_in(store, "weather", Judge()), "nobody is asked about 'weather' here, but about blood"),
        (lambda store: DemoTrainingData().survey("weather", 0), "the demo world has no 'weather'"),
    ],
)
def test_what_cannot_be_learnt_is_said_so(asked: FeedbackStore, does: Callable[[FeedbackStore], Any], said: str) -> None:
    with pytest.raises(FeedbackError, match=said):
        does(asked)


def test_pictures_are_painted_once_with_who_painted_them(tmp_path: Path) -> None:
    from safeguard_demo import load_pipeline

    store, pipe = FeedbackStore(tmp_path / "s", create=True), load_pipeline("unet")
    call = {"num_inference_steps": 1, "guidance_scale": 1.0}
    for _ in range(2):
        batches = list(paint(store, pipe, "blood", ["a red car", "a dog"], range(5, 8), batch=2, call=call))
    assert ([len(batch) for batch in batches], len(store.items("blood"))) == ([2, 1], 3)
    made = [item for batch in batches for item in batch]
    assert [item.seed for item in made] == [5, 6, 7]
    assert made[0].prompt_hmac == made[2].prompt_hmac != made[1].prompt_hmac
    assert (made[0].model.pipeline, made[0].model.repo) == ("StableDiffusionPipeline", "safeguard_demo/unet")
    assert len(made[0].model.weights or "") == 64


class WeaponJudge:
    """Knows another concept, and says yes or no alone."""

    def predict(self, images: Any) -> dict[str, Any]:
        return {"weapon": np.zeros(len(images), bool), "scene": np.array(["forest"] * len(images))}


def test_a_judge_that_knows_no_such_concept_does_not_stand_in(asked: FeedbackStore) -> None:
    with pytest.raises(FeedbackError, match="the judge knows no 'blood', but weapon; ask people about it"):
        stand_in(asked, "blood", WeaponJudge())
