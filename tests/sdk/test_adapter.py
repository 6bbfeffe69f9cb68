"""Adapters: what goes into a file comes out of it, and what is no adapter is said to be none."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from safeguard.errors import CapabilityError
from safeguard.sdk.adapter import Adapter, Perceptron, shipped
from safeguard.sdk.fingerprint import Fingerprint
from tests.support.installed_adapters import install_adapters

BOUND = Fingerprint("SomePipeline", (("attn", 4),), (2.5,))


def adapter(**changes: Any) -> Adapter:
    tensors = {"0.weight": torch.tensor([[1.0, -1.0]]), "0.bias": torch.tensor([0.5])}
    return Adapter(**{"method": "gie", "fingerprint": BOUND, "tensors": tensors, "settings": {"constant": 1.0}, **changes})


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    adapter(report={"tokens": 3.0}).save(tmp_path / "a.safetensors")
    found = Adapter.load(tmp_path / "a.safetensors", "gie")
    assert found.to_dict() == adapter(report={"tokens": 3.0}).to_dict()
    assert torch.equal(found.tensors["0.weight"], adapter().tensors["0.weight"])
    assert found.digest == adapter(report={"tokens": 3.0}).digest


def test_the_same_adapter_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        adapter().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter().save(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()

    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError("no space left")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        adapter(settings={"constant": 2.0}).save(tmp_path / "a")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_the_folder_of_a_file_is_made(tmp_path: Path) -> None:
    adapter().save(tmp_path / "deep" / "a")
    assert Adapter.load(tmp_path / "deep" / "a", "gie").digest == adapter().digest


def test_what_is_shipped_is_found_by_method_pipeline_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Fingerprint("OtherPipeline", BOUND.sites, BOUND.norms)
    for name, made in {
        "gie-a": adapter(fingerprint=other),
        "gie-b": adapter(settings={"concept": "blood", "constant": 1.0}),
        "gie-c": adapter(settings={"concept": "weapon", "constant": 2.0}),
        "slider-a": adapter(method="slider", settings={"concept": "snow"}),
    }.items():
        made.save(tmp_path / f"{name}.safetensors")
    install_adapters(tmp_path, monkeypatch)

    def constant(**settings: str) -> float | None:
        found = shipped("gie", BOUND, **settings)
        return None if found is None else found.settings["constant"]

    assert [constant(), constant(concept="weapon"), constant(concept="snow")] == [1.0, 2.0, None]


def test_the_digest_changes_with_a_number() -> None:
    tensors = {"0.weight": torch.tensor([[1.0, -1.0]]), "0.bias": torch.tensor([0.6])}
    assert adapter(tensors=tensors).digest != adapter().digest


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"no such adapter file; make one with safeguard train gie"):
        Adapter.load(tmp_path / "none.safetensors", "gie")


@pytest.mark.parametrize("kind", ["text", "pickle", "weights", "folder"])
def test_a_file_that_is_no_adapter_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    if kind == "text":
        path.write_text("adapter")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"0.weight": [1.0]}))
    elif kind == "weights":
        save_file({"0.weight": torch.ones(1)}, path)
    else:
        path.mkdir()
    with pytest.raises(CapabilityError, match=r"a\.safetensors: this is no adapter file"):
        Adapter.load(path, "gie")


def test_it_is_not_taken_for_another_pipelines(tmp_path: Path) -> None:
    adapter().save(tmp_path / "a.safetensors")
    with pytest.raises(CapabilityError, match="does not fit this OtherPipeline: it was made for a SomePipeline"):
        Adapter.load(tmp_path / "a.safetensors", "gie").require(Fingerprint("OtherPipeline", BOUND.sites, BOUND.norms))


def test_a_perceptron_is_linear_layers_with_a_relu_between() -> None:
    tensors = {
        "0.weight": torch.tensor([[1.0, -1.0]]),
        "0.bias": torch.tensor([0.5]),
        "1.weight": torch.tensor([[2.0]]),
        "1.bias": torch.tensor([-3.0]),
    }
    found = Perceptron(tensors, 2, 1)(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    assert found.tolist() == [[0.0], [-3.0]]
