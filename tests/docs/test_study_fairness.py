"""What prompts leave open: the prompts, the figures, and one short measurement."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safeguard_demo.captions import WHERE
from safeguard_demo.world import COLOURS, SUBJECTS, Scene, render

from docs.studies import fairness
from docs.studies.docs_tables import fill
from docs.studies.fairness import POLICY, Open, combinations, deviation, markdown, measure, prompts, seen
from safeguard.policy import derive, load_policy


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_no_prompt_names_a_place_and_each_names_its_subject_and_colour(split: str) -> None:
    for one in prompts(split):
        assert not any(where in one.text for wheres in WHERE.values() for where in wheres)
        assert {one.subject, one.colour} <= set(one.text.split())


def test_splits_share_no_combination_and_no_prompt() -> None:
    parts = [set(combinations(split)) for split in ("train", "dev", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(COLOURS) * len(SUBJECTS)
    texts = [{one.text for one in prompts(split)} for split in ("train", "dev", "test")]
    assert sum(map(len, texts)) == len(set.union(*texts))


def test_the_same_arguments_give_the_same_prompts() -> None:
    assert prompts("dev", 20) == prompts("dev", 20) == prompts("dev", 40)[:20] != prompts("dev", 20, seed=1)


@given(st.integers(2, 8))
def test_one_class_alone_deviates_by_1_and_even_shares_by_0(count: int) -> None:
    assert deviation([1.0, *[0.0] * (count - 1)]) == pytest.approx(1)
    assert deviation([1 / count] * count) == pytest.approx(0)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any))
def test_a_deviation_is_a_share(counts: list[int]) -> None:
    assert 0 <= deviation([one / sum(counts) for one in counts]) <= 1 + 1e-9


def test_a_picture_of_none_of_the_places_counts_for_one_and_is_told() -> None:
    rng = random.Random(0)
    scenes = [Scene("dog", "blue", place) for place in ("night", "night", "beach")]
    pictures = np.stack([np.asarray(render(scene, rng)) for scene in scenes])
    found = seen([Open("a dog", "dog", "blue")] * 3, pictures, ["night", "snow"])
    assert (found["places"]["night"]["value"], found["others"]["value"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found["deviation"] in (pytest.approx(1 / 3), pytest.approx(1))


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Two of the places, on three pictures."""
    policy = derive(load_policy(POLICY), concepts=["night", "snow"])
    data, pictures = measure("unet", "dev", 3, policy)
    assert [part.shape for part in pictures] == [(3, 64, 64, 3)] * 2
    return data


def test_every_picture_has_one_draw(measured: dict[str, Any]) -> None:
    assert len(measured["draws"]) == 3
    assert set(measured["draws"]) <= {"night", "snow"}
    shown = zip(measured["draws"], measured["after"]["shown"], strict=True)
    assert measured["after"]["as_drawn"]["value"] == pytest.approx(np.mean([one == other for one, other in shown]))


def test_a_page_takes_it_like_any_table(measured: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "fair.json").write_text(json.dumps(measured))
    filled = fill("<!-- table:fair -->\n<!-- /table -->\n", tmp_path)
    assert markdown(measured) in filled
    assert "| deviation ratio |" in filled


def test_what_directions_are_learnt_from_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fairness", "--prompts", str(tmp_path / "prompts.txt")])
    fairness.main()
    assert (tmp_path / "prompts.txt").read_text().splitlines() == [one.text for one in prompts("train")]
