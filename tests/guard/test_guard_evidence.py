"""What a guard does with a calibration, and without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from safeguard.audit import MemorySink
from safeguard.errors import CapabilityError
from safeguard.instrument.apply import probing
from tests.support.contract_policies import Words, calibrated, concept, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, generate

Pipe = Any
Protect = Callable[..., Any]
ADAPTIVE = policy(concept("blood", activation="adaptive"))


@pytest.fixture
def own() -> Pipe:
    """A pipeline that the test may spoil."""
    return FAMILIES["sd1"]()


def test_without_a_calibration_an_adaptive_concept_acts_in_every_image_and_the_status_says_so(
    pipe: Pipe, protect: Protect, plain: torch.Tensor
) -> None:
    guard = protect(pipe, ADAPTIVE, screener=None)
    assert rows_changed(generate(pipe, PROMPTS), plain) == [True, True, True]
    assert guard.status().activations == {"blood": "adaptive (not calibrated: acts in every image)"}
    assert guard.status().calibration is None


def test_with_one_the_status_names_it(pipe: Pipe, protect: Protect) -> None:
    calibration = calibrated(pipe, ADAPTIVE, opens=())
    guard = protect(pipe, ADAPTIVE, calibration=calibration)
    assert guard.status().activations == {"blood": "adaptive"}
    assert guard.status().calibration == calibration.digest


def test_a_concept_with_other_phrases_acts_in_every_image(pipe: Pipe, protect: Protect, plain: torch.Tensor) -> None:
    calibration = calibrated(pipe, ADAPTIVE, opens=())
    guard = protect(pipe, ADAPTIVE, screener=None, calibration=calibration)
    assert same(generate(pipe, PROMPTS), plain)
    guard.swap(policy(concept("blood", activation="adaptive", phrases=("gore",))))
    with guard.request() as request:
        generate(pipe, PROMPTS)
    assert [decision.result for decision in request.decisions] == ["erase", "erase", "erase"]


def test_only_adaptive_concepts_go_by_evidence(pipe: Pipe, protect: Protect, plain: torch.Tensor) -> None:
    calibration = calibrated(pipe, ADAPTIVE, opens=(0, 1, 2))
    protect(pipe, policy(concept("blood", activation="screened")), calibration=calibration)
    assert rows_changed(generate(pipe, PROMPTS), plain) == [False, True, False]


def test_screener_and_evidence_open_together(pipe: Pipe, protect: Protect, plain: torch.Tensor) -> None:
    guard = protect(pipe, ADAPTIVE, screener=Words(), calibration=calibrated(pipe, ADAPTIVE, opens=(2,)))
    with guard.request() as request:
        found = generate(pipe, PROMPTS)
    assert rows_changed(found, plain) == [False, True, True]
    assert [set(decision.evidence.concepts) for decision in request.decisions] == [{"blood"}, set(), {"blood"}]


def test_where_the_screener_fails_and_may_the_whole_policy_acts(pipe: Pipe, protect: Protect, plain: torch.Tensor) -> None:
    class Broken(Words):
        def screen(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no")

    lenient = policy(concept("blood", activation="adaptive"), on_error="allow")
    protect(pipe, lenient, screener=Broken(), calibration=calibrated(pipe, lenient, opens=()))
    assert rows_changed(generate(pipe, PROMPTS), plain) == [True, True, True]


def test_embeddings_get_the_whole_policy(pipe: Pipe, protect: Protect) -> None:
    positive, negative = pipe.encode_prompt(PROMPTS[0], "cpu", 1, True)
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    expected = generate(pipe, None, **given)
    protect(pipe, ADAPTIVE, calibration=calibrated(pipe, ADAPTIVE, opens=()))
    assert not same(generate(pipe, None, **given), expected)


def test_each_image_of_a_prompt_is_looked_at(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, ADAPTIVE, screener=None, calibration=calibrated(pipe, ADAPTIVE, opens=()))
    with guard.request() as request:
        generate(pipe, PROMPTS, num_images_per_prompt=2)
    scores = [decision.evidence.concepts["blood"].score for decision in request.decisions]
    assert len(set(scores)) == 6  # each has its own noise


def test_the_record_holds_what_was_seen(pipe: Pipe, protect: Protect) -> None:
    sink, calibration = MemorySink(), calibrated(pipe, ADAPTIVE, opens=(2,))
    protect(pipe, ADAPTIVE, screener=None, calibration=calibration, audit=sink)
    generate(pipe, PROMPTS)
    assert [record["result"] for record in sink.records] == ["pass", "pass", "erase"]
    last = sink.records[-1]
    assert last["evidence"]["calibration"] == calibration.digest
    seen = last["evidence"]["concepts"]["blood"]
    assert (seen["opened"], seen["step"], seen["threshold"]) == (True, 0, 0.0)
    assert seen["score"] == pytest.approx(1.0, abs=0.05)
    assert last["applied"][0]["steps"][0] == 0


def test_a_calibration_of_other_weights_is_refused_and_nothing_is_attached(pipe: Pipe, protect: Protect) -> None:
    calibration = calibrated(pipe, ADAPTIVE, opens=())
    norms = tuple(None if norm is None else 2 * norm for norm in calibration.fingerprint.norms)
    with pytest.raises(CapabilityError, match="other weights"):
        protect(pipe, ADAPTIVE, calibration=replace(calibration, fingerprint=replace(calibration.fingerprint, norms=norms)))
    assert not pipe.unet._forward_hooks


def test_weights_that_change_after_protect_withhold_images_until_they_are_back(own: Pipe, protect: Protect) -> None:
    """As an adapter that is loaded on a guarded pipeline: the gauges were made for other attentions."""
    protect(own, ADAPTIVE, screener=None, calibration=calibrated(own, ADAPTIVE, opens=(2,)))
    expected = generate(own, PROMPTS)
    values = next(module for name, module in own.unet.named_modules() if name.endswith("attn2.to_v"))
    kept = values.weight.detach().clone()
    with torch.no_grad():
        values.weight.mul_(3)
    with pytest.raises(CapabilityError, match="other weights"):
        generate(own, PROMPTS)
    with torch.no_grad():
        values.weight.copy_(kept)
    assert same(generate(own, PROMPTS), expected)


def test_weights_that_change_do_not_matter_where_nothing_goes_by_evidence(own: Pipe, protect: Protect) -> None:
    screened = policy(concept("blood", activation="screened"))
    protect(own, screened, calibration=calibrated(own, ADAPTIVE, opens=()))
    with torch.no_grad():
        next(own.unet.parameters()).mul_(3)
        for name, module in own.unet.named_modules():
            if name.endswith("attn2.to_v"):
                module.weight.mul_(3)
    assert len(generate(own, PROMPTS)) == len(PROMPTS)


def test_a_calibration_of_another_class_is_refused(pipe: Pipe, protect: Protect) -> None:
    other = FAMILIES["sd3"]()
    with pytest.raises(CapabilityError, match="made for a StableDiffusionPipeline"):
        protect(other, ADAPTIVE, calibration=calibrated(pipe, ADAPTIVE, opens=()))


def test_gauges_that_do_not_fit_the_sites_are_refused_before_a_request(pipe: Pipe, protect: Protect) -> None:
    calibration = calibrated(pipe, ADAPTIVE, opens=())
    short = replace(calibration.gauges["blood"], weights=(1.0,))
    with pytest.raises(CapabilityError, match="features"):
        protect(pipe, ADAPTIVE, calibration=replace(calibration, gauges={"blood": short}))


def test_an_image_that_is_looked_at_late_is_withheld(
    pipe: Pipe, protect: Protect, plain: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another denoiser makes the first steps."""
    begin = probing.begin
    protect(pipe, ADAPTIVE, screener=None, calibration=calibrated(pipe, ADAPTIVE, opens=(2,)))
    monkeypatch.setattr(
        probing, "begin", lambda state, *rest, **more: begin(state, *rest, **more) if state.log.step > 0 else None
    )
    assert same(generate(pipe, PROMPTS[:2]), plain[:2])
    with pytest.raises(CapabilityError, match="too late"):
        generate(pipe, PROMPTS)


def test_an_image_that_is_never_looked_at_is_withheld(pipe: Pipe, protect: Protect, monkeypatch: pytest.MonkeyPatch) -> None:
    protect(pipe, ADAPTIVE, screener=None, calibration=calibrated(pipe, ADAPTIVE, opens=()))
    monkeypatch.setattr(probing, "begin", lambda *call, **more: None)
    with pytest.raises(CapabilityError, match="is not known and it is withheld"):
        generate(pipe, PROMPTS)


def test_steps_outside_the_concepts_own_stay_untouched(pipe: Pipe, protect: Protect, plain: torch.Tensor) -> None:
    late = policy(concept("blood", activation="adaptive", steps=(0.99, 1.0)))
    protect(pipe, late, screener=None, calibration=calibrated(pipe, late, opens=(0,)))
    assert same(generate(pipe, PROMPTS), plain)
