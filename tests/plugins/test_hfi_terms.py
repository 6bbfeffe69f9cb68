"""What ``hfi`` learns after its word, term by term: that of ``sdd``, with times from Beta(3, 3), on the cross-attentions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safeguard_plugins.hfi.eraser import HFI
from safeguard_plugins.hfi.train import recipe
from safeguard_plugins.sdd import train as sdd_training

from safeguard.errors import CapabilityError
from safeguard.policy import Concept
from safeguard.training.frozen_pipeline import Course, FrozenPipeline, middling, weights_frozen
from safeguard.training.text_pairs import TextPair
from safeguard.training.textual_inversion import LearnedWord, beside, embedding_tables
from tests.support.families import FAMILIES
from tests.support.installed_adapters import install_adapters
from tests.support.students import PAIRS, Pipe, adapter, frozen, training

LETTER = "b"  # a word of one token for the tokenizer that spells


def test_beta_of_three_has_its_mean_in_the_middle_and_its_variance() -> None:
    drawn = middling(3, 40_000, torch.Generator().manual_seed(0))
    assert 0 <= drawn.min() <= drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.005)
    assert drawn.var().item() == pytest.approx(1 / 28, rel=0.03)


def test_beta_of_one_is_uniform() -> None:
    drawn = middling(1, 40_000, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.005)
    assert drawn.var().item() == pytest.approx(1 / 12, rel=0.03)


def test_times_are_more_often_in_the_middle() -> None:
    def steps(beta: int) -> torch.Tensor:
        course = Course(torch.zeros(10, 8, 1), torch.arange(10, 0, -1))
        pairs = [course.places(torch.Generator().manual_seed(seed), beta) for seed in range(200)]
        assert all(bool((shares >= 0).all() and (shares <= 1).all()) for _, shares in pairs)
        return torch.tensor([chosen for chosen, _ in pairs]).flatten()

    middle, every = steps(3), steps(1)
    assert middle.min() >= 0
    assert middle.max() <= 9
    assert ((middle >= 3) & (middle <= 6)).float().mean() > 0.6 > ((every >= 3) & (every <= 6)).float().mean() + 0.1


def test_at_a_uniform_time_it_teaches_what_sdd_does() -> None:
    uniform = replace(recipe(beta=1), method=sdd_training.METHOD)  # by which what is drawn is told apart
    one, other = training(uniform).run(), training(sdd_training.recipe()).run()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_word_that_says_what_a_plain_one_says_is_unlearnt_as_that_is() -> None:
    plainly = FrozenPipeline(FAMILIES["sd1"]())
    (one,) = embedding_tables(plainly.pipe)
    (number,) = one.tokenizer(LETTER, add_special_tokens=False).input_ids
    word = LearnedWord("<blood>", {one.key: one.table.weight.detach()[[number]].clone()})
    learned = FrozenPipeline(beside(plainly.pipe, [word]))
    taught = replace(recipe(beta=1), method=sdd_training.METHOD)
    made = []
    for pipeline, text, what in ((plainly, LETTER, sdd_training.recipe()), (learned, "<blood>", taught)):
        with weights_frozen(pipeline.denoiser):
            made.append(training(what, pipeline, [TextPair("", text)]).run())
    assert any(delta.any() for delta in made[0].values())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_an_adapter_of_the_twin_belongs_to_the_pipeline() -> None:
    pipe = FAMILIES["sd1"]()
    twin = beside(
        pipe, [LearnedWord("<blood>", {one.key: torch.ones(1, one.table.embedding_dim) for one in embedding_tables(pipe)})]
    )
    found = [FrozenPipeline(one).attachment.fingerprint for one in (pipe, twin)]
    assert found[0].differs(found[1]) is None


def test_layers_of_the_cross_attentions_are_taught() -> None:
    beside_it = frozen()
    with weights_frozen(beside_it.denoiser):
        made = training(recipe(), beside_it, PAIRS).run()
    assert all(".attn2.to_" in name for name in made)
    assert any(delta.any() for delta in made.values())


def test_its_edits_are_the_adapters(tmp_path: Path) -> None:
    made = adapter("hfi")
    made.save(tmp_path / "a")
    (edit,) = HFI().edits([Concept("blood", ("blood",))], {"adapter": str(tmp_path / "a")}, Pipe())  # type: ignore[arg-type]
    assert (edit.module, edit.concepts, edit.adapters) == ("unet.a", ("blood",), {"blood": made.digest})  # type: ignore[attr-defined]


def test_a_word_that_lies_beside_is_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_adapters(tmp_path, monkeypatch)
    LearnedWord("<blood>", {"clip_l": torch.zeros(1, 4)}).save(tmp_path / "hfi-pipe-blood.word.safetensors")
    asked = [Concept("blood", ("blood",))], {"adapter": "default"}, Pipe()
    with pytest.raises(CapabilityError, match="no adapter of hfi comes with the package"):
        HFI().edits(*asked)  # type: ignore[arg-type]
    adapter("hfi").save(tmp_path / "hfi-pipe-blood.safetensors")
    assert HFI().edits(*asked)  # type: ignore[arg-type]
