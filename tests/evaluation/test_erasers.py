"""Every eraser in one table: what each takes, and what it costs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safeguard_demo.world import CONCEPTS
from typer.testing import CliRunner

from safeguard.cli.main import app
from safeguard.errors import AssetError, SafeguardError
from safeguard.evaluation import eraser_table
from safeguard.evaluation.arms import ArmMethod
from safeguard.evaluation.eraser_table import (
    HEAD,
    Cost,
    arms_of,
    chosen,
    costs,
    held_bytes,
    markdown,
    markdown_of,
    shipped_words,
)
from safeguard.evaluation.harness import Harness
from safeguard.evaluation.prompt_sets import BENIGN
from safeguard.plan.compile import Plan
from safeguard.plan.registry import Registry


def test_all_is_every_registered_eraser() -> None:
    assert [method.eraser for method in chosen("all")] == sorted(Registry().names)


def test_a_later_method_takes_the_place_of_the_same_eraser() -> None:
    names = [method.name for method in chosen("all,sld@max,nag:alpha=1@8")]
    assert {"sld@max", "nag:alpha=1.0@8.0"} <= set(names)
    assert not {"sld", "nag"} & set(names)


def test_a_word_that_is_no_method_is_refused() -> None:
    with pytest.raises(SafeguardError, match="no method"):
        chosen("all,@3")


def test_an_eraser_that_was_trained_tells_the_size_of_its_file(studio: Harness) -> None:
    found = {one.method: one for one in costs(studio, [ArmMethod("self_discovery"), ArmMethod("uce")], ["blood"])}
    assets = Path(__file__).parents[2] / "plugins" / "safeguard_demo" / "adapters"
    sizes = {file.stat().st_size for file in assets.glob("self_discovery-*")}
    assert found["self_discovery"].kept in sizes
    assert found["uce"].kept == 0
    assert found["uce"].prepare > 0


def test_what_a_method_cannot_take_is_told_with_the_reason(studio: Harness) -> None:
    (found,) = costs(studio, [ArmMethod("self_discovery", {"adapter": "nowhere.safetensors"})], ["blood"])
    assert found.takes == ()
    assert "nowhere.safetensors" in found.refused["blood"]
    assert arms_of([ArmMethod("self_discovery")], [found]) == []


def test_tensors_are_counted_once_wherever_they_are_held(studio: Harness) -> None:
    class Holder:
        __slots__ = ("also", "one")

        def __init__(self, one: torch.Tensor) -> None:
            self.one, self.also = one, {"deep": [one[:3], torch.zeros(5)]}

    plan = Plan(None, (), (Holder(torch.zeros(10)),), {})  # type: ignore[arg-type]
    assert held_bytes(plan) == 4 * (10 + 5)


def test_memory_is_that_of_a_call_against_an_unprotected_one(studio: Harness) -> None:
    twice, once = costs(studio, [ArmMethod("sld", strength="max"), ArmMethod("uce")], ["blood"])
    assert twice.memory is not None
    assert once.memory is not None
    assert twice.memory > once.memory >= 1


def test_time_is_that_of_a_call_beside_unprotected_ones(studio: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on with each call of the denoiser: one more a step, and none."""
    ticks = list[int]()
    clock = SimpleNamespace(process_time=lambda: float(len(ticks)), perf_counter=time.perf_counter)
    monkeypatch.setattr(eraser_table, "time", clock)
    handle = studio.pipe.unet.register_forward_pre_hook(lambda module, given: ticks.append(1))
    try:
        twice, once = costs(studio, [ArmMethod("sld", strength="max"), ArmMethod("uce")], ["blood"])
    finally:
        handle.remove()
    assert (twice.time, once.time) == (2.0, 1.0)


def test_results_without_what_is_measured_today_are_still_shown(measured: tuple[Path, str]) -> None:
    data = json.loads(measured[1])
    for name in ("memory", "time", "training"):
        del data["costs"][0][name]
    line = next(line for line in markdown(data).splitlines() if line.startswith("| geom_erasing |"))
    cells = dict(zip(HEAD, line.strip("| ").split(" | "), strict=True))
    assert (cells["peak memory"], cells["training"]) == ("-", "-")


