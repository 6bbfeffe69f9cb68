"""The term of ``gie`` written out, its weights one by one, and the adapters that it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safeguard_plugins.gie.eraser import GIE
from torch import Tensor

from safeguard.errors import CapabilityError
from safeguard.sdk.adapter import Adapter
from safeguard.sdk.calls import SiteCall
from safeguard.sdk.edit_memory import EditMemory
from safeguard.sdk.fingerprint import Fingerprint
from tests.support import worded_denoisers
from tests.support.worded_denoisers import HEADS, SITE, Keys, WordPipeline, site_call, site_call_of

SETTINGS = {"constant": 0.7, "highest": 2.0}
Edit = Callable[..., Any]


def file_of(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> str:
    """An adapter of ``gie`` for the pipeline of words, in a file."""
    made = {"method": "gie", "fingerprint": WordPipeline.fingerprint, "tensors": tensors, "settings": SETTINGS, **changes}
    Adapter(**made).save(folder / "a.safetensors")
    return str(folder / "a.safetensors")


def straight(slope: float, offset: float) -> dict[str, Tensor]:
    """w = slope * f + offset: one layer, one feature."""
    return {"0.weight": torch.tensor([[slope]]), "0.bias": torch.tensor([offset])}


edit_of = functools.partial(worded_denoisers.edit_of, GIE(), adapter="none")


@pytest.fixture
def fitted(tmp_path: Path) -> Edit:
    """An edit whose weights are slope * f + offset, for phrases."""

    def edit(*phrases: str, slope: float = 0.0, offset: float = 1.0) -> Any:
        return edit_of(*phrases, adapter=file_of(tmp_path, straight(slope, offset)))

    return edit


def within(call: SiteCall, cells: dict[str, Any] | None = None, images: Sequence[int | None] | None = None) -> SiteCall:
    """The call within a request: row by row an image each, column by column a concept."""
    rows, columns = call.strengths.shape
    memory = EditMemory({} if cells is None else cells, list(range(rows)) if images is None else images, range(columns))
    return replace(call, memory=memory)


def learnt(edit: Any, call: SiteCall) -> Any:
    """What the edit gives once it has had its trial."""
    edit(call)
    assert edit.learns(call.memory)
    return edit(call).delta


def softmax_of(call: SiteCall, phrase: str) -> tuple[Tensor, Tensor]:
    """The erasure prompt's own softmax at its words, [R, H, N, words], and their values [H, words, d]."""
    keys, values = Keys(WordPipeline().encode([phrase])[0].states).at(SITE)
    scores = call.query @ keys.transpose(-1, -2) * SITE.scale
    return scores.softmax(-1)[..., 1:-1], values[:, 1:-1]


def test_with_no_adapter_every_weight_is_one() -> None:
    call = site_call([[0.8]])
    maps, values = softmax_of(call, "red blood")
    assert torch.allclose(edit_of("red blood")(call).delta, -0.8 * call.merge(maps @ values), atol=1e-5)


def test_each_token_has_the_weight_that_its_own_feature_asks_for(fitted: Edit) -> None:
    call = within(site_call([[1.0]]))
    maps, values = softmax_of(call, "red blood")
    weights = 3 * maps.mean((1, 2)) + 0.2  # [R, words]
    assert weights[0, 0] != weights[0, 1]
    found = learnt(fitted("red blood", slope=3.0, offset=0.2), call)
    assert torch.allclose(found, -call.merge((maps * weights[:, None, None]) @ values), atol=1e-5)


def test_a_weight_of_nothing_changes_nothing(fitted: Edit) -> None:
    call = within(site_call([[1.0]]))
    assert torch.equal(learnt(fitted("blood", offset=0.0), call), torch.zeros_like(call.output))


