"""The folder of a run on Ray: what continues, what begins anew, what is refused; parts are written as Ray does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export.errors import ProjectError, notes
from pipeline.distributed.output_folder import PartsFolder
from pipeline.distributed.parts import ROW, part_of
from pipeline.inference.output.parquet import rows_as_table
from pipeline.inference.rows import Row

IDENTITY = {"the inputs": "a" * 64, "its bytes": "b" * 64, "threads": 2}
TOTAL = 8


def name(number: int) -> str:
    return f"dataset_{'0' * 32}_{number:06}"


def write_part(folder: PartsFolder, number: int, rows: Sequence[int], *, pending: bool = False) -> Path:
    """Write a part and its checkpoint, the row 5 as one that failed."""
    answers = [Row(f"{row}.png", "damaged", error="cut") if row == 5 else Row(f"{row}.png", "ok") for row in rows]
    part = part_of(folder.parts, name(number))
    pq.write_table(rows_as_table(answers, 1).add_column(0, ROW, [pa.array(rows)]), part)
    folder.checkpoint.mkdir(exist_ok=True)
    ending = ".pending.parquet" if pending else ".parquet"
    pq.write_table(pa.table({ROW: rows}), folder.checkpoint / f"{name(number)}{ending}")
    return part


def begin(folder: PartsFolder, **changes: object) -> None:
    folder.begin({**IDENTITY, **changes}, TOTAL, 4, 1, kept="threads")  # type: ignore[dict-item]


def test_a_stopped_run_continues_with_what_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out"

    def stop() -> None:
        with PartsFolder.take(output) as folder:
            begin(folder)
            write_part(folder, 0, range(4))
            write_part(folder, 1, range(4, 8), pending=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        stop()
    assert notes(stopped.value) == (f"4 of 8 rows are kept in {output}.run: the same command continues.",)
    with caplog.at_level("INFO"), PartsFolder.take(output) as folder:
        begin(folder, threads=7)
        assert (folder.written.done, folder.written.missing, folder.written.repeated) == (4, 4, 0)
        assert f"continuing in {output}.run: 4 of 8 rows are done" in caplog.text
        (folder.checkpoint / f"{name(1)}.pending.parquet").unlink()
        write_part(folder, 2, range(4, 8))
        look = folder.written.look()
        assert (look.rows, look.failed, [row.path for row in look.shown]) == (4, 1, ["5.png"])
        folder.finish()
    assert pq.read_table(output)[ROW].to_pylist() == list(range(8)), "the part that was begun is gone"
    assert dict(folder.written.counts) == {"ok": 7, "damaged": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("key", "word"), [("the inputs", "the inputs"), ("its bytes", "its bytes")])
def test_rows_of_other_inputs_or_another_model_are_dropped_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, word: str
) -> None:
    with PartsFolder.take(tmp_path / "out") as folder:
        begin(folder)
        write_part(folder, 0, range(4))
    with PartsFolder.take(tmp_path / "out") as folder:
        begin(folder, **{key: "c" * 64})
        assert not list(folder.parts.iterdir())
        assert folder.written.done == 0
    text = f"4 rows of an earlier run for {tmp_path / 'out'} are dropped, as these changed: {word}"
    assert text in caplog.text
    assert not (tmp_path / "out.run").exists(), "nothing is in it"


def test_a_damaged_part_is_done_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with PartsFolder.take(tmp_path / "out") as folder:
        begin(folder)
        write_part(folder, 0, range(4)).write_bytes(b"PAR1")
        write_part(folder, 1, range(4, 8))
    with PartsFolder.take(tmp_path / "out") as folder:
        begin(folder)
        assert f"1 part in {folder.path} is damaged: done anew" in caplog.text
        assert (folder.written.done, folder.written.missing) == (4, 4)


@pytest.mark.parametrize(("rows", "missing", "repeated"), [(range(3), 1, 0), (range(5), 0, 1)])
def test_a_row_that_is_missing_or_twice_is_no_output(
    tmp_path: Path, rows: Sequence[int], missing: int, repeated: int
) -> None:
    with PartsFolder.take(tmp_path / "out") as folder:
        begin(folder)
        write_part(folder, 0, rows)
        write_part(folder, 1, range(4, 8))
        folder.written.look()
        with pytest.raises(ProjectError, match=f"Received: {missing} missing, {repeated} repeated.*--restart"):
            folder.finish()
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_not_of_an_earlier_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for output, received in (("photos", "a folder with 'a.png'"), ("file", "no folder")):
        with pytest.raises(ProjectError, match=f"Received: {tmp_path / output}, {received}"):
            PartsFolder.take(tmp_path / output)
    (tmp_path / "new.run").mkdir()
    (tmp_path / "new.run" / "mine").write_bytes(b"")
    with pytest.raises(ProjectError, match="a folder with 'mine', which no run makes"):
        PartsFolder.take(tmp_path / "new")


def test_a_second_run_with_the_same_output_is_refused(tmp_path: Path) -> None:
    with (
        PartsFolder.take(tmp_path / "out"),
        pytest.raises(ProjectError, match="out is being written by process"),
    ):
        PartsFolder.take(tmp_path / "out")
