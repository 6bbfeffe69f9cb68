"""What is decided about a request: who asked, which concepts act in which row, what is refused, what the record says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from safeguard.audit import MemorySink, image_digest
from safeguard.errors import PolicyViolation, ScreenError
from tests.support.contract_policies import Words, concept, policy, rows_changed, same
from tests.support.families import FAMILIES, PROMPTS, generate

Pipe = Any
Protect = Callable[..., Any]


def decisions(guard: Any, pipe: Pipe, prompts: Any = PROMPTS, **options: Any) -> list[Any]:
    with guard.request() as request:
        generate(pipe, prompts, **options)
    return list(request.decisions)


def test_a_request_carries_its_names_into_the_record(pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    guard = protect(pipe, policy(concept("blood")), audit=sink)
    with guard.request("r-1", tenant="acme", trace_id="t-1") as request:
        generate(pipe, PROMPTS)
    assert [decision.request_id for decision in request.decisions] == ["r-1"] * 3
    assert {(record["request_id"], record["tenant"], record["trace_id"]) for record in sink.records} == {("r-1", "acme", "t-1")}
    assert [record["decision_id"] for record in sink.records] == [decision.decision_id for decision in request.decisions]


def test_calls_after_a_request_are_nobodys(pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    guard = protect(pipe, policy(concept("blood")), audit=sink)
    with guard.request("r-1"):
        pass
    generate(pipe, PROMPTS)
    assert {record["request_id"] for record in sink.records} == {None}


def test_one_record_an_image_with_its_row_seed_and_digest(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood")))
    with guard.request() as request:
        images = generate(pipe, PROMPTS, output_type="pil", num_images_per_prompt=2)
    assert [decision.subject.row for decision in request.decisions] == list(range(6))
    assert [decision.output.seed for decision in request.decisions] == list(range(100, 106))
    assert [decision.output.image_sha256 for decision in request.decisions] == [image_digest(image) for image in images]
    assert [decision.result for decision in request.decisions] == ["pass", "pass", "erase", "erase", "pass", "pass"]


ACTIVATIONS = {
    "always": ("erase", "erase", "erase"),
    "adaptive": ("erase", "erase", "erase"),
    "screened": ("pass", "erase", "pass"),
    "off": ("pass", "pass", "pass"),
}


@pytest.mark.parametrize(("activation", "results"), ACTIVATIONS.items(), ids=ACTIVATIONS)
def test_activation_says_when_a_concept_acts(
    activation: str, results: tuple[str, ...], pipe: Pipe, protect: Protect, plain: torch.Tensor
) -> None:
    guard = protect(pipe, policy(concept("blood", activation=activation)))
    with guard.request() as request:
        found = generate(pipe, PROMPTS)
    assert tuple(decision.result for decision in request.decisions) == results
    assert rows_changed(found, plain) == [result == "erase" for result in results]


def test_flag_records_and_touches_nothing(pipe: Pipe, protect: Protect, plain: torch.Tensor) -> None:
    guard = protect(pipe, policy(concept("blood", action="flag")))
    with guard.request() as request:
        found = generate(pipe, PROMPTS)
    assert [decision.result for decision in request.decisions] == ["pass", "flag", "pass"]
    assert request.decisions[1].screen.activated == ("blood",)
    assert same(found, plain)


def test_review_erases_and_marks_what_is_severe(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood", action="review")))
    found = decisions(guard, pipe, ["a boat", "blood on snow", "very blood"])
    assert [decision.result for decision in found] == ["pass", "erase", "review"]
    assert [len(decision.applied) for decision in found] == [0, 1, 1]


def test_block_refuses_what_is_severe_and_erases_the_rest(pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    guard = protect(pipe, policy(concept("blood", action="block")), audit=sink)
    assert [decision.result for decision in decisions(guard, pipe)] == ["pass", "erase", "pass"]
    with guard.request() as request, pytest.raises(PolicyViolation) as raised:
        generate(pipe, ["a boat", "very blood"])
    assert raised.value.concepts == ("blood",)
    assert raised.value.revision == guard.policy.revision
    (record,) = sink.records[3:]
    assert (record["result"], record["output"], record["subject"]["row"]) == ("block", None, 1)
    assert raised.value.decision_ids == (record["decision_id"],) == tuple(one.decision_id for one in request.decisions)


def test_a_refused_request_runs_no_step(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood", action="block")))
    steps: list[int] = []
    with pytest.raises(PolicyViolation):
        generate(pipe, ["very blood"], callback_on_step_end=lambda *call: steps.append(call[1]) or {})
    assert steps == []


def test_every_concept_has_its_own_rows(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood"), concept("snow"), concept("tree", action="flag")))
    found = decisions(guard, pipe, ["a boat", "blood on snow", "a snow tree"])
    assert [tuple(one.concept for one in decision.applied) for decision in found] == [(), ("blood", "snow"), ("snow",)]
    assert [decision.screen.activated for decision in found] == [(), ("blood", "snow"), ("snow", "tree")]


def test_without_a_screener_every_concept_acts(pipe: Pipe, protect: Protect, plain: torch.Tensor) -> None:
    guard = protect(pipe, policy(concept("blood"), concept("weapon", action="block")), screener=None)
    with guard.request() as request:
        found = generate(pipe, PROMPTS)
    assert rows_changed(found, plain) == [True, True, True]
    assert {decision.screen.fallback for decision in request.decisions} == {"no screener"}
    assert {len(decision.applied) for decision in request.decisions} == {2}


def test_the_default_screener_tells_a_named_concept(pipe: Pipe, protect: Protect) -> None:
    named = concept("blood", phrases=("blood", "a bloody wound"))
    guard = protect(pipe, policy(named), screener="default")
    calm, bloody = decisions(guard, pipe, ["a bowl of fresh fruit", "a bloody wound, blood everywhere"])
    assert (calm.result, bloody.result) == ("pass", "erase")
    assert bloody.screen.encoder != "none"
    assert 0.0 <= calm.screen.scores["blood"] < bloody.screen.scores["blood"] <= 1.0


def texts_seen(pipe: Pipe, protect: Protect, prompts: Any, **options: Any) -> set[str]:
    screener = Words()
    protect(pipe, policy(concept("blood")), screener=screener)
    generate(pipe, prompts, **options)
    return set(screener.seen)


def test_the_negative_prompt_is_screened(pipe: Pipe, protect: Protect) -> None:
    assert texts_seen(pipe, protect, ["a boat"], negative_prompt=["a fish"]) == {"a boat", "a fish"}


def test_every_prompt_field_is_screened(protect: Protect) -> None:
    fields = {"prompt_2": "two", "negative_prompt": "three", "negative_prompt_2": "four"}
    assert texts_seen(FAMILIES["sdxl"](), protect, ["one"], **fields) == {"one", "two", "three", "four"}


def test_a_second_prompt_opens_erasure(protect: Protect) -> None:
    pipe = FAMILIES["sdxl"]()
    guard = protect(pipe, policy(concept("blood")))
    assert [one.result for one in decisions(guard, pipe, ["a boat", "a tree"], prompt_2=["a boat", "blood"])] == [
        "pass",
        "erase",
    ]


def test_a_prompt_given_by_position_is_screened(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood", action="block")))
    with pytest.raises(PolicyViolation):
        pipe("very blood", 32, 32)


def test_a_concept_in_the_negative_prompt_opens_erasure_and_is_not_severe(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood", action="block")))
    assert [one.result for one in decisions(guard, pipe, ["a boat"], negative_prompt=["very blood"])] == ["erase"]


def test_guidance_turned_round_makes_the_negative_prompt_severe(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood", action="block")))
    with pytest.raises(PolicyViolation):
        generate(pipe, ["a boat"], negative_prompt=["very blood"], guidance_scale=-5.0)


def embeddings(pipe: Pipe, prompts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
    return made


def test_embeddings_are_protected_and_recorded_as_such(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood")))
    given = embeddings(pipe, ["a boat", "a tree"])
    found = decisions(guard, pipe, None, prompt_embeds=given)
    assert [(one.result, one.subject.source, one.screen.fallback) for one in found] == [
        ("erase", "prompt_embeds", "no text")
    ] * 2


def test_embeddings_are_refused_where_the_policy_says_so(pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    protect(pipe, policy(concept("blood"), prompt_embeds="refuse"), audit=sink)
    with pytest.raises(PolicyViolation, match=r"refused by settings\.prompt_embeds"):
        generate(pipe, None, prompt_embeds=embeddings(pipe, ["a boat", "a tree"]))
    assert [(record["result"], record["subject"]["source"]) for record in sink.records] == [("block", "prompt_embeds")] * 2


def pooled(pipe: Pipe) -> dict[str, Any]:
    with torch.no_grad():
        return {"pooled_prompt_embeds": pipe.encode_prompt("blood", device="cpu")[2]}


def test_pooled_embeddings_beside_a_prompt_get_the_whole_policy(protect: Protect) -> None:
    """The prompt is read, and what the pooled vector says is not."""
    pipe = FAMILIES["sdxl"]()
    guard = protect(pipe, policy(concept("blood")))
    (found,) = decisions(guard, pipe, ["a boat"], **pooled(pipe))
    assert (found.result, found.screen.fallback, found.screen.activated) == ("erase", "no text", ())


def test_pooled_embeddings_beside_a_prompt_are_refused_where_the_policy_says_so(protect: Protect) -> None:
    pipe = FAMILIES["sdxl"]()
    protect(pipe, policy(concept("blood"), prompt_embeds="refuse"))
    with pytest.raises(PolicyViolation):
        generate(pipe, ["a boat"], **pooled(pipe))


class Broken(Words):
    """Fails, and quotes the prompt as it does."""

    def screen(self, texts: Any, concepts: Any = None) -> Any:
        raise ValueError(f"cannot read {texts}")


class Forgetful(Words):
    """Leaves the last concept out."""

    def screen(self, texts: Any, concepts: Any = None) -> Any:
        return super().screen(texts, dict(list(concepts.items())[:-1]))


class Short(Words):
    """Leaves the last text out."""

    def screen(self, texts: Any, concepts: Any = None) -> Any:
        return super().screen(texts[:-1], concepts)


class Unsure(Words):
    """Gives no number."""

    def screen(self, texts: Any, concepts: Any = None) -> Any:
        found = super().screen(texts, concepts)
        found.scores[:] = np.nan
        return found


SCREENERS = [Broken, Forgetful, Short, Unsure]


@pytest.mark.parametrize("kind", SCREENERS)
def test_a_screener_that_fails_refuses_the_request(kind: type[Words], pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood"), concept("weapon")), screener=kind())
    with pytest.raises(ScreenError):
        generate(pipe, PROMPTS)


@pytest.mark.parametrize("kind", SCREENERS)
def test_a_screener_that_fails_opens_everything_where_errors_are_allowed(
    kind: type[Words], pipe: Pipe, protect: Protect
) -> None:
    guard = protect(pipe, policy(concept("blood"), concept("weapon"), on_error="allow"), screener=kind())
    found = decisions(guard, pipe)
    assert [(one.result, one.status, one.screen.fallback) for one in found] == [("erase", "degraded", "error")] * 3
    assert {len(one.applied) for one in found} == {2}


OUTPUTS = ["pil", "np", "pt", "latent"]


@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("wrapped", [True, False], ids=["output", "tuple"])
def test_every_form_of_output_is_recorded(form: str, wrapped: bool, pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood")))
    with guard.request() as request:
        output = pipe(list(PROMPTS), num_inference_steps=1, height=32, width=32, output_type=form, return_dict=wrapped)
    images = output.images if wrapped else output[0]
    digests = [decision.output.image_sha256 for decision in request.decisions]
    assert len(images) == len(digests) == len(set(digests)) == 3


def test_heat_maps_show_where_the_concept_stands(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, policy(concept("blood")))
    with guard.request(maps=True) as request:
        generate(pipe, PROMPTS)
    assert [list(one) for one in request.maps] == [[], ["blood"], []]
    mass = request.maps[1]["blood"]
    assert mass.shape == (16, 16)
    assert (mass > 0).all()


def test_a_call_that_fails_is_recorded_as_an_error(pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    protect(pipe, policy(concept("blood")), audit=sink)
    with pytest.raises(ValueError, match="divisible by 8"):
        generate(pipe, PROMPTS, height=33)
    assert [(record["result"], record["status"], record["output"]) for record in sink.records] == [
        ("pass", "error", None),
        ("erase", "error", None),
        ("pass", "error", None),
    ]


def test_arguments_that_do_not_fit_are_the_pipelines_to_refuse(pipe: Pipe, protect: Protect) -> None:
    protect(pipe, policy(concept("blood")))
    with pytest.raises(TypeError, match="multiple values for argument 'prompt'"):
        pipe(PROMPTS[0], prompt=PROMPTS[0])
    with pytest.raises(ValueError, match="prompt"):
        pipe(prompt=7)