@given(weight=st.floats(0.0, 2.0), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_term_is_affine_in_the_weight(weight: float, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    found = learnt(edit_of("blood", adapter=file_of(folder, straight(0.0, weight))), within(site_call([[1.0]], seed)))
    assert torch.allclose(found, weight * edit_of("blood")(site_call([[1.0]], seed)).delta, atol=1e-5)


def test_the_feature_is_the_mean_of_a_tokens_share_over_heads_and_image_tokens(fitted: Edit) -> None:
    call, cells = site_call([[1.0]]), dict[str, Any]()
    fitted("red blood")(within(call, cells))
    maps, _ = softmax_of(call, "red blood")
    assert torch.allclose(cells["shares 0"][0, 0][1:3], maps.mean((1, 2))[0], atol=1e-6)


def test_before_anything_is_seen_the_constant_acts(fitted: Edit) -> None:
    found = fitted("blood", offset=0.0)(within(site_call([[1.0]]))).delta
    assert torch.allclose(found, SETTINGS["constant"] * edit_of("blood")(site_call([[1.0]])).delta, atol=1e-5)


def test_outside_every_request_the_constant_acts(fitted: Edit) -> None:
    edit, call = fitted("blood", offset=0.0), site_call([[1.0]])
    first = edit(call).delta
    assert torch.equal(edit(call).delta, first)
    assert first.abs().max() > 0


def test_a_row_whose_image_is_not_known_keeps_the_constant(fitted: Edit) -> None:
    edit, call = fitted("blood", offset=0.0), within(site_call([[1.0]]), images=[None])
    first = edit(call).delta
    assert not edit.learns(call.memory)
    assert torch.equal(edit(call).delta, first)


def test_it_learns_once(fitted: Edit) -> None:
    edit, call = fitted("blood", slope=1.0), within(site_call([[1.0]]))
    learnt(edit, call)
    assert not edit.learns(call.memory)


def test_later_calls_keep_the_weights_of_the_first(fitted: Edit) -> None:
    cells: dict[str, Any] = {}
    edit = fitted("blood", slope=2.0, offset=0.0)
    learnt(edit, within(site_call([[1.0]], seed=0), cells))
    kept = cells["weights"][0, 0].clone()
    edit(within(site_call([[1.0]], seed=5), cells))
    assert torch.equal(cells["weights"][0, 0], kept)


@pytest.mark.parametrize(("offset", "weight"), [(-1.0, 0.0), (5.0, 2.0)], ids=["encouraging", "beyond the training"])
def test_a_weight_stays_within_what_was_trained(offset: float, weight: float, fitted: Edit) -> None:
    found = learnt(fitted("blood", offset=offset), within(site_call([[1.0]])))
    assert torch.allclose(found, weight * edit_of("blood")(site_call([[1.0]])).delta, atol=1e-5)


def test_a_feature_that_is_no_number_gets_the_constant(fitted: Edit) -> None:
    edit, cells = fitted("blood", slope=1.0), dict[str, Any]()
    within(site_call([[1.0]]), cells).memory.keep("shares 0", torch.full((1, 1, 3), float("nan")))
    call = within(site_call([[1.0]]), cells)
    assert edit.learns(call.memory)
    expected = SETTINGS["constant"] * edit_of("blood")(site_call([[1.0]])).delta
    assert torch.allclose(edit(call).delta, expected, atol=1e-5)


def test_a_row_learns_from_itself_alone(fitted: Edit) -> None:
    edit = fitted("blood", slope=2.0, offset=0.0)
    both = learnt(edit, within(site_call([[1.0], [1.0]])))
    call = site_call([[1.0], [1.0]])
    keys, values = (part[1:] for part in call.prompt)
    alone = site_call_of(call.output[1:], call.query[1:], keys, values, call.strengths[1:])
    assert torch.allclose(learnt(edit, within(alone))[0], both[1], atol=1e-6)


def test_a_narrowed_edit_finds_the_weights_of_its_concepts(fitted: Edit) -> None:
    """Though it has room for fewer tokens than the whole one."""
    edit, cells = fitted("a house by the sea", "blood", slope=2.0, offset=0.1), dict[str, Any]()
    learnt(edit, within(site_call([[1.0, 1.0]]), cells))
    call = site_call([[1.0]])
    call = replace(call, memory=EditMemory(cells, [0], [1]))
    narrow = edit.select([1])
    assert not narrow.learns(call.memory)
    expected = learnt(fitted("blood", slope=2.0, offset=0.1), within(site_call([[1.0]])))
    assert torch.allclose(narrow(call).delta, expected, atol=1e-5)


def test_a_concept_that_comes_later_learns_for_itself(fitted: Edit) -> None:
    edit, cells = fitted("blood", "sword", slope=2.0, offset=0.0), dict[str, Any]()
    learnt(edit.select([0]), within(site_call([[1.0]]), cells))
    kept = cells["weights"][0, 0].clone()
    learnt(edit, within(site_call([[1.0, 1.0]], seed=4), cells))
    assert torch.equal(cells["weights"][0, 0], kept)
    assert (0, 1) in cells["weights"]


def test_the_strength_stands_before_the_weights(fitted: Edit) -> None:
    edit = fitted("blood", slope=1.0)
    once, twice = (learnt(edit, within(site_call([[strength]]))) for strength in (1.0, 2.0))
    assert torch.allclose(twice, 2 * once, atol=1e-5)


def test_the_mass_is_the_share_that_the_concepts_words_would_win() -> None:
    call = site_call([[1.0]])
    mass = edit_of("blood")(call).mass
    assert mass.shape == (1, HEADS, 6, 1)
    assert ((mass > 0) & (mass < 1)).all()


def other(**changes: Any) -> Fingerprint:
    known = WordPipeline.fingerprint
    fields = {"pipeline": known.pipeline, "sites": known.sites, "norms": known.norms, **changes}
    return Fingerprint(fields["pipeline"], fields["sites"], fields["norms"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingerprint": other(pipeline="pictures")}, "it was made for a pictures; make one with safeguard train gie"),
        ({"fingerprint": other(sites=(("elsewhere", HEADS),))}, "it was made for other text sites"),
        ({"fingerprint": other(norms=(2.0,))}, "it was made for other weights"),
        ({"method": "slider"}, "this adapter is of 'slider'; make one with safeguard train gie"),
        ({"settings": {}}, "this is no adapter of gie"),
        ({"settings": {"constant": 0.0, "highest": 2.0}}, "its constant is not above 0"),
        ({"tensors": {"0.weight": torch.ones(1, 2), "0.bias": torch.ones(1)}}, "not the pipeline's text sites"),
        ({"tensors": {"0.weight": torch.ones(1, 1)}}, "its layers are not all there"),
        ({"tensors": straight(float("nan"), 0.0)}, "its numbers are not all finite"),
    ],
    ids=["class", "sites", "weights", "method", "settings", "constant", "width", "layers", "finite"],
)
def test_an_adapter_that_does_not_fit_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    tensors = changes.pop("tensors", straight(1.0, 0.0))
    with pytest.raises(CapabilityError, match=words):
        edit_of("blood", adapter=file_of(tmp_path, tensors, **changes))


def test_the_edit_names_the_adapter_that_it_acts_by(tmp_path: Path) -> None:
    file = file_of(tmp_path, straight(1.0, 0.0))
    digest = Adapter.load(file, "gie").digest
    edit = edit_of("blood", "sword", adapter=file)
    assert edit.adapters == {"c0": digest, "c1": digest}
    assert edit.select([1]).adapters == {"c1": digest}
    assert edit_of("blood").adapters == {}


def test_a_pipeline_for_which_none_is_shipped_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"'c0': no adapter of gie comes .* safeguard train gie .* params\.adapter: none"):
        edit_of("blood", adapter="default")


@pytest.mark.parametrize("value", [3, "", None])
def test_an_adapter_that_is_no_name_is_refused(value: Any) -> None:
    with pytest.raises(CapabilityError, match=r"'c0': params\.adapter of 'gie'"):
        edit_of("blood", adapter=value)
