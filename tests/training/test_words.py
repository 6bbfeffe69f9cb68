"""Learned words: what is kept of one, what it says in a pipeline, what it changes there, and where it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safeguard.errors import CapabilityError
from safeguard.instrument import Attachment
from safeguard.training.frozen_pipeline import FrozenPipeline, weights_digest
from safeguard.training.textual_inversion import LearnedWord, Lesson, beside, embedding_tables, plain
from tests.support.contract_policies import Words, concept, policy, protecting, rows_changed
from tests.support.families import FAMILIES, PROMPTS, generate


def drawn(pipe: Any, token: str = "<blood>", count: int = 1) -> LearnedWord:
    """A word that nobody learnt."""
    source = torch.Generator().manual_seed(count)
    return LearnedWord(
        token, {one.key: torch.randn(count, one.table.embedding_dim, generator=source) for one in embedding_tables(pipe)}
    )


def own(family: str) -> Any:
    """A pipeline with tokenizers that no other has."""
    pipe = FAMILIES[family]()
    for end in ("", "_2"):
        if getattr(pipe, f"tokenizer{end}", None) is not None:
            setattr(pipe, f"tokenizer{end}", copy.deepcopy(getattr(pipe, f"tokenizer{end}")))
    return pipe


@pytest.fixture
def pipe() -> Any:
    return own("sd1")


def test_diffusers_loads_its_file(pipe: Any, tmp_path: Path) -> None:
    word = drawn(pipe, count=2)
    word.save(tmp_path / "blood.word.safetensors")
    pipe.load_textual_inversion(str(tmp_path / "blood.word.safetensors"), token="<blood>")
    numbers = pipe.tokenizer.convert_tokens_to_ids(["<blood>", "<blood>_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[numbers], word.rows["clip_l"])


def test_the_file_gives_the_word_back(pipe: Any, tmp_path: Path) -> None:
    word = drawn(pipe, count=2)
    word.save(tmp_path / "a")
    again = LearnedWord.load(tmp_path / "a")
    assert (again.token, again.digest) == (word.token, word.digest)
    assert torch.equal(again.rows["clip_l"], word.rows["clip_l"])


def test_of_two_encoders_it_has_the_keys_of_diffusers_scripts(tmp_path: Path) -> None:
    pipe = own("sdxl")
    word = drawn(pipe)
    word.save(tmp_path / "a")
    assert set(load_file(tmp_path / "a")) == {"clip_l", "clip_g"}
    LearnedWord.load(tmp_path / "a").into(pipe)
    for one in embedding_tables(pipe):
        assert torch.equal(one.table.weight[one.numbers("<blood>", 1)], word.rows[one.key])


@pytest.mark.parametrize(
    ("text", "what"), [(b"", "this is no learned word"), (None, "there is no such file")], ids=["empty", "missing"]
)
def test_what_is_no_word_is_refused(text: bytes | None, what: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a").write_bytes(text)
    with pytest.raises(CapabilityError, match=what):
        LearnedWord.load(tmp_path / "a")


def test_a_word_is_named_in_angle_brackets() -> None:
    with pytest.raises(ValueError, match="a learned word is named <NAME>, not 'blood'"):
        LearnedWord("blood", {})


def test_a_word_is_taught_once(pipe: Any) -> None:
    drawn(pipe).into(pipe)
    with pytest.raises(CapabilityError, match=r"has a word <blood> already; unload that"):
        drawn(pipe).into(pipe)


def test_a_word_of_other_encoders_is_refused(pipe: Any) -> None:
    with pytest.raises(CapabilityError, match="was learnt for other text encoders"):
        drawn(own("sd2")).into(pipe)


def test_encoders_of_the_same_width_that_are_others_are_refused(pipe: Any, tmp_path: Path) -> None:
    plain(pipe, "<blood>", "blood").save(tmp_path / "a")
    other = own("sd1")
    with torch.no_grad():
        other.text_encoder.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(CapabilityError, match="was learnt for other text encoders"):
        LearnedWord.load(tmp_path / "a").into(other)


def test_the_same_encoders_in_half_precision_and_with_other_words_take_it(pipe: Any, tmp_path: Path) -> None:
    plain(pipe, "<blood>", "blood").save(tmp_path / "a")
    pipe.text_encoder.to(torch.bfloat16)
    drawn(pipe, "<other>", count=40).into(pipe)
    LearnedWord.load(tmp_path / "a").into(pipe)
    assert "<blood>" in pipe.tokenizer.get_vocab()


def test_a_pipeline_that_loads_no_words_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"StableDiffusion3Pipeline has no load_textual_inversion\(\)"):
        plain(FAMILIES["sd3"](), "<blood>", "blood")


def test_it_begins_as_what_a_text_says(pipe: Any) -> None:
    table = pipe.text_encoder.get_input_embeddings().weight
    own = table[pipe.tokenizer("blood", add_special_tokens=False).input_ids]
    assert torch.equal(plain(pipe, "<b>", "blood", 5).rows["clip_l"], own)
    assert torch.equal(plain(pipe, "<b>", "blood", 2).rows["clip_l"], own.mean(0).repeat(2, 1))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_words_beside_a_pipeline_leave_it_as_it_was(family: str) -> None:
    pipe = own(family)
    before, seed = weights_digest(pipe.components), torch.random.get_rng_state()
    twin = beside(pipe, [drawn(pipe, count=2)])
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert weights_digest(pipe.components) == before
    assert "<blood>" not in pipe.tokenizer.get_vocab()
    assert all(getattr(twin, name) is getattr(pipe, name) for name in ("unet", "vae", "scheduler"))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_gradients_reach_the_rows_of_the_words_that_are_said_and_nothing_else(family: str) -> None:
    pipe = own(family)
    words = [drawn(pipe, "<blood>", 2), drawn(pipe, "<snow>")]
    frozen = FrozenPipeline(beside(pipe, words))
    lesson = Lesson(frozen.pipe, words)
    with lesson.under_way():
        values = frozen.arguments(["a tree with <blood>", "a tree"], gradients=True)
        values["encoder_hidden_states"].square().sum().backward()
    for name, row in lesson.rows.items():
        assert (row.grad is not None) == name.startswith("<blood>")
    assert all(parameter.grad is None for one in embedding_tables(frozen.pipe) for parameter in one.encoder.parameters())
    assert not any(one.table._forward_hooks for one in embedding_tables(frozen.pipe))


def test_a_word_that_is_settled_says_what_it_said_in_the_lesson(pipe: Any) -> None:
    word = drawn(pipe, count=2)
    frozen = FrozenPipeline(beside(pipe, [word]))
    before = {name: value.clone() for name, value in frozen.pipe.text_encoder.state_dict().items()}
    lesson = Lesson(frozen.pipe, [word])
    with torch.no_grad():
        lesson.rows["<blood>:clip_l"].add_(1.0)
    with lesson.under_way():
        learning = frozen.arguments(["a tree, <blood>"])["encoder_hidden_states"]
    lesson.settle()
    assert torch.equal(frozen.arguments(["a tree, <blood>"])["encoder_hidden_states"], learning)
    after = frozen.pipe.text_encoder.state_dict()
    (name,) = [name for name, value in after.items() if not torch.equal(value, before[name])]
    changed = (after[name] != before[name]).any(1).nonzero().flatten().tolist()
    assert changed == frozen.pipe.tokenizer.convert_tokens_to_ids(["<blood>", "<blood>_1"])


# in a policy


@pytest.mark.parametrize("eraser", ["eiup", "negative_prompt", "uce", "sld"])
def test_a_policy_that_names_an_unknown_word_is_refused(eraser: str, pipe: Any) -> None:
    unknown = policy(concept("blood", phrases=("<blood>",), eraser=eraser))
    with protecting() as protect, pytest.raises(CapabilityError, match="has no word <blood>; load it: pipe"):
        protect(pipe, unknown)


def test_an_unknown_word_in_a_guide_text_is_refused(pipe: Any) -> None:
    guided = policy(concept("blood", eraser="uce", params={"guide": "<calm>"}))
    with protecting() as protect, pytest.raises(CapabilityError, match="has no word <calm>"):
        protect(pipe, guided)


@pytest.mark.parametrize("eraser", ["eiup", "negative_prompt", "uce"])
def test_a_policy_may_name_a_loaded_word(eraser: str, pipe: Any) -> None:
    expected = generate(pipe, PROMPTS)
    learned, spelled = (policy(concept("blood", phrases=(text,), eraser=eraser)) for text in ("<blood>", "blood"))
    drawn(pipe).into(pipe)
    assert torch.equal(generate(pipe, PROMPTS), expected)
    with protecting() as protect:
        guard = protect(pipe, learned, screener=Words())
        acted = generate(pipe, PROMPTS)
        assert rows_changed(acted, expected) == [False, True, False]
        guard.swap(spelled)
        assert rows_changed(generate(pipe, PROMPTS), acted) == [False, True, False]
    assert torch.equal(generate(pipe, PROMPTS), expected)


def test_the_tokens_of_a_word_of_several_rows_are_all_words(pipe: Any) -> None:
    drawn(pipe, count=3).into(pipe)
    one, other = Attachment(pipe).encode(["<blood>", "a <blood>"])
    assert list(one.content) == [1, 2, 3]
    assert list(one.closing) == [4]
    assert list(other.content) == [1, 2, 3, 4]


def test_a_word_of_several_rows_takes_as_much_room(pipe: Any) -> None:
    drawn(pipe, count=40).into(pipe)
    attachment = Attachment(pipe)
    attachment.encode(["<blood>"])
    with pytest.raises(CapabilityError, match="all of the 77 tokens"):
        attachment.encode(["<blood> <blood>"])


def test_what_was_known_of_a_phrase_is_forgotten_when_a_word_is_loaded(pipe: Any) -> None:
    attachment = Attachment(pipe)
    with pytest.raises(CapabilityError, match="has no word <blood>"):
        attachment.encode(["<blood>"])
    drawn(pipe).into(pipe)
    (text,) = attachment.encode(["<blood>"])
    assert list(text.content) == [1]
