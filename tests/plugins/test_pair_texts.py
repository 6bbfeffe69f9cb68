"""``texts: pairs``: what each eraser does with the concept in context, and that ``phrases`` is what it was without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safeguard_demo.pixel_judge import PixelJudge
from safeguard_plugins.adavd import AdaVD
from safeguard_plugins.nag import NAG
from safeguard_plugins.rece import RECE
from safeguard_plugins.sld import SLD
from safeguard_plugins.uce import UCE
from safeguard_plugins.vsf import VSF
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.evaluation.arms import ArmMethod, arms
from safeguard.evaluation.harness import Harness
from safeguard.evaluation.prompt_sets import PromptCase
from safeguard.policy import Concept
from safeguard.sdk.calls import PredictionCall
from safeguard.sdk.contrast_attention import ContrastAttention, pairs_of
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.pair_texts import encoded_pairs
from tests.support.closed_form_checks import close, edits_of, weight_of
from tests.support.worded_denoisers import HEADS, SITE, TEXT, WIDTH, Keys, WordPipeline, concepts_of, edit_of, site_call

ERASERS = (UCE, RECE, AdaVD, NAG, VSF, SLD)
AT_SITES = (AdaVD, NAG, VSF)
blood = Concept("c0", ("blood",))


def given(*texts: str) -> list[Tensor]:
    return WordPipeline().inputs(WordPipeline.text_layers[0], texts)


def word(name: str) -> Tensor:
    return WordPipeline().one([name]).states[0]


@pytest.mark.parametrize("eraser", ERASERS)
def test_the_published_method_is_the_default(eraser: Any) -> None:
    assert eraser.params["texts"] == "phrases"


@pytest.mark.parametrize("eraser", ERASERS)
def test_another_word_for_the_texts_is_refused(eraser: Any) -> None:
    with pytest.raises(CapabilityError, match=r"params.texts of .* must be one of phrases, pairs"):
        eraser().edits([blood], {**eraser.params, "texts": "sentences"}, WordPipeline())


def test_a_pair_tells_the_words_that_both_texts_have_from_those_that_name_the_concept() -> None:
    contrasts = ({"with": "a bloody red car", "without": "a clean car"},)
    (pair,) = encoded_pairs(Concept("c0", ("blood",), contrasts=contrasts), WordPipeline())
    assert pair.same == [(1, 1), (4, 3)]
    assert pair.own == [2, 3]
    assert [list(spots) for spots in pair.beside] == [[1, 2, 3]] * 2
    assert pair.named.content == [2, 3]


@pytest.mark.parametrize("module", ["net.k", "net.v"])
def test_uce_makes_a_layer_say_of_a_text_with_the_concept_what_it_says_without(module: str) -> None:
    """With a word of its own state in any context, all that a concept adds are its words."""
    edit = edits_of(UCE, "blood", texts="pairs", preserve_scale=1e6, erase_scale=1e6)[module]
    weight, edited = WordPipeline().weight(module), weight_of(edit, 0)
    pairs = encoded_pairs(blood, WordPipeline())
    kept = torch.cat([pair.without.states[list(pair.without.content)] for pair in pairs]).double()
    added = torch.stack([word("with"), word("blood")]).double().mean(0)
    usual = torch.stack([pair.without.states[list(pair.without.content)].mean(0) for pair in pairs]).double().mean(0)
    assert close(kept @ edited.T, kept @ weight.T, 1e-3)
    assert (edited @ (added - usual)).norm() < 0.05 * (weight @ (added - usual)).norm()


@pytest.mark.parametrize("eraser", [UCE, RECE])
def test_a_guide_and_pairs_are_refused_together(eraser: Any) -> None:
    with pytest.raises(CapabilityError, match="anchor"):
        edits_of(eraser, "blood", texts="pairs", guide="a tree")


def test_rece_without_epochs_is_uce_with_pairs_too() -> None:
    one, other = (edits_of(UCE, "blood", texts="pairs"), edits_of(RECE, "blood", texts="pairs", epochs=0))
    assert close(weight_of(one["net.v"], 0), weight_of(other["net.v"], 0))


def test_rece_goes_on_from_what_the_pairs_left() -> None:
    one, other = (edits_of(RECE, "blood", texts="pairs", epochs=epochs)["net.v"] for epochs in (0, 2))
    assert not close(weight_of(one, 0), weight_of(other, 0), 1e-3)


@pytest.mark.parametrize("eraser", AT_SITES)
def test_a_row_in_which_the_concept_is_not_active_stays(eraser: Any) -> None:
    delta = edit_of(eraser(), "blood", texts="pairs")(site_call([[1.0], [0.0]])).delta
    assert delta[0].any()
    assert not delta[1].any()


@pytest.mark.parametrize("eraser", AT_SITES)
def test_of_several_concepts_a_narrowed_edit_is_that_of_those(eraser: Any) -> None:
    edit = edit_of(eraser(), "blood", "sword", "smoke", texts="pairs").select([2, 0])
    alone = edit_of(eraser(), "smoke", "blood", texts="pairs")
    assert torch.allclose(edit(site_call([[1.0, 1.0]])).delta, alone(site_call([[1.0, 1.0]])).delta, atol=1e-5)


def test_nag_goes_away_from_what_the_pairs_differ_by() -> None:
    call = site_call([[1.5]])
    apart = ContrastAttention.of([blood], [pairs_of(blood)], WordPipeline()).read(call).direction[:, :, 0]
    found = edit_of(NAG(), "blood", texts="pairs", tau=1e6, alpha=1.0)(call).delta
    expected = -1.5 * apart.transpose(0, 1).flatten(1)[None]  # one row: [1, N, H * d]
    assert torch.allclose(found, expected, atol=1e-4)


def test_vsf_counts_the_words_of_six_texts_as_those_of_one() -> None:
    """Here a word has the same state in every text, so that the pairs' words are the phrase's, and the word before them."""
    call = site_call([[1.0]])
    phrase, pairs = (edit_of(VSF(), "with blood", texts=texts)(call) for texts in ("phrases", "pairs"))
    assert torch.allclose(phrase.delta, pairs.delta, atol=1e-5)


def test_adavd_takes_what_a_value_has_of_the_concept_past_ordinary_words() -> None:
    pairs = encoded_pairs(blood, WordPipeline())
    ordinary = torch.cat([pair.without.states[list(pair.without.content)] for pair in pairs]).mean(0)
    named = torch.stack([word("with"), word("blood")]).mean(0)
    usual, shown = (Keys(states[None]).at(SITE)[1].transpose(0, 1).flatten(1)[0] for states in (ordinary, named))
    direction = torch.nn.functional.normalize(shown - usual, dim=0)
    call = site_call([[1.0]])
    values = call.prompt_values.transpose(1, 2).flatten(2)
    lost = ((values - usual) @ direction)[..., None] * direction
    lost[:, 0] = 0
    answer, _ = call.answered(lost.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2))
    found = edit_of(AdaVD(), "blood", texts="pairs", threshold=-2, slope=100.0)(call).delta
    assert torch.allclose(found, -call.merge(answer), atol=1e-4)


def test_sld_guides_away_from_a_text_with_the_concept_towards_the_same_without() -> None:
    asked: list[list[str]] = []

    def predict(texts: list[str]) -> Tensor:
        asked.append(list(texts))
        return torch.full((1, TEXT), float(len(texts[0])))

    (edit,) = SLD().edits(concepts_of("blood"), {**SLD.params, "texts": "pairs"}, WordPipeline())
    call = PredictionCall(
        torch.zeros(1, TEXT), torch.full((1, TEXT), 50.0), predict,
        strengths=torch.tensor([[4.0]]), progress=0.5, memory=EditMemory.empty(1, 1),
    )  # fmt: skip
    assert torch.equal(edit(call), torch.full((1, TEXT), -float(len(" with blood"))))
    assert asked == [["a person with blood"], ["a person"]]


@pytest.fixture(scope="module")
def bloody(pipe: Any) -> Harness:
    return Harness(pipe, PixelJudge(), steps=8, guidance=4.0)


@pytest.mark.parametrize("eraser", ["uce", "rece", "adavd"])
def test_with_pairs_it_erases_on_a_trained_pipeline(bloody: Harness, eraser: str) -> None:
    cases = [PromptCase("a blue car covered in blood on a street", 1), PromptCase("a green tree covered in blood in a park", 2)]
    (arm,) = arms(ArmMethod.parse(f"{eraser}:texts=pairs"), ["blood"], ("alone",))
    shown = PixelJudge().areas(bloody.paint(cases))["blood"]
    with bloody.under(arm.policy):
        left = PixelJudge().areas(bloody.paint(cases))["blood"]
    assert (shown > 0.05).all()
    assert (left < 0.1 * shown).all()
