from __future__ import annotations

import dataclasses
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import manifest
from pipeline.artifacts.manifest import (
    MANIFEST,
    Key,
    environment_changes,
    matches_manifest,
    read_manifest,
    tool_versions,
    version_changes,
    why_stale,
    without_defaults,
    write_manifest,
)
from pipeline.artifacts.paths import Artifacts

KEY = Key(
    inputs={"export/model.onnx": "a" * 64, "data/test": "b" * 64},
    config={"verify": {"thresholds": {"sqnr_db": 20.0}, "max_images": 9}, "data.resize": "crop"},
    code="c" * 64,
    environment={"gpu": None, "tensorrt": "rtx 1.1"},
)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(b"one")
    (tmp_path / "sub" / "b.bin").write_bytes(b"two")
    write_manifest(tmp_path, stage="verify", recipe="toy", key=KEY, seconds=1.23456, result={"verdict": "pass"})
    return tmp_path


def stale(folder: Path, **changed: object) -> list[str]:
    return why_stale(folder, read_manifest(folder), dataclasses.replace(KEY, **changed))


def test_it_records_everything(done: Path) -> None:
    tree = json.loads((done / MANIFEST).read_text())
    assert tree["inputs"] == KEY.inputs
    assert tree["config"] == KEY.config
    assert tree["code"] == KEY.code
    assert tree["seconds"] == 1.235
    assert tree["result"] == {"verdict": "pass"}
    assert tree["versions"]["numpy"] == np.__version__
    assert set(tree["outputs"]) == {"a.bin", "sub/b.bin"}
    assert tree["outputs"]["a.bin"]["bytes"] == 3
    assert read_manifest(done).stage == "verify"
    written = datetime.fromisoformat(tree["finished"])
    assert abs(datetime.now(UTC) - written) < timedelta(hours=1)


def test_a_record_of_an_earlier_version_says_no_date(done: Path) -> None:
    tree = json.loads((done / MANIFEST).read_text())
    del tree["finished"]
    (done / MANIFEST).write_text(json.dumps(tree))
    assert read_manifest(done).finished == ""


def test_up_to_date(done: Path) -> None:
    assert stale(done) == []


def test_a_file_is_as_recorded_by_its_bytes(done: Path) -> None:
    assert matches_manifest(Artifacts(done.parent), f"{done.name}/a.bin")
    (done / "a.bin").write_bytes(b"two")
    assert not matches_manifest(Artifacts(done.parent), f"{done.name}/a.bin")
    (done / "c.bin").write_bytes(b"new")
    assert not matches_manifest(Artifacts(done.parent), f"{done.name}/c.bin")
    (done / "a.bin").write_bytes(b"one")
    (done / MANIFEST).unlink()
    assert not matches_manifest(Artifacts(done.parent), f"{done.name}/a.bin")


@dataclasses.dataclass
class Result:
    built: dict[str, int]
    images: int
    why: str = "usual"
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    left: int | None = None


def test_what_says_as_much_as_its_default_is_not_recorded() -> None:
    assert without_defaults(Result({}, 0)) == {"built": {}, "images": 0}
    other = {"built": {}, "images": 0, "why": "", "skipped": {"a": "b"}, "left": 0}
    assert without_defaults(Result({}, 0, "", {"a": "b"}, 0)) == other


