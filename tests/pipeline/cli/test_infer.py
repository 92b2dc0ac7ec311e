"""``infer`` on named images, as a person uses it: what it says, what it writes, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from export.files import ROOT
from export.tensorrt.driver import driver_status
from pipeline.data.decode import DecodeSpec
from pipeline.inference import infer
from pipeline.inference.output.run import RunFolder
from pipeline.inference.progress import Progress
from tests.conftest import CLASSES, Chain
from tests.fakes.odd_files import make_odd_files


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(line for line in capsys.readouterr().err.splitlines(keepends=True) if line.startswith("error: "))


@pytest.fixture
def photo(finished_chain: Chain) -> str:
    return str(next(finished_chain.images.rglob("*.png")))


# --- other people's files ---


def test_infer_a_folder_with_bad_images(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, name in enumerate(CLASSES):
        shutil.copy(sorted((finished_chain.images / name).iterdir())[0], photos / f"{index}-{name}.png")
    whole = (photos / "0-blue.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not an image")
    (photos / "notes.txt").write_text("no image suffix, so not asked for")
    out = tmp_path / "out.csv"
    assert finished_chain.run("infer", str(photos), "-o", str(out), "--json", "--batch-size", "2") == 3
    rows = {Path(row["path"]).name: row for row in read_rows(out)}
    assert set(rows) == {"0-blue.png", "1-green.png", "2-red.png", "3-yellow.png", "cut.png", "empty.jpg", "text.jpg"}
    assert [rows[f"{i}-{name}.png"]["class"] for i, name in enumerate(CLASSES)] == list(CLASSES)
    for name in ("cut.png", "empty.jpg", "text.jpg"):
        assert rows[name]["status"] == ("damaged" if name == "cut.png" else "not_an_image")
        assert rows[name]["error"]
        assert not rows[name]["class"]
    captured = capsys.readouterr()
    said, summary = captured.err, json.loads(captured.out.strip().splitlines()[-1])
    assert (summary["images"], summary["failed"], summary["exit"]) == (7, 3, 3)
    assert said.count("error: ") == 3
    for name in ("cut.png", "empty.jpg", "text.jpg"):
        assert f"error: {photos / name}: {rows[name]['error']} ({rows[name]['status']})\n" in said
    assert f"{out}: 7 images, 3 of them failed (1 damaged, 2 not_an_image), classified by export/model.onnx " in said
    assert "(onnxruntime, verdict: pass)\n" in said
    assert summary["statuses"] == {"ok": 4, "damaged": 1, "not_an_image": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out.csv"}


def test_infer_says_ten_reasons_of_many_and_no_model_where_none_answered(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(14):
        (tmp_path / "photos" / f"{number:02}.jpg").write_text("not an image")
    out = tmp_path / "out.csv"
    assert finished_chain.run("infer", str(tmp_path / "photos"), "-o", str(out)) == 3
    said = capsys.readouterr().err
    assert said.count("error: ") == 11
    assert "/09.jpg: " in said
    assert "/10.jpg: " not in said
    assert "error: 4 more images failed; the output has the reasons\n" in said
    assert said.endswith(f"{out}: 14 images, 14 of them failed (14 not_an_image)\n")
    assert "classified by" not in said


def test_infer_says_what_it_left_out(finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    for name in ("full/deep", "none", "bare/inside"):
        (photos / name).mkdir(parents=True)
    shutil.copy(next(finished_chain.images.rglob("*.png")), photos / "full" / "deep" / "a.png")
    (photos / "full" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "linked").symlink_to(finished_chain.images, target_is_directory=True)
    out = tmp_path / "out.csv"
    (photos / "full" / "x.heif2").write_bytes(b"")
    assert finished_chain.run("infer", str(photos), "-o", str(out), "--json") == 3
    found = [(Path(row["path"]).name, row["status"]) for row in read_rows(out)]
    assert found == [("a.png", "ok"), ("gone.png", "missing")]
    captured = capsys.readouterr()
    said = captured.err
    assert "3 folders without an image (bare/inside, bare, none)" in said
    assert "1 link to a folder, which is not followed (linked)" in said
    assert "1 .heif2" in said
    assert json.loads(captured.out)["left_out"] == {".heif2": 1}
    assert finished_chain.run("infer", str(photos / "full" / "deep"), "-o", str(out)) == 0
    assert "left out" not in capsys.readouterr().err


def test_infer_agrees_whatever_the_batch(finished_chain: Chain, tmp_path: Path) -> None:
    folder = str(finished_chain.images / "red")
    results = []
    for size in ("1", "7", "64"):
        out = tmp_path / f"{size}.csv"
        assert finished_chain.run("infer", folder, "-o", str(out), "--batch-size", size, "--top-k", "2") == 0
        results.append(read_rows(out))
    assert len(results[0]) == 96
    for other in results[1:]:
        assert [row["path"] for row in other] == [row["path"] for row in results[0]]
        for a, b in zip(results[0], other):
            assert a["class"] == b["class"]
            assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=2e-5)


def test_infer_as_json_lines(finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    photo = str(next(finished_chain.images.rglob("*.png")))
    for precision in ("fp32", "fp16", "int8"):
        assert finished_chain.run("infer", photo, "-o", str(out), "--precision", precision) == 0
        (row,) = map(json.loads, out.read_text().splitlines())
        assert row["status"] == "ok"
        assert row["class"] in CLASSES
        assert f"{photo}: {row['class']} ({100 * row['probability']:.1f} %)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "Expected an image or a folder of images"),
        ([str(ROOT / "configs")], "Expected images"),
        (["IMAGE", "--top-k", "0"], "at least 1"),
        (
            ["IMAGE", "-o", "/proc/nothing/out.csv"],
            "Received: /proc/nothing/out.csv: No such file or directory (in",
        ),
    ],
)
def test_infer_refuses(
    finished_chain: Chain, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(next(finished_chain.images.rglob("*.png")))
    assert finished_chain.run("infer", *[photo if a == "IMAGE" else a for a in arguments]) == 2
    assert words in errors(capsys)


@pytest.mark.parametrize("option", [["-o", "x.csv"], ["--precision", "int8"], ["--top-k", "0"], ["--batch-size", "0"]])
def test_infer_options_need_images(
    finished_chain: Chain, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished_chain.run("infer", *option) == 2
    assert f"Expected images to classify with {option[0]}. Received: none." in errors(capsys)


def test_a_package_that_is_missing_is_no_damage(
    finished_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, output = tmp_path / "a.jpg", tmp_path / "out.csv"
    Image.new("RGB", (9, 9)).save(photo)
    pq.write_table(pa.table({"image": [photo.read_bytes()]}), tmp_path / "a.parquet")
    for package, name in (("simplejpeg", "a.jpg"), ("pyarrow", "a.parquet")):
        with monkeypatch.context() as patch:
            for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
                patch.setitem(sys.modules, module, None)  # which makes `import` raise ModuleNotFoundError
            assert finished_chain.run("infer", str(tmp_path / name), "-o", str(output)) == 2
        assert f"Expected the package {package}" in errors(capsys)
        assert not output.exists()


@pytest.mark.parametrize("package", ["simplejpeg", "pyarrow"])
def test_where_nothing_is_decoded_no_decoder_is_imported(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import pipeline.cli.commands, pipeline.inference.infer"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["folder", "out.xlsx"])
def test_infer_into_what_is_no_table(
    finished_chain: Chain, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    photo = str(next(finished_chain.images.rglob("*.png")))
    assert finished_chain.run("infer", photo, "-o", str(tmp_path / name)) == 2
    assert "answered" not in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_not_utf8_comes_back_from_every_format(
    finished_chain: Chain, tmp_path: Path, photo: str
) -> None:
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    name = folder + b"/bad\xff.png"
    shutil.copy(photo, name)
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"out.{suffix}"
        assert finished_chain.run("infer", str(tmp_path / "photos"), "-o", str(out)) == 0
        if suffix == "csv":
            (path,) = (os.fsencode(row["path"]) for row in read_rows(out))
        elif suffix == "jsonl":
            (path,) = (os.fsencode(row["path"]) for row in read_lines(out))
        else:
            (path,) = pq.read_table(out)["path_bytes"].to_pylist()
        assert path == name


@pytest.mark.skipif(sys.platform != "linux", reason="pipes, sockets and devices are Linux's")
def test_every_odd_file_has_its_row_and_changes_no_other_answer(finished_chain: Chain, tmp_path: Path) -> None:
    """A list of odd files between good ones; then the same list with good ones in the places of the odd ones."""
    (tmp_path / "odd").mkdir()
    odd = [file for file in make_odd_files(tmp_path / "odd") if "\0" not in str(file.path)]  # a list cannot name it
    good = [copied(finished_chain, f"{index}.png", tmp_path) for index in range(len(odd))]
    instead = [copied(finished_chain, f"{index}.png", tmp_path / "instead") for index in range(len(odd))]
    between = [name for file, after in zip(odd, good) for name in (str(file.path), after)]
    (tmp_path / "list.txt").write_bytes(b"\0".join(map(os.fsencode, between)))
    out = tmp_path / "out.jsonl"
    arguments = ["infer", "--list", str(tmp_path / "list.txt"), "-o", str(out), "--quiet"]
    assert finished_chain.run(*arguments) == 3
    rows = read_lines(out)
    assert [row["path"] for row in rows if "/ddd" not in row["path"]] == [
        name for name in between if "/ddd" not in name
    ]
    assert len(rows) == len(between)
    assert [(file.cause, row["status"]) for file, row in zip(odd, rows[::2])] == [
        (file.cause, file.status) for file in odd
    ]
    assert all(("error" in row) == (row["status"] != "ok") == ("class" not in row) for row in rows)
    (tmp_path / "list.txt").write_text(
        "\n".join(name for first, after in zip(instead, good) for name in (first, after))
    )
    assert finished_chain.run(*arguments) == 0
    assert read_lines(out)[1::2] == rows[1::2]  # to the last bit: JSON has all digits


def copied(chain: Chain, name: str, folder: Path) -> str:
    """A copy of some image of the chain."""
    folder.mkdir(exist_ok=True)
    sources = sorted((chain.images / "red").iterdir())
    shutil.copy(sources[int(Path(name).stem) % len(sources)], folder / name)
    return str(folder / name)


# --- inputs and outputs ---


def test_lists_patterns_and_standard_output(
    finished_chain: Chain, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    red = finished_chain.images / "red"
    (tmp_path / "table.csv").write_text(f"file,label\n{red / '001.png'},red\n{red / '002.png'},red\n")
    arguments = [str(red / "00[34].png"), str(red / "001.png"), "--list", str(tmp_path / "table.csv"), "-o", "-"]
    assert finished_chain.run("infer", *arguments, "--top-k", "1") == 0
    rows = list(csv.DictReader(io.StringIO(capfdbinary.readouterr().out.decode())))
    assert [Path(row["path"]).stem for row in rows] == ["003", "004", "001", "002"]  # 001 is named twice
    assert list(rows[0]) == ["path", "status", "class", "probability", "error", "width", "height"]
    assert (rows[0]["width"], rows[0]["height"]) == ("36", "40")
    assert finished_chain.run("infer", *arguments, "--format", "jsonl") == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [row["path"] for row in rows]


def test_embeddings_threshold_and_sorted_links(finished_chain: Chain, tmp_path: Path) -> None:
    out, features, by_class = tmp_path / "out.parquet", tmp_path / "features.parquet", tmp_path / "sorted"
    arguments = ["infer", str(finished_chain.images), "-o", str(out), "--top-k", "2", "--threshold", "0.9"]
    assert finished_chain.run(*arguments, "--embeddings", str(features), "--sort-into", str(by_class)) == 0
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 4 * 96
    assert all(row["probability"] is None or row["probability"] >= 0.9 for row in rows)
    embeddings = pq.read_table(features)
    assert embeddings["path"].to_pylist() == [row["path"] for row in rows]
    assert np.array(embeddings["embedding"].to_pylist()).shape == (len(rows), 64)
    links = {link: os.readlink(link) for link in by_class.rglob("*") if link.is_symlink()}
    assert sorted(links.values()) == sorted(row["path"] for row in rows)
    classes = {row["path"]: row["class"] or "_unsure" for row in rows}
    assert all(link.parent.name == classes[path] for link, path in links.items())


def test_damaged_pictures_are_answered_where_they_are_asked_to_be(finished_chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    damaged = [
        str(file.path)
        for file in make_odd_files(tmp_path / "odd")
        if file.status == "damaged" and file.path.suffix == ".jpg"
    ]
    out = tmp_path / "out.jsonl"
    assert finished_chain.run("infer", *damaged, "-o", str(out), "--keep-damaged") == 3
    rows = read_lines(out)
    assert {row["status"] for row in rows} == {"damaged"}
    assert sum("class" in row for row in rows) > len(rows) / 2
    assert all(row["error"] for row in rows)


# --- stopped, and continued ---


def stop_at(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Interrupt a run at its n-th batch."""
    left = [batches]

    def update(self: Progress, rows: int, failed: int = 0) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", update)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_same_command_continues_and_gives_the_same_bytes(
    finished_chain: Chain,
    tmp_path: Path,
    ending: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["infer", str(finished_chain.images), "--batch-size", "8", "--shard-rows", "100", "--json"]
    undisturbed, out = tmp_path / f"undisturbed.{ending}", tmp_path / f"out.{ending}"
    assert finished_chain.run(*arguments, "-o", str(undisturbed)) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        assert finished_chain.run(*arguments, "-o", str(out)) == 130
    assert not out.exists()
    said = capsys.readouterr().err
    assert f"160 of 384 rows are kept in {out}.run: the same command continues." in said
    assert finished_chain.run(*arguments, "-o", str(out)) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert (result["continued"], result["images"], result["statuses"]) == (160, 384, {"ok": 384})
    assert f"continuing in {out}.run: 160 of 384 rows are done" in captured.err
    assert out.read_bytes() == undisturbed.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {out.name, undisturbed.name}


