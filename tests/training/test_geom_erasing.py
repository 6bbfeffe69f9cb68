"""``geom_erasing``: where a concept stands in drawings, what is learnt of it, and the words in the negative prompt."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safeguard_demo.training_data import DemoTrainingData, changed
from safeguard_plugins.geom_erasing.train import Located, _within, caption_of, inverted
from typer.testing import CliRunner

from safeguard.cli.main import app
from safeguard.errors import CapabilityError, SafeguardError
from safeguard.training.feedback_inversion import InversionSettings
from safeguard.training.frozen_pipeline import weights_digest
from safeguard.training.location_grid import Grid
from safeguard.training.task import Task
from safeguard.training.textual_inversion import LearnedWord, embedding_tables
from tests.support.contract_policies import concept, policy, protecting
from tests.support.families import FAMILIES, PROMPTS, SIDE, generate

GRID = Grid(2, SIDE, SIDE)
WORDS = ["<at-0>", "<at-1>", "<at-2>", "<at-3>"]


def task(pipe: Any) -> Task:
    return Task(pipe, policy(concept("blood")))


def located(*covered: list[int]) -> Located:
    images = np.random.default_rng(0).integers(0, 256, (len(covered), SIDE, SIDE, 3), np.uint8)
    return Located(images, ["a tree"] * len(covered), covered)


def inversion(pipe: Any, *covered: list[int], alpha: float = 10.0) -> Any:
    return inverted(task(pipe), concept("blood"), located(*covered), GRID, InversionSettings(2, 2, 1e-2), alpha)


@pytest.fixture
def pipe() -> Any:
    made = FAMILIES["sd1"]()
    made.tokenizer = copy.deepcopy(made.tokenizer)
    return made


def test_a_caption_gets_the_name_and_the_words_of_the_covered_bins() -> None:
    assert caption_of("a tree", "blood", [1, 3], WORDS) == "a tree, blood, <at-1> <at-3>"


def test_where_nothing_was_found_the_caption_stays() -> None:
    assert caption_of("a tree", "blood", [], WORDS) == "a tree"


def test_of_too_many_bins_the_inner_ones_go_first(pipe: Any) -> None:
    grid = Grid(3, SIDE, SIDE)
    words = [f"somewhere-{place}" for place in range(9)]  # eleven letters each
    text = _within(pipe, grid, "a", "b", list(range(9)), words)
    kept = [place for place in range(9) if words[place] in text]
    assert 0 < len(kept) < 9
    assert 4 not in kept
    assert _within(pipe, grid, "a", "b", [0, 1], words) == "a, b, somewhere-0 somewhere-1"


def test_the_box_is_of_what_differs() -> None:
    bare = np.zeros((8, 8, 3), np.uint8)
    shown = bare.copy()
    shown[2, 3] = shown[5, 6] = 200
    assert changed(shown, bare) == [(3.0, 2.0, 6.0, 5.0)]
    assert changed(bare, bare) == []


def test_drawings_of_the_demo_world_show_what_their_captions_do_not_say() -> None:
    found = DemoTrainingData().located("blood", 6, 0)
    assert found.images.shape == (6, 64, 64, 3)
    assert not any("blood" in caption for caption in found.captions)
    assert all(0 < len(Grid(4, 64, 64).covered(boxes)) < 16 for boxes in found.boxes)
    again = DemoTrainingData().located("blood", 6, 0)
    assert np.array_equal(found.images, again.images)
    with pytest.raises(SafeguardError, match="the demo world has no 'gore'"):
        DemoTrainingData().located("gore", 1, 0)


def test_only_the_words_rows_are_learnt(pipe: Any) -> None:
    before = weights_digest(pipe.components)
    work = inversion(pipe, [0, 1], [1])
    (one,) = embedding_tables(work._frozen.pipe)
    table = one.table.weight.detach().clone()
    words = work.run()
    assert [word.token for word in words] == [f"<blood-at-{place}>" for place in range(4)]
    changed_rows = (one.table.weight != table).any(1).nonzero().flatten().tolist()
    assert changed_rows == one.tokenizer.convert_tokens_to_ids(["<blood-at-0>", "<blood-at-1>"])  # of bins that were seen
    assert weights_digest(pipe.components) == before
    assert "<blood-at-0>" not in pipe.tokenizer.get_vocab()


def test_covered_bins_count_less(pipe: Any) -> None:
    weights = inversion(pipe, [0])._weights
    inside, outside = weights[0, 0, 0, 0].item(), weights[0, 0, -1, -1].item()
    assert weights.shape == (1, 1, SIDE // 2, SIDE // 2)
    assert outside == pytest.approx(10 * inside)
    assert weights.mean().item() == pytest.approx(1.0)


def test_at_alpha_one_it_is_the_plain_loss(pipe: Any) -> None:
    work = inversion(pipe, [0], alpha=1.0)
    everywhere = inversion(pipe, [0, 1, 2, 3])
    assert torch.equal(work._weights, torch.ones_like(work._weights))
    assert torch.equal(everywhere._weights, work._weights)


def test_pictures_without_the_concept_teach_no_word(pipe: Any) -> None:
    assert len(inversion(pipe, [0], [], [1])._latents) == 2
    with pytest.raises(SafeguardError, match="found in none of 2 pictures"):
        inversion(pipe, [], [])


def test_training_writes_one_word_with_a_row_a_bin(tmp_path: Path) -> None:
    few = ["--n", "2", "--batch", "1", "--set", "updates=1", "--set", "side=3", "--resume"]
    out = tmp_path / "a.word.safetensors"
    result = CliRunner().invoke(app, ["train", "geom_erasing", "--concept", "blood", *few, "--out", str(out)])
    assert result.exit_code == 0, result.output
    word = LearnedWord.load(out)
    assert (word.token, word.rows["clip_l"].shape) == ("<blood-at>", (9, 128))
    assert {"concept": "blood", "side": 3, "alpha": 10.0, "pictures": 2, "updates": 1}.items() <= word.settings.items()
    assert {"loss_before", "loss_after", "moved"} == set(word.report)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


# the eraser


def erasing(**fields: Any) -> Any:
    return policy(concept("blood", eraser="geom_erasing", activation="always", **fields))


def places(pipe: Any, token: str = "<blood-at>") -> LearnedWord:
    (one,) = embedding_tables(pipe)
    return LearnedWord(token, {one.key: torch.randn(4, one.table.embedding_dim, generator=torch.Generator().manual_seed(0))})


def test_words_that_are_not_loaded_are_refused(pipe: Any) -> None:
    with protecting() as protect, pytest.raises(CapabilityError, match="has no word <blood-at>; load it"):
        protect(pipe, erasing(params={"word": "default"}))


@pytest.mark.parametrize(("word", "token"), [("default", "<blood-at>"), ("<there>", "<there>")])
def test_it_is_the_negative_prompt_of_the_name_and_the_words(word: str, token: str, pipe: Any) -> None:
    places(pipe, token).into(pipe)
    expected = generate(pipe, PROMPTS, negative_prompt=[f"blood, {token}, a fish"] * 3)
    without = generate(pipe, PROMPTS, negative_prompt=["blood, a fish"] * 3)
    with protecting() as protect:
        protect(pipe, erasing(params={"word": word}))
        found = generate(pipe, PROMPTS, negative_prompt=["a fish"] * 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    assert not torch.allclose(found, without, rtol=1e-4, atol=1e-2)


def test_without_words_it_is_the_name_alone(pipe: Any) -> None:
    expected = generate(pipe, PROMPTS, negative_prompt=["blood"] * 3)
    with protecting() as protect:
        protect(pipe, erasing(params={"word": "none"}))
        torch.testing.assert_close(generate(pipe, PROMPTS), expected, rtol=1e-4, atol=1e-2)


def test_what_is_no_word_is_refused(pipe: Any) -> None:
    with protecting() as protect, pytest.raises(CapabilityError, match="of 'geom_erasing' is a learned word"):
        protect(pipe, erasing(params={"word": "blood"}))
