"""A run from what was asked for to the file: what decides its rows, what it passes on, what it says."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from export.errors import ProjectError
from export.preprocessing import PreprocessingSpec
from export.tensorrt.sidecar import BatchProfile, sidecar_path
from pipeline.data.decode import DecodeSpec
from pipeline.inference import identity
from pipeline.inference import infer as module
from pipeline.inference.classify import Settings, classify
from pipeline.inference.gpu_worker import Opener
from pipeline.inference.infer import Inference, infer
from pipeline.inference.output.layout import Shard
from pipeline.inference.pace import Pace
from pipeline.inference.progress import Progress
from pipeline.inference.request import Request
from pipeline.inference.rows import Row
from pipeline.models.model_card import ModelCard
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.serving.select_model import Selection
from tests import tiny_onnx

CARD = ModelCard(
    tiny_onnx.CLASSES, PreprocessingSpec.from_mode("unit"), DecodeSpec((tiny_onnx.SIZE,) * 2, "stretch"), "softmax"
)
COUNT = 12


class Shown(Progress):
    """Remembers the last one, and interrupts the run after some batches."""

    last: Shown
    batches_left = -1

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        Shown.last = self

    def update(self, rows: int, failed: int = 0) -> None:
        super().update(rows, failed)
        Shown.batches_left -= 1
        if not Shown.batches_left:
            raise KeyboardInterrupt


@dataclass
class Made:
    """A model, its card, photos, and runs of them."""

    folder: Path
    choice: Selection

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def output(self) -> Path:
        return self.folder / "out.jsonl"

    def request(self, **options: Any) -> Request:
        given: dict[str, Any] = {
            "inputs": (str(self.photos),), "lists": (), "column": None, "output": self.output, "format": "jsonl",
            "batch_size": 2, "top_k": 2, "threshold": 0.0, "embeddings": None, "sort_into": None, "csv_safe": False,
            "keep_damaged": False, "decode_threads": 0, "largest_file": 2**29, "shard_rows": 6, "gpus": None,
            "restart": False,
        }  # fmt: skip
        return Request(**given | options)

    def run(self, **options: Any) -> Inference:
        return infer(self.request(**options), self.folder / "model.json", CARD, lambda size: self.choice, quiet=True)

    def stop(self, **options: Any) -> None:
        """Run for two batches, until Ctrl-C."""
        Shown.batches_left = 2
        with pytest.raises(KeyboardInterrupt):
            self.run(**options)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    model = tiny_onnx.classifier()
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in CARD.metadata().items()})
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "model.json").write_text("the card")
    made = Made(tmp_path, Selection("export/model.onnx", tmp_path / "model.onnx", "onnxruntime", "fp32", "pass"))
    made.photos.mkdir()
    random = np.random.default_rng(3)
    for index in range(COUNT):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(made.photos / f"{index:02}.jpg")
    monkeypatch.setattr(module, "Progress", Shown)
    Shown.batches_left = -1
    return made


# --- what decides the rows ---


def other_bytes(made: Made, patch: pytest.MonkeyPatch) -> None:
    model = onnx.load(made.choice.path)
    model.doc_string = "another one"
    onnx.save(model, made.choice.path)


def other_card(made: Made, patch: pytest.MonkeyPatch) -> None:
    (made.folder / "model.json").write_text("another card")


def other_program(made: Made, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(identity, "__version__", "0.0.1")


def other_version(name: str) -> Callable[[Made, pytest.MonkeyPatch], None]:
    def change(made: Made, patch: pytest.MonkeyPatch) -> None:
        there = identity.version
        patch.setattr(identity, "version", lambda asked: "0.0.1" if asked == name else there(asked))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_bytes, "its bytes"),
        (other_card, "the model card"),
        (other_program, "versions"),
        *((other_version(name), "versions") for name in ("pillow", "simplejpeg", "pillow-heif", "onnxruntime")),
    ],
)
def test_what_decides_the_rows_begins_anew(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Made, pytest.MonkeyPatch], None],
    words: str,
) -> None:
    made.stop()
    change(made, monkeypatch)
    assert made.run().continued == 0
    assert f"4 rows of an earlier run for {made.output} are dropped, as these changed: {words}" in caplog.messages


def test_an_engine_s_sidecar_decides_its_rows(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    onnx_file = made.choice.path
    made.choice = replace(made.choice, path=made.folder / "fp32.plan", backend="tensorrt", name="build/rtx/fp32.plan")
    made.choice.path.write_bytes(b"an engine")
    sidecar_path(made.choice.path).write_text("a")
    monkeypatch.setattr(module, "open_choice", lambda choice, settings, threads: OnnxRunner(onnx_file))
    made.stop()
    sidecar_path(made.choice.path).write_text("b")
    assert made.run().continued == 0
    assert caplog.messages[-1].endswith("as these changed: its bytes")


@pytest.mark.parametrize(("opens", "features"), [("open_runner", False), ("open_embeddings", True)])
def test_a_run_goes_on_with_its_number_of_threads(
    made: Made, monkeypatch: pytest.MonkeyPatch, opens: str, features: bool
) -> None:
    opened = getattr(module, opens)
    threads = []

    def recorded(*args: Any, **options: Any) -> Any:
        threads.append(options["threads"])
        return opened(*args, **options)

    monkeypatch.setattr(module, opens, recorded)
    options = {"embeddings": made.folder / "features.parquet" if features else None}
    monkeypatch.setattr(module, "usable_cores", lambda: 3)
    made.stop(**options)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    made.stop(**options)
    made.stop(**options, restart=True)
    assert made.run(**options).continued == 4
    assert threads == [3, 3, 2, 2]


def test_a_run_begins_anew_where_it_is_asked_to(made: Made) -> None:
    made.stop()
    assert made.run(restart=True).continued == 0


def test_batches_are_no_larger_than_the_runner_takes_so_that_shards_hold_whole_ones(made: Made) -> None:
    (made.folder / "list.txt").write_text("\n".join(f"{number}.jpg" for number in range(1100)))
    result = made.run(inputs=(), lists=(str(made.folder / "list.txt"),), batch_size=1000, shard_rows=300)
    assert result.statuses == {"missing": 1100}
    made.choice = replace(made.choice, profile=BatchProfile(1, 2, 5))
    assert made.run(batch_size=1000, shard_rows=7).images == COUNT


# --- what is passed on ---


def test_the_decoder_and_its_threads_get_what_was_asked_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Settings] = []

    def recorded(items: Any, reader: Any, runner: Any, card: Any, settings: Settings, pace: Any) -> Any:
        given.append(settings)
        return classify(items, reader, runner, card, settings, pace)

    monkeypatch.setattr(module, "classify", recorded)
    made.run(batch_size=3, top_k=9, threshold=0.25, decode_threads=7, keep_damaged=True, largest_file=10)
    assert given == [Settings(3, 9, 0.25, 7, True, 10)]
    assert {row["status"] for row in made.rows()} == {"too_large"}


def test_a_column_is_found_by_its_name(made: Made) -> None:
    (made.folder / "list.csv").write_text(f"path,mine\nnothing.jpg,{made.photos / '03.jpg'}\n")
    assert made.run(inputs=(), lists=(str(made.folder / "list.csv"),), column="mine").statuses == {"ok": 1}


def test_cells_are_harmless_where_that_is_asked_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.photos)
    (made.photos / "00.jpg").rename("=1.jpg")
    made.run(inputs=("=1.jpg",), output=made.folder / "out.csv", format="csv", csv_safe=True)
    (row,) = csv.DictReader(io.StringIO((made.folder / "out.csv").read_text()))
    assert row["path"] == "'=1.jpg"


def test_each_gpu_has_its_own_runner_and_part_of_the_threads(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_file, devices, decode_threads = made.choice.path, [], []

    def open_choice(choice: Selection, settings: Settings, threads: int) -> OnnxRunner:
        devices.append(choice.runtime.device)
        return OnnxRunner(onnx_file)

    def run_on_gpus(
        gpus: Sequence[int],
        shards: Sequence[Shard],
        opener: Opener,
        threads: int,
        pace: Pace,
        on_rows: Callable[[Sequence[Row]], object],
    ) -> int:
        assert (list(gpus), threads) == ([0, 2], 5)
        for number, shard in enumerate(shards):
            with opener(gpus[number % 2], 1 + number) as work:
                decode_threads.append(work.settings.threads)
                items = work.items(work.writer.next_row(shard.number), shard.stop)
                for rows in classify(items, work.reader, work.runner, work.card, work.settings, pace):
                    work.writer.write(rows)
                    on_rows(rows.rows)
                work.writer.close()
        return 2

    made.run()
    expected = made.output.read_bytes()
    monkeypatch.setattr(module, "open_choice", open_choice)
    monkeypatch.setattr(module, "run_on_gpus", run_on_gpus)
    monkeypatch.setattr(module, "driver_status", lambda: type("Status", (), {"devices": (1, 2, 3)}))
    made.choice = replace(made.choice, backend="onnxruntime-cuda")
    assert made.run(gpus="0,2", shard_rows=10_000, batch_size=1, decode_threads=5).statuses == {"ok": COUNT}
    assert (devices, decode_threads) == ([0, 2, 0, 2, 0, 2], [1, 2, 3, 4, 5, 6])
    assert [row["path"] for row in made.rows()] == [json.loads(line)["path"] for line in expected.splitlines()]
    assert (Shown.last.done, Shown.last.failed) == (COUNT, 0)


# --- what is said ---


def test_progress_and_result_count_failures_those_of_the_earlier_run_too(made: Made) -> None:
    for index in (1, 2, 11):
        (made.photos / f"{index:02}.jpg").write_bytes(b"no image")
    made.stop()
    assert (Shown.last.done, Shown.last.failed) == (4, 2)
    result = made.run()
    assert (Shown.last.done, Shown.last.failed) == (COUNT, 3)
    assert (result.continued, result.images, result.failed) == (4, COUNT, 3)


def test_what_was_left_out_is_said_and_counted(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    (made.photos / "notes.txt").write_text("")
    assert made.run().left_out == {".txt": 1}
    assert f"left out below {made.photos}: 1 .txt" in caplog.messages


def test_few_rows_are_shown_and_ten_failures_of_many(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made.run(inputs=(str(made.photos / "00.jpg"),), threshold=1.0)
    assert f"{made.photos / '00.jpg'}: no class reaches the threshold" in caplog.messages
    caplog.clear()
    (made.folder / "list.txt").write_text("\n".join(f"{number}.jpg" for number in range(12)))
    made.run(inputs=(), lists=(str(made.folder / "list.txt"),))
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [error.partition(":")[0] for error in errors[:10]] == [f"{number}.jpg" for number in range(10)]
    assert errors[10:] == ["2 more images failed; the output has the reasons"]


# --- links ---


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_link_lies_in_the_folder_of_the_class_in_its_row(made: Made, ending: str) -> None:
    """CSV rounds probabilities: one that reaches the threshold may be written as less."""
    made.run()
    probability = next(row["probability"] for row in made.rows() if row["probability"] > round(row["probability"], 6))
    output, folder = made.folder / f"out.{ending}", made.folder / "sorted"
    result = made.run(output=output, format=ending, threshold=probability, sort_into=folder)
    with output.open() as file:
        rows = list(csv.DictReader(file)) if ending == "csv" else list(map(json.loads, file))
    there = {str(link.readlink()): link.parent.name for link in folder.glob("*/*")}
    assert there == {row["path"]: row.get("class") or "_unsure" for row in rows}
    assert result.links is not None
    assert 0 < result.links.unsure < COUNT


def test_links_that_the_next_run_would_classify_are_refused(made: Made) -> None:
    for folder in (made.photos / "sorted", made.photos / "deep" / "sorted"):
        with pytest.raises(ProjectError, match=r"Expected a folder outside of what is classified after --sort-into"):
            made.run(sort_into=folder)
    assert made.run(sort_into=made.folder / "photos-sorted").links is not None


def test_members_of_archives_are_refused_before_they_are_classified(made: Made) -> None:
    import tarfile

    with tarfile.open(made.folder / "photos.tar", "w") as file:
        file.add(made.photos / "00.jpg", "00.jpg")
    with pytest.raises(ProjectError, match=r"Expected images that are files, which --sort-into links to"):
        made.run(inputs=(str(made.folder / "photos.tar"),), sort_into=made.folder / "sorted")
    assert not made.output.exists()
