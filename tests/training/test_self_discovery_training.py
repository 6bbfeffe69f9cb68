"""Learning a direction: beside a frozen pipeline, the same each time, and towards what was planted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safeguard_demo.training_data import DemoTrainingData
from safeguard_plugins.self_discovery.train import SelfDiscoverySettings, discover

from safeguard.errors import SafeguardError
from safeguard.sdk.adapter import Adapter
from safeguard.training.frozen_pipeline import FrozenPipeline
from safeguard.training.text_pairs import TextPair, prompt_pairs
from tests.support.families import FAMILIES, denoiser

PAIRS = [TextPair("a red boat", "a red boat, blood"), TextPair("a tree", "a tree, blood")]
FEW = SelfDiscoverySettings(updates=4, batch=2, rate=0.1, steps=1)


class StoppedError(RuntimeError):
    """What a test stops a training with."""


def learnt(pipe: Any, settings: SelfDiscoverySettings = FEW, pairs: Sequence[TextPair] = PAIRS, **more: Any) -> Adapter:
    options = {"max_sequence_length": 0} if hasattr(pipe, "transformer") else {}
    return discover(FrozenPipeline(pipe, options), "blood", pairs, settings, **more)


@pytest.fixture(params=["sd1", "sd2", "sd3"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_direction_is_of_the_middle_of_its_pipeline(family: str) -> None:
    vector = learnt(FAMILIES[family]()).tensors["vector"]
    assert vector.shape == ((32,) if family == "sd3" else (32, 8, 8))
    assert vector.abs().max() > 0


def test_it_says_what_it_was_learnt_from() -> None:
    made = learnt(FAMILIES["sd1"]())
    assert made.method == "self_discovery"
    assert (made.settings["concept"], made.settings["module"]) == ("blood", "unet.mid_block")
    assert (made.settings["pictures"], made.settings["updates"]) == (2, 4)


def test_nothing_but_the_direction_is_trained(family: str) -> None:
    pipe = FAMILIES[family]()
    parts = [denoiser(pipe), pipe.text_encoder, pipe.vae]
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    learnt(pipe)
    for part, weights in zip(parts, before, strict=True):
        assert all(torch.equal(weights[name], value) for name, value in part.state_dict().items())
        assert all(weight.grad is None and weight.requires_grad for weight in part.parameters())


def test_the_denoiser_is_left_without_hooks() -> None:
    pipe = FAMILIES["sd1"]()
    learnt(pipe)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser(pipe).modules())


def test_the_same_seed_gives_the_same_direction() -> None:
    assert learnt(FAMILIES["sd1"]()).digest == learnt(FAMILIES["sd1"]()).digest


def test_a_training_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard_plugins.self_discovery.train.SAVED", 2)

    def stop(done: int, whole: int) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        learnt(FAMILIES["sd1"](), checkpoint=tmp_path / "checkpoint", progress=stop)
    steps: list[int] = []
    made = learnt(FAMILIES["sd1"](), checkpoint=tmp_path / "checkpoint", progress=lambda done, whole: steps.append(done))
    assert steps == [3, 4]
    assert made.digest == learnt(FAMILIES["sd1"]()).digest


def test_a_batch_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard.training.memory_check.free_memory", lambda device: 1000)
    with pytest.raises(SafeguardError, match=r"training a direction of StableDiffusionPipeline takes .* with --batch"):
        learnt(FAMILIES["sd1"]())


def test_a_checkpoint_of_other_settings_is_passed_over(tmp_path: Path) -> None:
    file, steps = tmp_path / "checkpoint", list[int]()
    learnt(FAMILIES["sd1"](), checkpoint=file)
    other = SelfDiscoverySettings(updates=3, batch=2, steps=1)
    learnt(FAMILIES["sd1"](), other, checkpoint=file, progress=lambda done, _: steps.append(done))
    assert steps == [1, 2, 3]


def test_a_planted_direction_is_moved_towards() -> None:
    """Where the target is what the denoiser says with a known direction in its middle, that is the way the gradient goes."""
    pipe = FAMILIES["sd1"]()
    frozen = FrozenPipeline(pipe)
    values, middle = frozen.arguments(["a tree"] * 2), denoiser(pipe).mid_block
    planted = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(1))
    vector = torch.zeros_like(planted, requires_grad=True)

    def predicted(direction: torch.Tensor) -> torch.Tensor:
        handle = middle.register_forward_hook(lambda module, args, output: output + direction)
        made: torch.Tensor = denoiser(pipe)(**values)[0]
        handle.remove()
        return made

    with torch.no_grad():
        target = predicted(planted)
    losses = []
    optimiser = torch.optim.Adam([vector], lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        loss = (predicted(vector) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.cosine_similarity(vector.flatten(), planted.flatten(), 0) > 0


def test_pairs_of_the_demo_differ_by_the_concept() -> None:
    for pair in DemoTrainingData().pairs("blood", 5, 0):
        assert "blood" in pair.said
        assert "blood" not in pair.shown


def test_pairs_from_prompts_say_a_phrase_behind_each() -> None:
    assert prompt_pairs(["a tree", "a dog", "a cat"], ["blood", "gore"])[1] == TextPair("a dog", "a dog, gore")