def test_a_record_that_cannot_be_read_asks_for_restart_which_works(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    arguments = ["infer", str(finished_chain.images), "-o", str(out)]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert finished_chain.run(*arguments) == 130
    (tmp_path / "out.csv.run" / "run.json").write_text("{")
    assert finished_chain.run(*arguments) == 2
    assert "Begin anew with --restart." in errors(capsys)
    assert finished_chain.run(*arguments, "--restart") == 0
    assert len(read_rows(out)) == 384


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--threshold", "0.5"], "the threshold (0.0 before, 0.5 now)"),
        (["--batch-size", "16"], "the batch size (8 before, 16 now)"),
        (["--precision", "fp16"], "the file that answers"),
        (["--keep-damaged"], "--keep-damaged (False before, True now)"),
        (["--set", "infer.max_file_mib=9"], "infer.max_file_mib (512 before, 9 now)"),
        (["--top-k", "1"], "classes of a row (3 before, 1 now)"),
    ],
)
def test_another_run_begins_anew_and_says_why(
    finished_chain: Chain,
    tmp_path: Path,
    change: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["infer", str(finished_chain.images / "red"), "--batch-size", "8", "-o", str(tmp_path / "out.csv")]
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert finished_chain.run(*arguments) == 130
    capsys.readouterr()
    assert finished_chain.run(*arguments, *change) == 0
    said = capsys.readouterr().err
    assert f"24 rows of an earlier run for {tmp_path / 'out.csv'} are dropped, as these changed: {words}" in said
    assert len(read_rows(tmp_path / "out.csv")) == 96


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "sorted/out.csv", "--sort-into", "sorted"], "into which -o sorted/out.csv would be written"),
        (["--embeddings", "sorted/x/e.parquet", "--sort-into", "./sorted/"], "into which --embeddings sorted/x/e.parq"),
        (["--sort-into", "."], "Received: ., which is the working directory or above it"),
        (["--sort-into", ".."], "Received: .., which is"),
    ],
)
def test_a_folder_for_links_that_would_hold_more_is_refused_at_once(
    finished_chain: Chain,
    tmp_path: Path,
    photo: str,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert finished_chain.run("infer", os.path.join(ROOT, photo), *arguments) == 2
    said = errors(capsys)
    assert words in said or (arguments[-1] == ".." and "which is not empty" in said)
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_only_a_run_that_goes_on_keeps_its_number_of_threads(
    finished_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    opened = infer.open_choice

    def recorded(choice: Any, settings: Any, threads: int) -> Any:
        used.append(threads)
        return opened(choice, settings, threads)

    monkeypatch.setattr(infer, "open_choice", recorded)
    arguments = ["infer", str(finished_chain.images / "red"), "--batch-size", "8", "-o", str(tmp_path / "out.csv")]
    for cores, more in ((3, []), (2, []), (2, ["--top-k", "1"])):
        with monkeypatch.context() as patch:
            stop_at(patch, 3)
            patch.setattr(infer, "usable_cores", lambda cores=cores: cores)
            assert finished_chain.run(*arguments, *more) == 130
    assert used == [3, 3, 2]


def test_a_changed_picture_begins_anew(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["infer", str(chain.images / "red"), "--batch-size", "8", "-o", str(tmp_path / "out.csv")]
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert chain.run(*arguments) == 130
    capsys.readouterr()
    shutil.copy(chain.images / "blue" / "000.png", chain.images / "red" / "000.png")
    assert chain.run(*arguments) == 0
    assert "as these changed: the inputs" in capsys.readouterr().err
    assert read_rows(tmp_path / "out.csv")[0]["class"] == "blue"


def test_an_output_that_is_being_written_is_refused_by_name(
    finished_chain: Chain, tmp_path: Path, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    with RunFolder.take(out):
        assert finished_chain.run("infer", photo, "-o", str(out)) == 2
    assert f"{out} is being written by process {os.getpid()}" in errors(capsys)


@pytest.mark.parametrize("option", ["--embeddings", "--sort-into"])
def test_a_second_run_that_shares_another_output_is_refused(
    finished_chain: Chain, tmp_path: Path, photo: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared.parquet"
    with RunFolder.take(tmp_path / "first.csv", {option: shared}):
        assert finished_chain.run("infer", photo, "-o", str(tmp_path / "out.csv"), option, str(shared)) == 2
    assert f"{shared} is being written by process {os.getpid()}" in errors(capsys)
    assert list(tmp_path.iterdir()) == []


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "-", "--json"], "Expected --json with a file after -o"),
        (["-o", "-", "--embeddings", "e.parquet"], "Expected --embeddings with a file after -o"),
        (["-o", "-", "--sort-into", "x"], "Expected --sort-into with a file after -o"),
        (["-o", "-", "--gpus", "all"], "Expected --gpus with a file after -o"),
        (["--format", "csv"], "Expected --format with -o -"),
        (["-o", "x.jsonl", "--csv-safe"], "Expected --csv-safe with CSV"),
        (["-o", "x.parquet", "--embeddings", "./x.parquet"], "Expected two files after -o and --embeddings"),
        (["--embeddings", "e.csv"], "Expected a file that ends in .parquet after --embeddings"),
        (["--threshold", "nan"], "Expected a probability from 0 to 1 after --threshold"),
        (["--threshold", "50"], "Expected a probability from 0 to 1 after --threshold"),
        (["--shard-rows", "0"], "at least 1 after --shard-rows"),
        (["--batch-size", "-1"], "at least 1 after --batch-size"),
        (["--explain"], "Expected --explain and --force without images"),
        (["--list", "nothere.csv"], "nothere.csv"),
        (["-o", ""], "Expected a file after -o, such as predictions.csv. Received: an empty name"),
    ],
)
def test_options_that_do_not_fit(
    finished_chain: Chain,
    photo: str,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert finished_chain.run("infer", photo, *arguments) == 2
    assert words in errors(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_a_name_cannot_steer_the_terminal(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "\x1b[2Ja\r\nb.png").touch()
    (tmp_path / "c.\x1b[31m").touch()
    record = tmp_path / "log.txt"
    out = str(tmp_path / "x.csv")
    assert finished_chain.run("infer", str(tmp_path), "-o", out, "--log-file", str(record)) == 3
    for said in (capsys.readouterr().err, record.read_text()):
        assert f"{tmp_path}/\\x1b[2Ja\\x0d\\nb.png: the file is empty (not_an_image)\n" in said
        assert ".\\x1b[31m" in said
        assert "\x1b" not in said


def test_what_is_read_is_not_replaced(
    finished_chain: Chain,
    photo: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.csv").write_text(f"path,label\n{photo},red\n")
    Path("link.csv").symlink_to("list.csv")
    pq.write_table(pa.table({"image": [Path(photo).read_bytes()]}), "data.parquet")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for words in (
        "--list list.csv -o list.csv",
        "--list list.csv -o link.csv",
        "data.parquet -o ./data.parquet",
        "*.parquet -o data.parquet",
        "data.parquet -o out.csv --embeddings data.parquet",
    ):
        assert finished_chain.run("infer", *words.split()) == 2, words
        assert "which is one of them and would be replaced" in errors(capsys)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_record_that_is_damaged_is_refused_and_begun_anew_on_request(
    finished_chain: Chain, tmp_path: Path, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    folder = tmp_path / "out.csv.run"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "run.json").write_text("{")
    assert finished_chain.run("infer", photo, "-o", str(out)) == 2
    assert "Begin anew with --restart" in errors(capsys)
    assert finished_chain.run("infer", photo, "-o", str(out), "--restart") == 0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(bool(driver_status()), reason="this machine has a GPU")
def test_gpus_need_a_gpu(finished_chain: Chain, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finished_chain.run("infer", photo, "-o", str(tmp_path / "x.csv"), "--gpus", "all") == 2
    assert "Received: a machine without any" in errors(capsys)
    assert list(tmp_path.iterdir()) == []


# --- the same answers as were verified ---


def test_two_gpus_give_the_rows_of_one_process(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are the CPU, taken for GPUs."""
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    arguments = ["infer", str(finished_chain.images), str(bad), "--batch-size", "8", "--json", "-o"]
    assert finished_chain.run(*arguments, str(tmp_path / "one.csv")) == 3
    monkeypatch.setattr(infer, "ON_GPU", ("onnxruntime",))
    devices = SimpleNamespace(devices=("first", "second"))
    monkeypatch.setattr(infer, "driver_status", lambda: devices)
    capsys.readouterr()
    assert finished_chain.run(*arguments, str(tmp_path / "two.csv"), "--gpus", "all") == 3
    one, two = (
        [[row["path"], row["status"], row["class"], row["width"]] for row in read_rows(tmp_path / name)]
        for name in ("one.csv", "two.csv")
    )
    assert two == one
    captured = capsys.readouterr()
    assert f"error: {bad}: not an image that Pillow can read (not_an_image)\n" in captured.err
    assert json.loads(captured.out)["statuses"] == {"ok": 384, "not_an_image": 1}


def test_infer_answers_what_was_verified(finished_chain: Chain, tmp_path: Path) -> None:
    """The test images through `infer`, against Keras' logits of the verify stage."""
    reference = np.load(finished_chain.root / "verify" / "reference.npz", allow_pickle=False)
    verified = {
        pixels.tobytes(): int(logits.argmax()) for pixels, logits in zip(reference["pixels"], reference["logits"])
    }
    out = tmp_path / "out.jsonl"
    assert finished_chain.run("infer", str(finished_chain.images), "-o", str(out)) == 0
    decode = DecodeSpec((32, 32), "stretch")
    answers = {decode.pixels(row["path"]).tobytes(): CLASSES.index(row["class"]) for row in read_lines(out)}
    assert len(verified) >= 60
    assert {pixels: answers[pixels] for pixels in verified} == verified