def test_it_has_not_run(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert why_stale(tmp_path, None, KEY) == ["it has not run"]


@pytest.mark.parametrize(
    ("inputs", "reasons"),
    [
        ({"export/model.onnx": "d" * 64}, ["input export/model.onnx: aaaaaaaaaaaa -> dddddddddddd"]),
        ({"build/x.plan": "e" * 64}, ["input build/x.plan: is new (eeeeeeeeeeee)"]),
        ({"data/test": None}, ["input data/test: is gone"]),
    ],
)
def test_a_changed_input(done: Path, inputs: dict, reasons: list[str]) -> None:
    merged = {name: digest for name, digest in (KEY.inputs | inputs).items() if digest}
    assert stale(done, inputs=merged) == reasons


def test_a_changed_recipe_names_the_key(done: Path) -> None:
    config = {"verify": {"thresholds": {"sqnr_db": 25.0}, "max_images": 9}, "data.resize": "stretch"}
    assert stale(done, config=config) == [
        "recipe data.resize: crop -> stretch",
        "recipe verify.thresholds.sqnr_db: 20.0 -> 25.0",
    ]


def test_values_that_json_reads_back_as_another_type_are_no_change(tmp_path: Path) -> None:
    key = Key({}, {"a": [1, 2], "b": None, "c": 1e-05, "d": 2.0, "e": "ä", "f": {}, "g": True}, "c")
    write_manifest(tmp_path, stage="s", recipe="r", key=key, seconds=0, result={})
    assert why_stale(tmp_path, read_manifest(tmp_path), key) == []


def test_changed_code(done: Path) -> None:
    assert stale(done, code="d" * 64) == ["the stage's code changed"]


def test_a_missing_output(done: Path) -> None:
    (done / "sub" / "b.bin").unlink()
    assert stale(done) == ["output sub/b.bin is missing"]


@pytest.mark.parametrize("data", [b"tw", b"two+", b"twO", b""])
def test_an_altered_output(done: Path, data: bytes) -> None:
    (done / "sub" / "b.bin").write_bytes(data)
    os.utime(done / "sub" / "b.bin", ns=(7, 7))
    assert stale(done) == ["output sub/b.bin was altered"]


def test_a_touched_output_is_no_reason(done: Path) -> None:
    os.utime(done / "a.bin", ns=(10**18, 10**18))
    assert stale(done) == []


def test_every_reason_is_listed(done: Path) -> None:
    (done / "a.bin").unlink()
    reasons = stale(done, inputs={}, config={}, code="d", environment={"gpu": "X", "tensorrt": "rtx 1.1"})
    for part in ("input data/test", "recipe data.resize", "code changed", "this machine's gpu", "output a.bin"):
        assert any(part in reason for reason in reasons), part


@pytest.mark.parametrize(
    ("recorded", "here", "changes"),
    [
        ({"gpu": None}, {"gpu": None}, 0),
        ({"gpu": "A"}, {"gpu": "A"}, 0),
        ({"gpu": None}, {"gpu": "A"}, 1),  # now there is a GPU: more can be done
        ({"gpu": "A"}, {"gpu": "B"}, 1),
        ({"gpu": "A"}, {"gpu": None}, 0),  # made with more than there is here
        ({"gpu": "A", "cpu": "x"}, {"gpu": None, "cpu": "y"}, 0),
        ({"gpu": None, "cpu": "x"}, {"gpu": None, "cpu": "y"}, 1),
        ({"tensorrt": "rtx 1"}, {"tensorrt": None}, 0),
        ({"tensorrt": None}, {"tensorrt": "rtx 1"}, 1),
        ({"gpu": "A", "tensorrt": "tensorrt 10"}, {"gpu": None, "tensorrt": "rtx 1"}, 0),
        ({"gpu": None, "tensorrt": "rtx 1"}, {"gpu": "A", "tensorrt": "tensorrt 10"}, 2),
        ({}, {"gpu": None, "tensorrt": None}, 2),  # from before it was recorded
        ({}, {}, 0),
        ({"gpu": "A"}, {"gpu": "A", "onnxruntime": "installed"}, 1),  # a library came, or a permission
        ({"gpu": "A", "onnxruntime": "installed"}, {"gpu": "A"}, 0),
        ({"gpu": "A", "onnxruntime": "installed"}, {"gpu": "B"}, 1),
        ({"gpu": "A", "rtx": "1.3"}, {"gpu": "A", "rtx": "1.4"}, 1),
    ],
)
def test_environment(recorded: dict, here: dict, changes: int) -> None:
    found = environment_changes(recorded, here)
    assert len(found) == changes
    assert all(text.startswith("this machine's ") for text in found)


def test_a_result_made_with_a_gpu_is_kept_without_one_but_not_if_its_input_changed(tmp_path: Path) -> None:
    with_gpu = dataclasses.replace(KEY, environment={"gpu": "A", "tensorrt": "rtx 1.1"})
    write_manifest(tmp_path, stage="s", recipe="r", key=with_gpu, seconds=0, result={})
    assert stale(tmp_path) == []
    assert stale(tmp_path, code="x") == ["the stage's code changed"]


def test_other_versions_are_reported_and_no_reason(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tool_versions()
    assert version_changes(read_manifest(done)) == []
    other = {**here, "numpy": "1.0", "tf2onnx": "9.9"}
    other.pop("keras", None)  # not installed here: nothing to compare
    other["tensorrt"] = "99"  # installed here only
    monkeypatch.setattr(manifest, "tool_versions", lambda: other)
    changes = version_changes(read_manifest(done))
    assert f"numpy {here['numpy']} -> 1.0" in changes
    assert f"tf2onnx {here['tf2onnx']} -> 9.9" in changes
    assert len(changes) == 2
    assert stale(done) == []


def test_versions_are_read_without_importing_the_tools() -> None:
    versions = tool_versions()
    assert {"python", "numpy", "keras", "onnx"} <= set(versions)
    assert versions["numpy"] == np.__version__


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"5", b'{"schema": 1}', b'{"schema": 2}', b'{"schema": 1, "more": 1}'],
)
def test_a_damaged_manifest_means_rerun(done: Path, damage: bytes) -> None:
    (done / MANIFEST).write_bytes(damage)
    assert read_manifest(done) is None
    assert stale(done) == ["it has not run"]


@pytest.mark.parametrize(
    "change", [{"outputs": None}, {"inputs": []}, {"outputs": {"a.bin": {}}}, {"outputs": {"a": 5}}, {"config": 5}]
)
def test_a_manifest_with_fields_of_other_types_means_rerun(done: Path, change: dict) -> None:
    tree = json.loads((done / MANIFEST).read_text())
    (done / MANIFEST).write_text(json.dumps(tree | change))
    assert stale(done)


def test_a_manifest_of_a_later_schema_means_rerun(done: Path) -> None:
    tree = json.loads((done / MANIFEST).read_text())
    (done / MANIFEST).write_text(json.dumps(tree | {"schema": manifest.SCHEMA + 1}))
    assert read_manifest(done) is None
