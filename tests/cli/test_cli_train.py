"""``safeguard train``: what it writes, and what it says where it cannot."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from safeguard_demo import Judge
from safeguard_demo.world import BENIGN_PLACES, Scene, render
from typer.testing import CliRunner

from safeguard.cli.main import app
from safeguard.errors import SafeguardError
from safeguard.feedback import FeedbackStore, PictureModel
from safeguard.policy import load_policy
from safeguard.sdk.adapter import Adapter
from safeguard.training import Task, train, trainer_names, trainer_of
from safeguard.training.feedback_collection import stand_in
from safeguard.training.reward import Reward
from safeguard.training.reward_fit import train_reward
from safeguard.training.textual_inversion import LearnedWord

RUN = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An adapter of the demo UNet for one concept, from two prompts of each kind, and what the command said."""
    file = tmp_path_factory.mktemp("trained") / "a.safetensors"
    result = RUN.invoke(app, ["train", "gie", "--concept", "blood", "--n", "2", "--out", str(file), "--json"])
    assert result.exit_code == 0, result.output
    return file, result.stdout


def test_it_writes_an_adapter_of_the_pipeline_and_reports(made: tuple[Path, str]) -> None:
    file, said = made
    adapter = Adapter.load(file, "gie")
    assert json.loads(said)["digest"] == adapter.digest
    assert adapter.fingerprint.pipeline == "StableDiffusionPipeline"
    assert adapter.settings["concepts"] == {"blood": ["blood"]}
    assert adapter.settings["constant"] in adapter.settings["scales"]
    assert adapter.report["tokens"] == 6  # two prompts of three kinds, one word


