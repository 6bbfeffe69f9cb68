"""One of a group is drawn for each image: which, by what, and what the record says of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safeguard.audit import Decision, MemorySink
from safeguard.guard.call_args import PipelineCall, PromptRow
from safeguard.guard.group_choice import keys_of, lowest
from tests.support.contract_policies import close, concept, policy, rows_changed
from tests.support.families import PROMPTS, generate

Pipe = Any
Protect = Callable[..., Any]

NAMES = ("green", "pink", "blue")
GROUP = policy(*(concept(name, activation="always", one_of="colour") for name in NAMES))
IDS = st.sets(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=6)


def noise(seeds: Iterable[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def asked(images: int, generator: Any = None) -> PipelineCall:
    """A call for one prompt and some images of it, each with its own generator or all with one."""
    generators = tuple(generator) if isinstance(generator, list) else (generator,) * images
    return PipelineCall((PromptRow(("a boat",), ()),), images, (None,) * images, inverted=False, generators=generators)


def decisions(guard: Any, pipe: Pipe, prompts: Any = PROMPTS, request_id: str | None = None, **options: Any) -> list[Decision]:
    with guard.request(request_id) as request:
        generate(pipe, prompts, **options)
    return list(request.decisions)


def drawn(found: Iterable[Decision]) -> list[str]:
    return [one.concept for decision in found for one in decision.drawn]


# what the guard does


def test_one_of_a_group_acts_in_each_image_as_it_would_alone(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, GROUP)
    with guard.request() as request:
        images = generate(pipe, ["a boat"] * 8, generator=noise(range(8)))
    acted = [tuple(one.concept for one in decision.applied) for decision in request.decisions]
    assert acted == [(name,) for name in drawn(request.decisions)]
    for name in {name for (name,) in acted}:
        guard.swap(policy(concept(name, activation="always")))
        alone = generate(pipe, ["a boat"] * 8, generator=noise(range(8)))
        assert [close(*pair) for pair in zip(images, alone, strict=True)] == [one == (name,) for one in acted]


def test_the_draw_of_an_image_with_its_own_generator_is_the_same_in_any_batch(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, GROUP)
    together = decisions(guard, pipe, ["a boat"] * 6, generator=noise(range(6)))
    for seed, one in enumerate(together):
        (alone,) = decisions(guard, pipe, ["a tree"], generator=noise([seed])[0])
        assert alone.drawn == one.drawn


def test_images_of_one_prompt_are_drawn_one_by_one(pipe: Pipe, protect: Protect) -> None:
    found = decisions(protect(pipe, GROUP), pipe, ["a boat"], num_images_per_prompt=8)
    assert set(drawn(found)) == set(NAMES)


def test_what_the_prompt_did_not_open_is_not_drawn(pipe: Pipe, protect: Protect) -> None:
    chosen = policy(*(concept(name, one_of="colour") for name in NAMES))
    none, one, two = decisions(protect(pipe, chosen), pipe, ["a boat", "a pink boat", "a pink and blue boat"])
    assert (none.drawn, none.result) == ((), "pass")
    assert [(each.concept, each.of) for each in one.drawn] == [("pink", ("pink",))]
    assert [each.of for each in two.drawn] == [("pink", "blue")]


def test_groups_are_drawn_each_by_itself_and_what_is_in_none_acts_always(pipe: Pipe, protect: Protect) -> None:
    days = [concept(name, activation="always", one_of="time") for name in ("day", "night")]
    guard = protect(pipe, policy(*GROUP.concepts.values(), concept("blood", activation="always"), *days))
    found = decisions(guard, pipe, ["a boat"] * 12, generator=noise(range(12)))
    pairs = {tuple(each.concept for each in one.drawn) for one in found}
    assert len(pairs) > 3
    assert all({each.concept for each in one.applied} == {"blood", *drawn([one])} for one in found)


def test_a_concept_of_no_strength_can_be_drawn_and_leaves_the_image_as_it_is(
    pipe: Pipe, protect: Protect, plain: torch.Tensor
) -> None:
    rest = [concept(f"nothing-{place}", activation="always", strength=0, one_of="colour") for place in range(8)]
    guard = protect(pipe, policy(concept("blue", activation="always", one_of="colour"), *rest))
    with guard.request() as request:
        images = generate(pipe, PROMPTS)
    assert rows_changed(images, plain) == [name == "blue" for name in drawn(request.decisions)]
    assert [one.result for one in request.decisions] == [
        "erase" if name == "blue" else "pass" for name in drawn(request.decisions)
    ]
    assert "pass" in {one.result for one in request.decisions}


def test_where_the_rows_of_an_image_are_not_known_the_whole_group_acts_and_nothing_is_drawn(
    pipe: Pipe, protect: Protect
) -> None:
    def exchange(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": torch.randn(tensors["prompt_embeds"].shape, generator=torch.Generator().manual_seed(9))}

    stolen = {"callback_on_step_end": exchange, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    (found,) = decisions(protect(pipe, GROUP), pipe, ["a boat"], **stolen)
    assert ([one.concept for one in found.applied], found.drawn) == (list(NAMES), ())


def test_embeddings_are_drawn_for_like_any_prompt(pipe: Pipe, protect: Protect) -> None:
    with torch.no_grad():
        given = pipe.encode_prompt("a boat", "cpu", 1, False)[0]
    (found,) = decisions(protect(pipe, GROUP), pipe, None, prompt_embeds=given)
    assert [one.concept for one in found.applied] == drawn([found])


def test_the_record_says_which_was_drawn_of_which_and_by_what_and_lets_the_draw_be_made_again(
    pipe: Pipe, protect: Protect
) -> None:
    sink = MemorySink()
    protect(pipe, GROUP, audit=sink)
    generate(pipe, PROMPTS)
    for record in sink.records:
        (one,) = record["drawn"]
        assert (one["group"], one["of"], one["by"]) == ("colour", list(NAMES), "generator")
        assert one["concept"] == lowest(one["of"], one["group"], one["key"])


def test_a_record_under_a_policy_without_groups_has_no_such_field(pipe: Pipe, protect: Protect) -> None:
    sink = MemorySink()
    protect(pipe, policy(concept("blood", activation="always")), audit=sink)
    generate(pipe, PROMPTS)
    assert not any("drawn" in record for record in sink.records)


def test_the_status_names_the_group_of_a_concept(protect: Protect, pipe: Pipe) -> None:
    assert protect(pipe, GROUP).status().activations["blue"] == "always, one of colour"


# by what it is drawn


def test_drawing_takes_nothing_from_any_generator() -> None:
    own = torch.Generator().manual_seed(7)
    before = own.get_state(), torch.get_rng_state()
    keys_of(asked(4, own))
    keys_of(asked(4))
    assert torch.equal(own.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_generator_that_goes_on_from_call_to_call_gives_a_new_draw_each_time() -> None:
    own = torch.Generator().manual_seed(7)
    (first,) = keys_of(asked(1, own))
    torch.randn(4, generator=own)
    (second,) = keys_of(asked(1, own))
    assert first != second
    assert keys_of(asked(1, torch.Generator().manual_seed(7))) == (first,)


def test_images_that_share_a_generator_are_drawn_by_their_number() -> None:
    shared = torch.Generator().manual_seed(7)
    keys = keys_of(asked(4, shared))
    assert len(set(keys)) == 4
    assert keys_of(asked(4, [shared] * 4)) == keys
    assert keys_of(asked(1, shared)) == keys[:1]


def test_without_a_generator_it_goes_by_the_request_and_the_images_made_before_in_it(pipe: Pipe, protect: Protect) -> None:
    guard = protect(pipe, GROUP)
    whole = decisions(guard, pipe, request_id="r-1", generator=None)
    with guard.request("r-1") as request:
        for prompt in PROMPTS:
            generate(pipe, [prompt], generator=None)
    assert [one.drawn for one in request.decisions] == [one.drawn for one in whole]
    assert {each.by for one in whole for each in one.drawn} == {"request"}
    assert len({each.key for one in whole for each in one.drawn}) == 3


def test_without_either_it_goes_by_chance() -> None:
    first, second = keys_of(asked(2)), keys_of(asked(2))
    assert {key.by for key in (*first, *second)} == {"chance"}
    assert len({*first, *second}) == 4


@pytest.mark.parametrize("count", [2, 3, 5])
def test_over_many_seeds_every_concept_is_drawn_as_often(count: int) -> None:
    images, names = 4000, [f"colour-{place}" for place in range(count)]
    keys = keys_of(asked(images, noise(range(images))))
    found = Counter(lowest(names, "colour", key.digest) for key in keys)
    # Hoeffding: a uniform draw is further from its share than this with less than 2 exp(-2 far^2 / images) = 1e-6, each.
    far = math.sqrt(images * math.log(2e6) / 2)
    assert {name: abs(found[name] - images / count) < far for name in names} == dict.fromkeys(names, True)


def test_two_groups_are_drawn_apart() -> None:
    images = 4000
    keys = keys_of(asked(images, noise(range(images))))
    same = sum(lowest("ab", "one", key.digest) == lowest("ab", "other", key.digest) for key in keys)
    assert abs(same - images / 2) < math.sqrt(images * math.log(2e6) / 2)


@given(st.permutations(["green", "pink", "blue", "yellow"]), st.text(max_size=8))
def test_the_order_of_a_group_makes_no_difference(names: list[str], key: str) -> None:
    assert lowest(names, "colour", key) == lowest(sorted(names), "colour", key)


@given(IDS, st.from_regex(r"[a-z]{7}", fullmatch=True), st.text(max_size=8))
def test_a_concept_that_is_added_takes_images_over_and_moves_none_between_the_others(
    names: set[str], added: str, key: str
) -> None:
    assert lowest({*names, added}, "colour", key) in {added, lowest(names, "colour", key)}
