"""The commands as a person or another program uses them: exit status, JSON line, bad input, inference."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.files import ROOT
from export.tensorrt.driver import driver_status
from pipeline.cli.commands import main
from pipeline.terminal.command_line import pipeline_command
from tests.conftest import CLASSES, Chain
from tests.pipeline.artifacts.test_files import read_only


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(line for line in capsys.readouterr().err.splitlines(keepends=True) if line.startswith("error: "))


# --- what serves ---


def test_other_class_names_than_those_verified_do_not_serve(chain: Chain, tmp_path: Path) -> None:
    card = chain.root / "train" / "model.json"
    card.write_text(card.read_text().replace('"red"', '"crimson"'))
    photo = str(next(chain.images.rglob("*.png")))
    assert chain.run("infer", photo, "-o", str(tmp_path / "out.csv")) == 2


@pytest.mark.skipif(bool(driver_status()), reason="this machine has a GPU")
def test_infer_on_tensorrt_needs_a_gpu(finished_chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    photo = str(next(finished_chain.images.rglob("*.png")))
    assert finished_chain.run("infer", photo, "--backend", "tensorrt") == 2
    assert "Expected an NVIDIA GPU" in errors(capsys)


# --- bad recipes and bad data ---


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.inputsize=64"], "Did you mean 'input_size'?"),
        (["data.path=/nowhere"], "which does not exist"),
        (["verify.min_images=900"], "Expected at least 900 test images"),
        (["model.weights=/nowhere.h5"], "/nowhere.h5, which does not exist"),
    ],
)
def test_bad_recipe(
    finished_chain: Chain, overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [part for override in overrides for part in ("--set", override)]
    before = {p: p.stat().st_mtime_ns for p in finished_chain.root.rglob("*") if p.is_file()}
    assert finished_chain.run("train", "--force", *more) == 2
    message = errors(capsys)
    assert words in message
    assert "Traceback" not in message
    after = {p: p.stat().st_mtime_ns for p in finished_chain.root.rglob("*") if p.is_file()}
    assert {p for p in after if ".lock" not in p.name} == {p for p in before if ".lock" not in p.name}


def test_unknown_recipe_and_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "-c", str(ROOT / "configs" / "digit.yaml")]) == 2
    assert "digits.yaml?" in errors(capsys)
    assert main(["trian"]) == 2
    assert "Expected a verb of run, train, " in (said := errors(capsys))
    assert "Received: trian. Did you mean 'train'?" in said


def test_one_class_only(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CLASSES[1:]:
        shutil.rmtree(chain.images / name)
    assert chain.run("train") == 2
    assert "at least two classes" in errors(capsys)


def test_corrupt_images_are_named_counted_and_skipped_up_to_the_limit(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(11):
        (chain.images / "red" / f"bad{index}.png").write_bytes(b"\x89PNG broken" + bytes([index]))
    whole = sorted((chain.images / "red").glob("0*.png"))[0].read_bytes()
    (chain.images / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
    untrained = "--set", "train.fine_tune.epochs=0", "--set"
    assert chain.run("train", *untrained, "data.max_bad_images=0") == 2
    message = errors(capsys)
    assert "Expected at most 0 unreadable images (data.max_bad_images). Received: 12 of 396:" in message
    assert chain.run("train", *untrained, "data.max_bad_images=20") == 0
    manifest = json.loads((chain.root / "train" / "manifest.json").read_text())
    left_out = {image["name"] for image in manifest["result"]["unreadable_images"]}
    assert left_out == {"red/cut.png", *(f"red/bad{index}.png" for index in range(11))}
    assert sum(image["sha256"] is not None for image in manifest["result"]["unreadable_images"]) == 1
    assert chain.run("train", *untrained, "data.max_bad_images=20", "--explain") == 0
    assert "up to date" in capsys.readouterr().out


def test_a_finished_h5_classifies_one_image(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    saved = chain.artifacts.parent / "resnet50.h5"
    keras.saving.load_model(chain.root / "train" / "model.keras").save(saved)
    overrides = ["--set", f"model.path={saved}", "--set", "name=colleague"]
    assert chain.run("train", *overrides, "--set", "model.preprocessing=auto") == 2
    assert "model.preprocessing: expected caffe" in errors(capsys)
    capsys.readouterr()
    assert chain.run("run", *overrides) == 0
    said = capsys.readouterr().err
    assert "384 images: " in said
    assert (
        said.count("not used, because the model is finished (model.path) and nothing is trained: model.backbone") == 1
    )
    parity = json.loads((chain.artifacts / "colleague" / "verify" / "parity.json").read_text())
    assert parity["verdict"] == "pass"
    assert parity["hops"][0]["accuracy_reference"] > 0.8
    photo = sorted((chain.images / "red").iterdir())[0]
    assert chain.run("infer", *overrides, str(photo), "-o", str(saved.with_suffix(".csv"))) == 0
    (row,) = read_rows(saved.with_suffix(".csv"))
    assert (row["path"], row["class"]) == (str(photo), "red")
    assert f"{photo}: red (" in capsys.readouterr().err


def test_an_altered_engine_is_left_to_the_gpu_machine_to_refuse(chain: Chain) -> None:
    plan = chain.root / "build" / "rtx" / "fp32.plan"
    if not plan.exists():
        pytest.skip("TensorRT-RTX has no wheel for this platform, so there is no engine")
    from export.errors import ProjectError
    from export.tensorrt.compatibility import check_engine
    from export.tensorrt.library import find_tensorrt

    trt = find_tensorrt("rtx")
    assert trt is not None
    check_engine(plan, trt)
    plan.write_bytes(plan.read_bytes() + b"x")
    with pytest.raises(ProjectError, match=r"sha256|bytes"):
        check_engine(plan, trt)
    assert chain.run("build") == 0, "the build stage sees it and builds again"
    check_engine(plan, trt)


# --- another machine ---


def test_bundle_to_another_machine(chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "tiny.tar"
    capsys.readouterr()
    assert chain.run("bundle", "-o", str(archive)) == 0
    assert "for TensorRT 10 and later; for 8.6 add --set quantize.tensorrt8=true to" in capsys.readouterr().err
    there = tmp_path / "there"
    assert main(["unpack", str(archive), "--artifacts", str(there)]) == 0
    shutil.rmtree(chain.images)  # the data stays behind
    moved = Chain(chain.recipe, chain.images, there)
    capsys.readouterr()
    assert moved.run("run", "--json") == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {stage["status"] for stage in last["stages"].values()} == {"up to date"}
    assert main(["unpack", str(archive), "--artifacts", str(there)]) == 2, "it is there already"
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(bytes(damaged))
    assert main(["unpack", str(archive), "--artifacts", str(there), "--force"]) == 2
    assert moved.run("run") == 0, "the former artifacts are whole"


# --- interrupts, kills, two at once ---


# Python itself ends by the signal, which a shell shows as 130 too, where Ctrl-C met code that a library was importing.
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, (130, -2)), (signal.SIGKILL, (-9,))])
def test_a_stopped_stage_keeps_its_former_result(chain: Chain, number: signal.Signals, status: tuple[int, ...]) -> None:
    before = (chain.root / "train" / "manifest.json").read_bytes()
    process = command(*chain.arguments("train", "--force", "--set", "train.fine_tune.epochs=500"))
    assert any("fine_tune epoch 1/500" in line for line in process.stderr), "the stage did not start"
    assert list(chain.root.glob(".train.tmp-*"))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in status, stderr
    assert "Traceback" not in stderr
    assert (chain.root / "train" / "manifest.json").read_bytes() == before
    assert chain.run("train") == 0, "the lock is free"
    assert not list(chain.root.glob(".train.tmp-*"))


def test_two_runs_at_once(chain: Chain) -> None:
    arguments = chain.arguments("quantize", "--force", "--json")
    processes = [command(*arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for stdout, _ in outputs:
        assert json.loads(stdout.strip().splitlines()[-1])["status"] == "done"
    assert chain.run("verify") == 0


def test_standard_output_is_for_results_alone(chain: Chain) -> None:
    process = command(*chain.arguments("export", "--force", "--json"))
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert len(stdout.strip().splitlines()) == 1
    result = json.loads(stdout)
    assert (result["command"], result["exit"]) == ("export", 0)
    assert "oneDNN" not in stderr


def test_a_full_disk_is_said_and_leaves_nothing(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in (chain.root / "verify").iterdir()}

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pipeline.verification.verify.make_reference", no_space)
    assert chain.run("verify", "--force") == 2
    assert {p: p.read_bytes() for p in (chain.root / "verify").iterdir()} == before
    assert not list(chain.root.glob(".*.tmp-*"))


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    for stage in ("train", "export", "quantize", "build", "verify", "benchmark", "infer", "report"):
        assert stage in out
    result = json.loads(out.strip().splitlines()[-1])
    assert result["packages"]["keras"]["state"] == "ok"


# --- names that are no text ---


def test_a_path_that_is_no_text_is_no_traceback(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / os.fsdecode(b"photos\xff")
    try:
        photos.mkdir()
    except OSError:
        pytest.skip("this file system takes text only")
    source = next((finished_chain.images / "red").iterdir())
    shutil.copy(source, photos / os.fsdecode(b"\xff.png"))
    (photos / os.fsdecode(b"\xfe.png")).write_bytes(b"broken")
    out = tmp_path / os.fsdecode(b"out\xff.csv")
    assert finished_chain.run("infer", str(photos), "-o", str(out), "--json") == 3
    rows = read_rows(out)
    assert [row["path"].rpartition("photos")[2] for row in rows] == [
        os.fsdecode(b"\xff/\xfe.png"),
        os.fsdecode(b"\xff/\xff.png"),
    ]
    captured = capsys.readouterr()
    line = captured.out.strip().splitlines()[-1]
    line.encode()
    assert json.loads(line)["output"] == str(out)
    assert "Traceback" not in captured.err
    assert finished_chain.run("infer", str(tmp_path / os.fsdecode(b"\xff.png")), "--json") == 2
    line = capsys.readouterr().out.strip()
    assert os.fsdecode(b"\xff.png, which does not exist") in json.loads(line)["error"]


def test_the_json_line_is_json_whatever_standard_output_takes(tmp_path: Path) -> None:
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipeline",
            "inspect",
            str(tmp_path / os.fsdecode("ä😀".encode() + b"\xff.h5")),
            "--json",
        ],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert os.fsdecode("ä😀".encode() + b"\xff.h5") in json.loads(process.stdout)["error"]


# --- what is left is said, and only that ---


def test_a_stage_that_finds_the_disk_full_says_what_stays(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pipeline.verification.verify.make_reference", no_space)
    assert chain.run("verify", "--force") == 2
    said = errors(capsys)
    assert f"Expected space to write {chain.root / 'verify'}. Received: No space left on device (" in said
    assert said.endswith(" Finished stages stay; verify keeps its previous result.\n")
    shutil.rmtree(chain.root / "verify")
    assert chain.run("verify") == 2
    assert errors(capsys).endswith(" Finished stages stay; verify has no result yet.\n")
    assert not (chain.root / "verify").exists()


@pytest.mark.parametrize(
    "arguments", [["bundle"], ["report"], ["verify"], ["export"], ["infer"], ["run", "--set", "data.path=/nope"]]
)
def test_a_command_that_writes_nothing_leaves_no_folder(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    verb, *more = arguments
    nowhere = tmp_path / "no" / "such"
    assert main([verb, "-c", str(finished_chain.recipe), "--artifacts", str(nowhere), *more]) == 2
    assert list(tmp_path.iterdir()) == []
    assert "error: " in capsys.readouterr().err


def test_run_in_a_folder_that_cannot_be_written_uses_what_is_up_to_date(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_only(monkeypatch, chain.root)
    before = sorted(p.name for p in chain.root.iterdir())
    assert chain.run("run") == 0
    said = capsys.readouterr().err
    assert "cannot be written (Read-only file system): what is up to date there is used\n" in said
    assert "train     up to date" in said
    assert chain.run("export", "--force") == 2
    assert f"Received: {chain.root}: Read-only file system. Name another with --artifacts." in errors(capsys)
    assert sorted(p.name for p in chain.root.iterdir()) == before


def test_a_missing_sidecar_is_answered_with_the_command_for_this_recipe(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = chain.root / "build" / "tensorrt" / "fp16.plan"  # as from another machine, so that it is kept
    for content, said in ((None, "Expected the sidecar"), ("{}", "Received: an object without the key 'schema'.")):
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_bytes(b"plan")
        if content is not None:
            plan.with_suffix(".json").write_text(content)
        capsys.readouterr()
        assert chain.run("build", "--force", "--set", "build.precisions=[fp32]") == 0
        warned = capsys.readouterr().err
        assert "left out an engine" in warned
        assert said in warned
        options = ("--set", "build.precisions=[fp32]", "--artifacts", str(chain.artifacts))
        command = pipeline_command("build", "-c", chain.recipe, "--force", *options)
        assert f"rebuild it: {command}." in warned


def test_a_damaged_manifest_promises_nothing_that_the_verb_does_not_do(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (chain.root / "train" / "manifest.json").write_text("{")
    photo = str(next((chain.images / "red").iterdir()))
    assert chain.run("infer", photo, "-o", str(tmp_path / "x.csv")) == 0
    said = capsys.readouterr().err
    assert "the result beside it does not count; `run` makes it again." in said
    assert "runs again" not in said


def test_a_machine_that_only_serves_needs_no_keras_model_and_is_told(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(next((chain.images / "red").iterdir()))
    (chain.root / "train" / "model.keras").unlink()
    assert chain.run("infer", photo, "-o", str(tmp_path / "x.csv")) == 0
    said = "train/model.keras is not here; export/model.onnx classifies, which was compared with it when verified"
    assert f"{said}\n" in capsys.readouterr().err
    (chain.root / "train" / "model.keras").write_bytes(b"other")
    assert chain.run("infer", photo, "-o", str(tmp_path / "x.csv")) == 2
    assert "train/model.keras was altered since it was verified" in capsys.readouterr().err


def test_an_interrupt_of_what_is_no_stage_promises_nothing(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    assert chain.run("bundle", "-o", str(tmp_path / "x.tar")) == 130
    assert errors(capsys) == "error: Interrupted.\n"
    assert [p for p in tmp_path.iterdir() if "x.tar" in p.name] == []