def test_rows_of_some_erasers_stand_below_the_unprotected_ones(measured: tuple[Path, str]) -> None:
    lines = markdown_of(json.loads(measured[1]), ["geom_erasing"]).splitlines()[2:]
    assert [line.split(" | ")[1].split(",")[0] for line in lines if line] == ["unprotected", "geom_erasing"]


def test_an_eraser_of_which_nothing_is_said_is_an_error_that_names_it(measured: tuple[Path, str]) -> None:
    with pytest.raises(AssetError, match="nothing was measured of gie"):
        markdown_of(json.loads(measured[1]), ["geom_erasing", "gie"])


def test_a_refused_eraser_has_its_reason_in_place_of_rows() -> None:
    cost = Cost("sdd", (), refused={"blood": "no adapter of sdd"})
    text = markdown_of({"rows": [], "costs": [cost.to_dict()]}, ["sdd"])
    assert "- `sdd`, every concept: no adapter of sdd" in text


def test_a_training_log_without_the_table_of_erasers_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["eval", "demo", "--training", str(tmp_path / "log"), "--out", str(tmp_path)])
    assert result.exit_code == 2


def test_more_concepts_at_once_are_measured_on_benign_prompts() -> None:
    made = arms_of([ArmMethod("uce")], [Cost("uce", CONCEPTS[:3])])
    several = [arm for arm in made if arm.mode != "alone"]
    assert [arm.mode for arm in several] == ["at-once-1", "at-once-3"]
    assert all(arm.cells == (BENIGN,) for arm in several)
    assert [list(arm.policy.concepts) for arm in several if arm.policy] == [list(CONCEPTS[:1]), list(CONCEPTS[:3])]


def test_as_many_at_once_as_are_not_read_are_left_out_with_the_reason(studio: Harness) -> None:
    """The text encoder of the demo reads 32 tokens, and the phrases of all five concepts are more."""
    (cost,) = costs(studio, [ArmMethod("negative_prompt")], CONCEPTS)
    assert list(cost.refused) == ["5 at once"]
    assert "32 tokens" in cost.refused["5 at once"]
    assert [arm.mode for arm in arms_of([ArmMethod("negative_prompt")], [cost])][-2:] == ["at-once-1", "at-once-3"]
    assert "- `negative_prompt`, 5 at once: the policy's words" in "".join(eraser_table._refusals([cost.to_dict()]))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command writes and says of one eraser, one concept and one prompt a cell."""
    out = tmp_path_factory.mktemp("erasers")
    log = out / "training.jsonl"
    log.write_text('{"method": "geom_erasing", "pipeline": "unet", "concepts": ["blood"], "cpu_seconds": 41.5}\n')
    words = ["--erasers", "geom_erasing", "--n", "1", "--split", "dev", "--concepts", "blood", "--training", str(log)]
    result = CliRunner().invoke(app, ["eval", "demo", *words, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_its_rows_are_of_each_concept_alone_and_of_some_at_once(measured: tuple[Path, str]) -> None:
    modes = {(row["method"], row["mode"]) for row in json.loads(measured[1])["rows"]}
    assert modes == {("unprotected", ""), ("geom_erasing", "alone"), ("geom_erasing", "at-once-1")}


def test_words_that_come_with_an_eraser_are_loaded_after_the_pipeline_was_named(
    measured: tuple[Path, str], studio: Harness
) -> None:
    data = json.loads(measured[1])
    assert data["costs"][0]["takes"] == ["blood"]
    assert data["settings"]["pipeline"] == studio.digest()


def test_a_word_counts_as_what_training_made(measured: tuple[Path, str]) -> None:
    (file,) = (path for path in shipped_words([ArmMethod("geom_erasing")]) if "-blood" in path.name)
    (cost,) = json.loads(measured[1])["costs"]
    assert cost["kept"] == file.stat().st_size
    assert cost["training"] == 41.5


def test_its_table_is_that_of_its_results(measured: tuple[Path, str]) -> None:
    data = json.loads((measured[0] / "results.json").read_text("utf-8"))
    assert (measured[0] / "table.md").read_text("utf-8") == markdown(data)
    assert "| geom_erasing |" in markdown(data)
    assert (measured[0] / "erasers.png").stat().st_size > 10_000
