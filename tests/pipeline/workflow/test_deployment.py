"""Which file of a finished recipe answers in other processes, and with what."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest

from export.errors import ProjectError
from pipeline.artifacts.files import sha256_file, sha256_json
from pipeline.workflow.deployment import read_deployment
from tests.conftest import Chain


def test_a_finished_recipe_answers_from_another_folder(
    finished_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_chain.artifacts.parent)
    deployment = read_deployment("tiny.yaml", artifacts="artifacts", top_k=4, batch_size=1000)
    monkeypatch.chdir(tmp_path)
    assert deployment.name == "tiny"
    assert deployment.choice.path == finished_chain.root / "export/model.onnx"
    assert deployment.digest == sha256_json([sha256_file(deployment.choice.path)])
    assert (deployment.settings.top_k, deployment.settings.batch_size) == (4, 256)
    photos = sorted(finished_chain.images.glob("*/000.png"))
    with pickle.loads(pickle.dumps(deployment)).open() as classifier:
        rows = classifier.files(photos)
    assert [row.classes[0] for row in rows] == [path.parent.name for path in photos]
    assert [len(row.classes) for row in rows] == [4] * 4


def test_what_the_recipe_says_is_the_default(finished_chain: Chain) -> None:
    set_so = ("infer.batch_size=7", "infer.top_k=2", "infer.max_file_mib=3", "infer.decode_threads=5")
    deployment = read_deployment(finished_chain.recipe, artifacts=finished_chain.artifacts, overrides=set_so)
    settings = deployment.settings
    assert (settings.batch_size, settings.top_k, settings.largest_file, settings.decode_threads) == (7, 2, 3 << 20, 5)


def test_what_did_not_pass_is_not_deployed(chain: Chain) -> None:
    for name in ("export/model.onnx", "quantize/model.fp16.onnx", "quantize/model.int8.onnx"):
        path = chain.root / name
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ProjectError, match=r"Expected a model that passed verification.*was altered since"):
        read_deployment(chain.recipe, artifacts=chain.artifacts)


def test_a_recipe_that_is_not_there_is_named(finished_chain: Chain) -> None:
    with pytest.raises(ProjectError, match="nowhere"):
        read_deployment("nowhere", artifacts=finished_chain.artifacts)


def test_a_changed_recipe_is_warned_of(
    finished_chain: Chain, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    read_deployment(finished_chain.recipe, artifacts=finished_chain.artifacts, overrides=("train.seed=99",))
    assert "the recipe has changed since: train.seed" in caplog.text
