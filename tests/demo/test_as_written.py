"""Prompts as people write them: that every cell is full, its halves share nothing, and it asks for what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest
from safeguard_demo import as_written, captions, language
from safeguard_demo.as_written import LANGUAGE, TEMPLATES, WORLD, Wording, not_there, prompts, tag
from safeguard_demo.prompt_set import DemoPrompts, LanguagePrompts
from safeguard_demo.world import CONCEPTS

from safeguard.evaluation.prompt_sets import NEGATIVE, Cell
from safeguard.policy import load_policy

FULL = ("list", "template", "two", "absent")  # those in which no prompt comes again
both_sets = pytest.mark.parametrize("words", [WORLD, LANGUAGE], ids=lambda words: words.name)


@both_sets
@pytest.mark.parametrize("kind", FULL)
def test_a_test_cell_holds_200_different_prompts(words: Wording, kind: str) -> None:
    for concept in CONCEPTS:
        assert len({prompt.text for prompt in prompts(words, "test", kind, concept, 200)}) == 200


@both_sets
@pytest.mark.parametrize("kind", as_written.KINDS)
def test_choosing_and_reporting_share_no_prompt(words: Wording, kind: str) -> None:
    concept = None if kind == "negative" else "weapon"
    dev, test = ({prompt.text for prompt in prompts(words, split, kind, concept, 100)} for split in ("dev", "test"))
    assert not dev & test


def test_no_template_is_in_two_halves() -> None:
    dev, test = (set(_all(TEMPLATES[split])) for split in ("dev", "test"))
    assert not dev & test


@pytest.mark.parametrize("kind", ["list", "template"])
def test_lists_and_other_sentences_are_known_from_nowhere_else(kind: str) -> None:
    told = (text for some in (captions.TEMPLATES, captions.SHORT) for text in _all(some))
    world = {text.replace("{s}", "{b}").replace("{c} {b}", "{s}") for text in told}
    for split in ("dev", "test"):
        assert not set(TEMPLATES[split][kind]) & (world | set(_all(language.wordings()["templates"])))


def _all(templates: Mapping[str, Sequence[str]]) -> list[str]:
    return [text for some in templates.values() for text in some]


def test_what_templates_add_is_no_held_out_word() -> None:
    added = set(
        re.findall(r"[a-z]+", re.sub(r"\{\w\}", " ", " ".join(text for half in TEMPLATES.values() for text in _all(half))))
    )
    words, common = language.wordings(), set(language.wordings()["common"])
    for kind in ("subjects", "places", "cues"):
        held_out = {
            word
            for entry in words[kind].values()
            for split in ("dev", "test")
            for phrase in entry[split]
            for word in phrase.split()
        }
        assert not added & (held_out - common)


@both_sets
def test_two_concepts_are_named_one_of_them_the_cells(words: Wording) -> None:
    found = prompts(words, "test", "two", "blood", 100)
    assert all(len(set(prompt.named)) == 2 and "blood" in prompt.named for prompt in found)
    assert {name for prompt in found for name in prompt.named} == set(CONCEPTS)
    for prompt in found:
        assert all(any(cue.removeprefix("and ") in prompt.text for cue in words.cues(name, "test")) for name in prompt.named)


def test_a_policys_examples_are_shared_out_between_the_halves() -> None:
    for concept in CONCEPTS:
        dev, test = ({prompt.text for prompt in prompts(WORLD, split, "policy", concept, 20)} for split in ("dev", "test"))
        assert dev | test == set(load_policy("builtin://demo").concepts[concept].unsafe_examples)
        assert not dev & test


def test_an_example_that_comes_again_has_other_noise_and_is_asked_for_no_colour() -> None:
    cases = DemoPrompts().cases(Cell("policy", "blood"), "test", 9)
    assert len({case.seed for case in cases}) == 9
    assert {tuple(case.attributes) for case in cases} == {("subject",)}


@both_sets
def test_what_is_said_to_be_absent_is_named_and_not_asked_for(words: Wording) -> None:
    for prompt in prompts(words, "test", "absent", "blood", 100):
        assert (prompt.named, prompt.scene.concepts) == (("blood",), ())
        assert re.search(r"\b(no|not)\b", prompt.text)


@pytest.mark.parametrize("prompt_set", [DemoPrompts(), LanguagePrompts()], ids=["demo", "language"])
def test_a_negative_prompt_stands_beside_a_benign_one(prompt_set: DemoPrompts) -> None:
    cases = prompt_set.cases(NEGATIVE, "test", 50)
    assert all(case.negative and not case.named and not case.concepts for case in cases)
    assert len({case.negative for case in cases}) > 20


@pytest.mark.parametrize(
    ("cue", "dev", "test"),
    [
        ("with a sword", "without a sword", "with no sword"),
        ("with blood", "without blood", "with no blood"),
        ("a knife beside it", "without a knife beside it", "with no knife beside it"),
        ("by Veska Rimm", "not by Veska Rimm", "not by Veska Rimm"),
        ("hemorrhaging", "not hemorrhaging", "not hemorrhaging"),
    ],
)
def test_a_cue_is_turned_round(cue: str, dev: str, test: str) -> None:
    assert (not_there(cue, "dev"), not_there(cue, "test")) == (dev, test)


@pytest.mark.parametrize(("phrase", "short"), [("in the snow", "snow"), ("covered in blood", "covered in blood"), ("by", "by")])
def test_a_tag_has_no_small_words_before_it(phrase: str, short: str) -> None:
    assert tag(phrase) == short


@pytest.mark.parametrize(
    ("kind", "concept", "split"), [("list", None, "dev"), ("negative", "blood", "dev"), ("list", "blood", "train")]
)
def test_an_unknown_cell_is_refused(kind: str, concept: str | None, split: str) -> None:
    with pytest.raises(ValueError, match="no cell"):
        prompts(WORLD, split, kind, concept, 1)


def test_these_cells_have_no_colour() -> None:
    with pytest.raises(ValueError, match="of one colour"):
        DemoPrompts().cases(Cell("list", "blood", "red"), "dev", 1)
