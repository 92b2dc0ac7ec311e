"""The folder: whole or not there, every file recorded, nobody else's replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.errors import ProjectError
from export.files import ROOT
from export.records import read_record
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.paths import PARITY
from pipeline.cli import triton
from pipeline.models.model_card import ModelCard
from pipeline.triton import repository as module
from pipeline.triton.repository import Repository, refuse_changed
from pipeline.workflow.context import Context
from tests.fakes.triton import load, read_config
from tests.made_records import make_hop, write_verdict
from tests.pipeline.inference.deployments import CARD
from tests.pipeline.triton.recipes import (
    ENGINE_CARD,
    FP32,
    make_context,
    make_recipe,
    write_card,
    write_engine,
    write_onnx,
    write_repository,
)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def record(folder: Path) -> Repository:
    return read_record(Repository, folder / "repository.json", remedy="")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return make_recipe(tmp_path)


@pytest.fixture
def out(context: Context, tmp_path: Path) -> Path:
    assert write_repository(context, tmp_path / "out") == 0
    return tmp_path / "out"


def test_every_file_is_recorded_with_what_vouches_for_it(context: Context, out: Path) -> None:
    found = record(out)
    assert {name: one.sha256 for name, one in found.files.items()} == {
        name: sha256_file(out / name) for name in content(out) if name != "repository.json"
    }
    assert (found.recipe, found.model, found.backend, found.precision, found.verdict) == (
        *("tiny", FP32, "onnxruntime", "fp32", "pass"),
    )
    assert found.parity_sha256 == sha256_file(context.root / PARITY)
    assert found.files["tiny/1/model.onnx"].sha256 == sha256_file(context.root / FP32)
    assert (found.tensorrt, found.compute_capability) == (None, None)
    assert {"pillow", "simplejpeg", "numpy"} <= found.versions.keys()
    assert found.thresholds == context.recipe.verify.thresholds.fp32


def test_no_folder_is_empty_so_that_copies_keep_each(out: Path) -> None:
    assert [folder for folder in out.rglob("*") if folder.is_dir() and not any(folder.iterdir())] == []
    assert (out / "tiny_files" / "1").is_dir()


def test_what_decodes_is_this_projects_to_the_byte(out: Path) -> None:
    code = out / "tiny_decode" / "1" / "decoding"
    names = set(content(code))
    assert {"pipeline/data/decode.py", "pipeline/data/jpeg.py", "pipeline/data/resize.py", "export/errors.py"} <= names
    assert content(code) == {name: (ROOT / name).read_bytes() for name in names}


def test_labels_are_the_classes_in_their_order(out: Path) -> None:
    for model in ("tiny", "tiny_files"):
        assert (out / model / "labels.txt").read_text().splitlines() == list(CARD.classes)


def test_the_readme_says_what_answers_and_how_to_start(out: Path) -> None:
    text = (out / "README.md").read_text()
    for words in (
        f"`{FP32}` (onnxruntime, FP32) classifies. It passed verification on\n100 test images;",
        "| `tiny_files` | `files`: BYTES (N, 1), image files | `logits`: FP32 (N, 4), `probabilities`: FP32 (N, 4) |",
        "N is at most 32.",
        "tritonserver --model-repository=",
    ):
        assert words in text
    assert "TensorRT" not in text


def with_classes(classes: tuple[str, ...]) -> ModelCard:
    return ModelCard(classes, CARD.preprocessing, CARD.decode, "softmax")


def make_named(tmp_path: Path, classes: tuple[str, ...]) -> Context:
    context, card = make_context(tmp_path), with_classes(classes)
    write_card(context, card)
    write_onnx(context, "fp32", card)
    write_verdict(context.root, make_hop(FP32))
    return context


def test_names_of_classes_in_any_script_are_labels(tmp_path: Path) -> None:
    classes = ("überraschung", 'a "quoted"\u2028one', "猫: cat", " spaced ")
    assert write_repository(make_named(tmp_path, classes), tmp_path / "out") == 0
    assert (tmp_path / "out" / "tiny" / "labels.txt").read_text(encoding="utf-8").split("\n") == [*classes, ""]


@pytest.mark.parametrize("odd", ["two\nlines", "end\r", "nul\0"])
def test_a_class_that_is_no_line_is_refused(tmp_path: Path, odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_repository(make_named(tmp_path, ("a", odd, "c", "d")), tmp_path / "out") == 2
    assert "Expected names of classes without line ends and other control characters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "client.py", "Repository.JSON"])
def test_a_recipe_named_like_a_file_of_the_folder_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_repository(make_recipe(tmp_path, name), tmp_path / "out") == 2
    assert f"Expected a recipe whose name is no file of a repository. Received: {name}." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.onnx", "1", "x_files", "x_decode"])
def test_an_odd_name_of_a_recipe_is_a_name_of_models(tmp_path: Path, name: str) -> None:
    assert write_repository(make_recipe(tmp_path, name), tmp_path / "out") == 0
    for model in (name, f"{name}_decode", f"{name}_files"):
        read_config(tmp_path / "out", model)
    load(tmp_path / "out", f"{name}_files")


# --- put in place ---


def test_a_repository_that_nobody_changed_is_replaced(context: Context, out: Path) -> None:
    (out / "tiny_decode" / "1" / "__pycache__").mkdir()
    (out / "tiny_decode" / "1" / "__pycache__" / "model.cpython-310.pyc").write_bytes(b"of a server")
    assert write_repository(context, out, "--instances", "3") == 0
    assert read_config(out, "tiny").instance_group[0].count == 3
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "tiny/config.pbtxt": lambda out: (out / "tiny" / "config.pbtxt").write_text("name: 'tuned'"),
    "other/1/model.onnx": lambda out: shutil.copytree(out / "tiny", out / "other"),
    "client.py": lambda out: (out / "client.py").unlink(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_repository_that_somebody_changed_is_left_alone(
    context: Context, out: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    CHANGES[name](out)
    before = content(out)
    assert write_repository(context, out) == 2
    said = capsys.readouterr().err
    assert "Expected a repository as it was written, to replace it." in said
    assert name in said
    assert content(out) == before


def test_a_folder_that_is_no_repository_is_left_alone(context: Context, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"dear")
    assert write_repository(context, tmp_path / "mine") == 2
    assert content(tmp_path / "mine") == {"photo.jpg": b"dear"}
    (tmp_path / "mine" / "repository.json").write_text("{}")
    with pytest.raises(ProjectError, match=r"record of a repository of schema 1 .* Move it away"):
        refuse_changed(tmp_path / "mine")


def test_a_link_stays_and_what_it_leads_to_is_written(context: Context, out: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    for target in (out, tmp_path / "new"):
        link.symlink_to(target)
        assert write_repository(context, link, "--instances", "3") == 0
        assert link.is_symlink()
        assert read_config(target, "tiny").instance_group[0].count == 3
        link.unlink()


def test_an_empty_folder_is_filled_and_a_file_is_not(context: Context, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_repository(context, tmp_path / "empty") == 0
    (tmp_path / "file").write_bytes(b"")
    assert write_repository(context, tmp_path / "file") == 2


def test_what_fails_midway_leaves_the_former_repository(
    context: Context, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(out)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(module, "readme", full)
    assert write_repository(context, out, "--instances", "3") == 2
    assert content(out) == before
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_is_altered_meanwhile_does_not_go_out(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = triton.find_batching

    def alter(*args: object) -> object:
        (context.root / FP32).write_bytes(b"other")
        return find(*args)

    monkeypatch.setattr(triton, "find_batching", alter)
    assert write_repository(context, tmp_path / "out") == 2
    assert "as it was verified. Received: another file, altered meanwhile" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the command ---


def test_the_json_line_says_what_was_written(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_repository(context, tmp_path / "out", "--json", "-q") == 0
    line = json.loads(capsys.readouterr().out)
    assert line.pop("files") == len(record(tmp_path / "out").files)
    assert line == {
        "command": "triton-repo",
        "status": "done",
        "recipe": "tiny",
        "output": str(tmp_path / "out"),
        "model": FP32,
        "backend": "onnxruntime",
        "precision": "fp32",
        "verdict": "pass",
        "max_batch_size": 32,
        "preferred_batch_size": 8,
        "max_queue_delay_microseconds": 500,
        "tensorrt": None,
        "exit": 0,
    }


@pytest.mark.parametrize("option", ["--instances", "--decoders"])
@pytest.mark.parametrize("number", ["0", "65"])
def test_a_number_out_of_range_is_refused(
    context: Context, tmp_path: Path, option: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_repository(context, tmp_path / "out", option, number) == 2
    assert f"Expected a number from 1 to 64 after {option}. Received: {number}." in capsys.readouterr().err


def test_nothing_unverified_is_allowed(context: Context, tmp_path: Path) -> None:
    write_verdict(context.root, make_hop(FP32, "inconclusive"))
    assert write_repository(context, tmp_path / "out") == 2
    assert write_repository(context, tmp_path / "out", "--allow-unverified") == 2  # there is no such option
    assert not (tmp_path / "out").exists()


DOUBTS: dict[str, tuple[Callable[[Context], object], str]] = {
    "failed": (lambda context: write_verdict(context.root, make_hop(FP32, "fail")), f"{FP32}: fail"),
    "inconclusive": (
        lambda context: write_verdict(context.root, make_hop(FP32, "inconclusive")),
        f"{FP32}: inconclusive",
    ),
    "altered": (
        lambda context: (context.root / FP32).write_bytes(b"other"),
        f"{FP32} was altered since it was verified",
    ),
    "never verified": (lambda context: (context.root / PARITY).unlink(), "there is no verdict"),
    "an edited verdict": (
        lambda context: (context.root / PARITY).write_text((context.root / PARITY).read_text() + " "),
        f"{PARITY} was altered since the verify stage wrote it",
    ),
    "no manifest": (
        lambda context: (context.root / PARITY).with_name("manifest.json").unlink(),
        f"no manifest of the verify stage vouches for {PARITY}",
    ),
    "another card": (
        lambda context: write_card(context, with_classes(("a", "b", "c", "d"))),
        "train/model.json was altered since it was verified",
    ),
    "other thresholds": (
        lambda context: context.recipe_path.write_text(
            context.recipe_path.read_text() + "verify: {thresholds: {fp32: {top1_agreement: 0.5}}}"
        ),
        "the verdict was given by other thresholds than the recipe's verify.thresholds",
    ),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_what_verify_did_not_pass_as_it_is_now_does_not_go_out(
    context: Context, tmp_path: Path, doubt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, why = DOUBTS[doubt]
    change(context)
    assert write_repository(context, tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"Expected a file that passed verification, for a server that others rely on. Received: {why}" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["top1_agreement=0.5", "relative_error=1.0"])
def test_thresholds_of_the_command_line_pass_nothing(
    context: Context, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_repository(context, tmp_path / "out", "--set", f"verify.thresholds.fp32.{key}") == 2
    assert "the verdict was given by other thresholds" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_an_engine_goes_out_within_its_profile_and_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_context(tmp_path)
    write_card(context, ENGINE_CARD)
    name = write_engine(context, tensorrt_version="8.6.1", sizes=(1, 3, 6))
    write_verdict(context.root, make_hop(name))
    assert write_repository(context, tmp_path / "out") == 0
    config = read_config(tmp_path / "out", "tiny")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 6)
    assert list(config.dynamic_batching.preferred_batch_size) == [3]
    assert [sample.batch_size for sample in config.model_warmup] == [1, 3]
    for model in ("tiny_decode", "tiny_files"):
        assert read_config(tmp_path / "out", model).max_batch_size == 6
    assert (tmp_path / "out" / "tiny" / "1" / "model.plan").read_bytes() == b"plan"
    found = record(tmp_path / "out")
    assert (found.tensorrt, found.compute_capability) == ("8.6.1", "8.9")
    needs = "An engine runs on the TensorRT that built it: take a Triton release with TensorRT 8.6.1."
    assert needs in (tmp_path / "out" / "README.md").read_text()
    said = capsys.readouterr().err
    assert needs in said
    assert "It needs a GPU: compute capability 8.9." in said


def test_an_engine_for_later_versions_needs_an_option(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_card(context, ENGINE_CARD)
    name = write_engine(context, options={"version_compatible": True})
    write_verdict(context.root, make_hop(name))
    assert write_repository(context, tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "--backend-config=tensorrt,version-compatible=true" in text
