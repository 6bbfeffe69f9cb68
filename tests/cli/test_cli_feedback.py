"""``safeguard feedback``: from pictures to a reward model, and what it says where it cannot."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from safeguard.cli.main import app
from safeguard.feedback import FeedbackStore, PictureModel
from safeguard.training.reward import Reward

RUN = CliRunner()


def run(*words: object, code: int = 0) -> Any:
    result = RUN.invoke(app, ["feedback", *map(str, words)], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if "--json" in words else result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a dozen pictures that the demo pipeline painted, of which the judge has spoken."""
    store = tmp_path_factory.mktemp("made") / "store"
    said = run("make", store, "--concept", "blood", "--n", 12, "--steps", 2, "--json")
    assert (said["painted"], said["pictures"]) == (12, 12)
    said = run("judge", store, "--concept", "blood", "--json")
    assert said["judgements"] == 12
    return store


def test_it_paints_and_the_judge_stands_in(made: Path) -> None:
    shown = run("show", made, "--json")["concepts"]["blood"]
    assert (shown["pictures"], shown["answered"], shown["yes"] + shown["no"]) == (12, 12, 12)
    assert (shown["judgements_of_the_judge"], shown["people"], shown["agreement"]) == (12, [], [])
    assert not [file for file in made.rglob("*.jsonl") if b"blood on" in file.read_bytes()]


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red car\n\na dog\n", "utf-8")
    words = ("--concept", "weapon", "--n", 3, "--steps", 1, "--prompts", tmp_path / "prompts.txt")
    assert "3 pictures to ask about weapon" in run("make", tmp_path / "s", *words)
    hmacs = [item.prompt_hmac for item in FeedbackStore(tmp_path / "s").items("weapon")]
    assert hmacs[0] == hmacs[2] != hmacs[1]


def test_a_reward_is_fitted_and_written(made: Path, tmp_path: Path) -> None:
    said = run("fit", made, "--concept", "blood", "--out", tmp_path / "new" / "r.safetensors", "--json")
    learnt = Reward.load(tmp_path / "new" / "r.safetensors")
    assert (said["digest"], said["kind"], said["settings"]["by_judge"]) == (learnt.digest, "binary", 12)
    text = run("fit", made, "--concept", "blood", "--out", tmp_path / "r.safetensors", "--seed", 1)
    assert "learnt from 0 judgements of people and 12 of the judge" in text
    assert re.search(r"reward: .*r.safetensors, digest [0-9a-f]{12}", text)


def test_it_counts_people_and_says_how_far_they_agree(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "s", create=True)
    images = [store.add(np.full((8, 8, 3), n, np.uint8), "blood", model=PictureModel("drawn")).image for n in range(4)]
    store.answer_all("blood", dict(zip(images, ("yes", "yes", "no", "unsure"), strict=True)), who="ana")
    store.answer_all("blood", dict(zip(images, ("yes", "no", "no", "no"), strict=True)), who="ben")
    store.rank("blood", images, who="ana")
    store.rank("blood", images[::-1], who="[bold]ben")
    text = run("show", store.folder)
    assert "blood: ana, ben: kappa 0.40, 67 % of 3 alike" in text
    assert "blood: 0 % of 6 comparisons ranked alike" in text
    assert run("show", store.folder, "--json")["concepts"]["blood"]["people"] == ["[bold]ben", "ana", "ben"]


def test_rankings_of_the_judge(made: Path, tmp_path: Path) -> None:
    own = shutil.copytree(made, tmp_path / "own")
    assert "3 rankings, by the judge" in run("judge", own, "--concept", "blood", "--rankings", 3, "--size", 3)
    assert len(FeedbackStore(own).rankings("blood")) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "none"], "there is no feedback store here; make one: safeguard feedback make none"),
        (["judge", "none", "--concept", "blood"], "there is no feedback store here"),
        (["serve", "none", "--who", "ana"], "there is no feedback store here"),
        (["make", "new", "--concept", "weather", "--n", "1"], "the demo world has no 'weather'"),
        (["make", "new", "--concept", "blood", "--pipeline", "."], "say with --prompts FILE what this pipeline is to paint"),
        (["make", "new", "--concept", "blood", "--prompts", "none.txt"], "none.txt: cannot be read"),
        (["fit", "MADE", "--concept", "weapon", "--out", "r"], "nobody is asked about 'weapon' here, but about blood"),
        (["fit", "MADE", "--concept", "blood", "--by", "person", "--out", "r"], "0 pictures are answered"),
        (["fit", "MADE", "--concept", "blood", "--encoder", "none", "--out", "r"], "holds no image encoder"),
        (["fit", "MADE", "--concept", "blood", "--out", "/proc/none/r"], "cannot be written"),
        (["serve", "MADE", "--who", "ana", "--host", "192.168.0.9"], "say --token TOKEN too"),
        (["serve", "MADE", "--who", "ana", "--host", "0.0.0.0", "--token", "x" * 20], "is every address at once"),
        (["serve", "MADE", "--who", " "], "who is the name of a person"),
    ],
)
def test_what_cannot_be_done_is_said_so(
    made: Path, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = run(*[str(made) if word == "MADE" else word for word in words], code=1)
    assert said in " ".join(output.split())
    assert not (tmp_path / "new").exists()


def test_serve_prints_its_address_and_ends_with_ctrl_c(made: Path) -> None:
    words = ["feedback", "serve", str(made), "--who", "ana", "--port", "0", "--json"]
    command = [sys.executable, "-m", "safeguard.cli.main", *words]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # A shell has jobs in the background ignore Ctrl-C, and these tests may run in one.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, preexec_fn=listen) as running:
        try:
            assert running.stdout is not None
            said = json.loads("".join(iter(running.stdout.readline, "}\n")) + "}")
            address, token = said["address"].split("#")
            asked = urllib.request.Request(f"{address}api/state", headers={"X-Safeguard-Token": token})
            with urllib.request.urlopen(asked, timeout=60) as reply:
                assert json.load(reply)["who"] == "ana"
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 0
        finally:
            running.kill()