def test_a_policy_may_name_what_it_wrote(made: tuple[Path, str], tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    concept = f"{{phrases: [blood], eraser: gie, activation: always, params: {{adapter: {made[0]}}}}}"
    policy.write_text(
        "apiVersion: safeguard.dev/v1\nkind: Policy\nmetadata: {name: p}\n" + f"spec: {{concepts: {{blood: {concept}}}}}\n"
    )
    words = ["--prompt", "a red car with blood", "--policy", str(policy), "--screener", "none", "--calibration", "none"]
    result = RUN.invoke(app, ["generate", *words, "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    assert [image["result"] for image in json.loads(result.stdout)["images"]] == ["erase"]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of the demo UNet from two pictures and two updates."""
    file = tmp_path_factory.mktemp("learnt") / "b.safetensors"
    words = ["--concept", "blood", "--n", "2", "--batch", "2", "--set", "updates=2", "--set", "steps=1", "--resume"]
    result = RUN.invoke(app, ["train", "self_discovery", *words, "--out", str(file), "--json"])
    assert result.exit_code == 0, result.output
    return file


def test_it_learns_a_direction_by_the_numbers_that_it_is_told(learnt: Path) -> None:
    made = Adapter.load(learnt, "self_discovery")
    asked = {name: made.settings[name] for name in ("concept", "pictures", "updates", "steps", "batch", "rate")}
    assert asked == {"concept": "blood", "pictures": 2, "updates": 2, "steps": 1, "batch": 2, "rate": 0.02}
    assert made.tensors["vector"].abs().max() > 0


def test_a_training_that_is_done_leaves_no_checkpoint(learnt: Path) -> None:
    assert [file.name for file in learnt.parent.iterdir()] == ["b.safetensors"]


def test_the_concept_itself_is_learnt_from_ordinary_prompts(learnt: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a tree\n\na red boat\na dog\n", "utf-8")
    words = ["--concept", "blood", "--n", "2", "--prompts", str(tmp_path / "prompts.txt"), "--set", "towards=1"]
    numbers = ["--set", "updates=1", "--set", "steps=1", "--out", str(tmp_path / "c.safetensors")]
    result = RUN.invoke(app, ["train", "self_discovery", *words, *numbers])
    assert result.exit_code == 0, result.output
    made = Adapter.load(tmp_path / "c.safetensors", "self_discovery")
    assert (made.settings["towards"], made.settings["pictures"]) == (1, 2)


def test_deltas_are_learnt_by_the_numbers_that_it_is_told(tmp_path: Path) -> None:
    few = ["--batch", "2", "--set", "updates=2", "--set", "steps=2", "--set", "rank=1", "--set", "eta=1", "--resume"]
    result = RUN.invoke(app, ["train", "esd", "--concept", "blood", *few, "--out", str(tmp_path / "a.safetensors"), "--json"])
    assert result.exit_code == 0, result.output
    made = Adapter.load(tmp_path / "a.safetensors", "esd")
    assert {name: made.settings[name] for name in ("concept", "updates", "steps", "rank", "eta", "batch", "pairs")} == {
        "concept": "blood",
        "updates": 2,
        "steps": 2,
        "rank": 1,
        "eta": 1.0,
        "batch": 2,
        "pairs": 1,
    }
    assert {len(one) for name, one in made.tensors.items() if name.endswith(".down")} == {1}
    assert {"left", "along", "elsewhere", "energy_kept"} == set(made.report)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


SHORT = ("--concept", "blood", "--batch", "1", "--set", "updates=5", "--set", "steps=1", "--set", "rank=1", "--set", "strict=1")


def test_it_says_and_logs_what_a_training_took(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log.jsonl"
    for name in ("a", "b"):
        result = RUN.invoke(
            app, ["train", "sdd", *SHORT, "--log", str(log), "--out", str(tmp_path / f"{name}.safetensors"), "--json"]
        )
        assert result.exit_code == 0, result.output
    assert "blood: updates: 2 of 5 left, about" in result.stderr
    said, lines = json.loads(result.stdout), [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert len(lines) == 2
    assert lines[1] == {
        "method": "sdd",
        "pipeline": "unet",
        "concepts": ["blood"],
        "seconds": said["seconds"],
        "cpu_seconds": said["cpu_seconds"],
        "settings": said["settings"],
    }
    assert min(said["seconds"], said["cpu_seconds"]) > 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_would_take_too_long_is_stopped_and_its_checkpoint_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard.training.distillation.SAVED", 1)
    words = ["train", "sdd", *SHORT, "--set", "reuse=1", "--resume", "--out", str(tmp_path / "a.safetensors")]
    result = RUN.invoke(app, [*words, "--within", "0"])
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "more than the 0 min of --within: train for fewer --set updates=NUMBER, or allow more; --resume goes on" in said
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors.checkpoint"]
    again = RUN.invoke(app, [*words, "--within", "60"])
    assert again.exit_code == 0, again.output
    assert "took" in again.stdout


@pytest.mark.parametrize("option", ["--out", "--log"])
def test_a_file_that_cannot_be_written_is_refused_before_the_training(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = {"--out": tmp_path / "a.safetensors", option: tmp_path / "file" / "b"}
    result = RUN.invoke(app, ["train", "sdd", *SHORT, *(str(part) for pair in files.items() for part in pair)])
    assert result.exit_code == 1
    assert f"choose another {option}" in " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of drawn pictures, half of them with blood, of which the judge has said so; and a reward model of it."""
    store, rng = FeedbackStore(tmp_path_factory.mktemp("asked") / "store", create=True), random.Random(0)
    for number in range(24):
        scene = Scene("car", "blue", rng.choice(BENIGN_PLACES), ("blood",) if number % 2 else ())
        store.add(render(scene, rng), "blood", model=PictureModel("drawn"), seed=number)
    stand_in(store, "blood", Judge())
    train_reward(store, "blood").save(store.folder / "reward.safetensors")
    return store.folder, store.folder / "reward.safetensors"


FEW = ("--batch", "1", "--set", "inversion=2", "--set", "updates=1", "--set", "steps=2", "--set", "rank=1", "--set", "best=6")


def test_feedback_is_learnt_as_a_word_and_unlearnt(asked: tuple[Path, Path], tmp_path: Path) -> None:
    store, reward = asked
    given = ["--concept", "blood", "--feedback", str(store), "--reward", str(reward), "--set", "vectors=2", "--resume"]
    result = RUN.invoke(app, ["train", "hfi", *given, *FEW, "--out", str(tmp_path / "a.safetensors"), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    made, word = Adapter.load(tmp_path / "a.safetensors", "hfi"), LearnedWord.load(tmp_path / "a.word.safetensors")
    assert made.settings["word"] == word.digest
    assert made.settings["reward"] == Reward.load(reward).digest
    assert {name: made.settings[name] for name in ("concept", "by_person", "by_judge", "people", "best", "beta")} == {
        "concept": "blood",
        "by_person": 0,
        "by_judge": 24,
        "people": 0,
        "best": 6,
        "beta": 3,
    }
    assert {"left", "along", "named_along", "loss_before", "loss_after", "moved"} < set(made.report)
    assert (word.token, word.rows["clip_l"].shape) == ("<blood>", (2, 128))
    assert said["beside"] == [str(tmp_path / "a.word.safetensors")]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "a.word.safetensors"]


def test_in_the_demo_the_judge_stands_in_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safeguard_plugins.hfi.train.LEAST", 1)
    monkeypatch.setattr("safeguard_demo.STEPS", 2)
    given = ["--concept", "blood", "--n", "12", *FEW]
    result = RUN.invoke(app, ["train", "hfi", *given, "--out", str(tmp_path / "a.safetensors")])
    assert result.exit_code == 0, result.output
    assert "beside it:" in result.stdout
    assert Adapter.load(tmp_path / "a.safetensors", "hfi").settings["by_judge"] == 12


def test_a_sequence_is_learnt_in_the_order_of_its_concepts(tmp_path: Path) -> None:
    few = ["--batch", "2", "--set", "updates=1", "--set", "steps=2", "--set", "probe=1", "--set", "pool=2", "--set", "mined=1"]
    asked = ["--concept", "weapon", "--concept", "blood", "--set", "tolerance=9", "--resume"]
    result = RUN.invoke(app, ["train", "ccrt", *asked, *few, "--out", str(tmp_path / "a.safetensors"), "--json"])
    assert result.exit_code == 0, result.output
    made = Adapter.load(tmp_path / "a.safetensors", "ccrt")
    assert (made.settings["sequence"], made.settings["base"]) == (["weapon", "blood"], "esd")
    assert {"weapon_along", "blood_along"} < set(made.report)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_help_lists_every_method() -> None:
    result = RUN.invoke(app, ["train", "--help"])
    assert all(method in result.stdout for method in trainer_names())


@pytest.mark.parametrize("method", trainer_names())
def test_help_of_a_method_shows_its_settings(method: str) -> None:
    result = RUN.invoke(app, ["train", method, "--help"])
    assert result.exit_code == 0
    assert all(f"--set {name}={option.default:g}" in result.stdout for name, option in trainer_of(method).options().items())


def test_the_trainers_are_listed() -> None:
    result = RUN.invoke(app, ["train", "--list"])
    assert result.exit_code == 0
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == trainer_names()


def test_a_trainer_that_needs_training_data_says_so_before_it_begins() -> None:
    with pytest.raises(SafeguardError, match="needs prompts of the pipeline's world, and there are none; install"):
        train("geom_erasing", Task(None, load_policy("builtin://demo")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sld"], "eraser 'sld' has no training; there is one for ccrt, esd, geom_erasing, gie, hfi, sdd, self_discovery"),
        (["gie", "--set", "rate=1"], "training of gie has no setting 'rate'; it has none"),
        (["self_discovery", "--set", "speed=1"], "training of self_discovery has no setting 'speed'; it has updates, rate"),
        (["self_discovery", "--set", "rate"], "--set rate: this is no NAME=NUMBER"),
        (["self_discovery", "--set", "rate=-1"], "training of self_discovery: rate is a number above 0"),
        (["sdd", "--set", "updates=0.5"], "training of sdd: updates is a whole number above 0, not 0.5"),
        (["hfi", "--set", "inversion=0"], "training of hfi: inversion is a whole number above 0, not 0"),
        (["sdd", "--set", "strict=2"], "training of sdd: strict is 0 or 1, not 2"),
        (["gie", "--prompts", "some.txt"], "training of gie does not learn from prompts"),
        (["gie", "--resume"], "training of gie keeps no checkpoint"),
        (["self_discovery"], "training of self_discovery is of one concept; name it with --concept"),
        (["sdd"], "training of sdd is of one concept; name it with --concept"),
        (["sdd", "--feedback", "some"], "training of sdd goes by no feedback; leave --feedback and --reward out"),
        (["hfi", "--concept", "blood", "--reward", "some"], "name their store with --feedback"),
        (["hfi", "--concept", "blood", "--feedback", "nowhere"], "nowhere: there is no feedback store here"),
        (["hfi", "--policy", "builtin://violence", "--concept", "gore"], "the demo world has no 'gore'"),
        (["sdd", "--set", "eta=1"], "training of sdd has no setting 'eta'; it has updates, rate"),
        (["self_discovery", "--concept", "blood", "--prompts", "none.txt"], "none.txt: cannot be read"),
        (
            ["self_discovery", "--policy", "builtin://violence", "--concept", "gore"],
            "the demo world has no captions of 'gore'; give ordinary prompts with --prompts",
        ),
    ],
    ids=[
        *("method", "none", "unknown", "number", "sign", "fraction", "none-of-it", "flag", "prompts", "resume", "concepts"),
        *("concepts-of-deltas", "feedback"),
        *("no-store", "store", "world", "unknown-of-deltas", "file", "captions"),
    ],
)
def test_what_a_training_does_not_have_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    result = RUN.invoke(app, ["train", *words, "--out", str(tmp_path / "a.safetensors")])
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
