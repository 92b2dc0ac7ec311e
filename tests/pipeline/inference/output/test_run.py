"""A run's folder: whose it is, what it continues, and what it says."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from export.errors import ProjectError, notes
from export.files import ROOT
from pipeline.inference.output.folder import run_folder
from pipeline.inference.output.layout import MARK_BYTES, Mark, pack
from pipeline.inference.output.record import read_run
from pipeline.inference.output.run import RunFolder, open_worker
from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.rows import STATUSES, Row, Rows
from tests.pipeline.inference.output.made_runs import batch, batches, finals, names, row, spec_of, work

HOLDER = """
import sys
from pathlib import Path
from pipeline.inference.output.run import RunFolder
from tests.pipeline.inference.output.made_runs import batch, spec_of
output = Path(sys.argv[1])
with RunFolder.take(output) as run:
    run.begin({"model": "a"}, 23, 10, spec_of(output))
    run.write(batch(0, 2))
    print("ready", flush=True)
    sys.stdin.read()
"""


def stop(output: Path, most: int = 6, **options: object) -> Path:
    with pytest.raises(KeyboardInterrupt):
        work(output, most=most, **options)
    return run_folder(output)


def run_into(output: Path, error: BaseException, count: int | None) -> None:
    """Write so many rows, then fail; None: fail before it begins."""
    with RunFolder.take(output) as run:
        assert names(run.inputs) == []
        (run.inputs / "plan").write_text("x")
        if count is not None:
            run.begin({}, 3000, 10, spec_of(output))
        if count:
            run.write(batch(run.done, count))
        raise error


# --- what is written ---


def test_a_run_leaves_its_output_alone(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("former")
    assert work(tmp_path / "out.csv") == 0
    assert names(tmp_path) == ["out.csv"]
    assert (tmp_path / "out.csv").read_bytes().count(b".png") == 23


def test_every_batch_is_with_the_system_at_once(tmp_path: Path) -> None:
    """What kill -9 takes is at most the batch that is being written."""
    output = tmp_path / "new" / "out.csv"
    with RunFolder.take(output) as run:
        run.begin({}, 23, 10, spec_of(output))
        for count in (1, 2, 3):
            run.write(batch(2 * count - 2, 2))
            assert (run.path / "000000.part").read_bytes().count(b".png") == 2 * count == run.done
        with pytest.raises(ValueError, match=r"Expected all rows\. Received: none from row 6 on"):
            run.finish()
        assert not output.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks the system for the names of open files")
def test_a_shard_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, calls = tmp_path / "out.csv", []
    fsync, replace = os.fsync, os.replace

    def recorded(descriptor: int) -> None:
        calls.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        calls.append(f"{source.name} -> {target.name}")
        replace(source, target)

    with RunFolder.take(output) as run:
        run.begin({}, 2, 2, spec_of(output, True))
        monkeypatch.setattr(os, "fsync", recorded)
        monkeypatch.setattr(os, "replace", renamed)
        run.write(batch(0, 2, True))
        monkeypatch.undo()
    shard = ["000000.index", "000000.f32", "000000.part", "000000.part -> 000000.csv", "out.csv.run"]
    assert calls == shard


def test_what_is_no_next_batch_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with RunFolder.take(output) as run:
        run.begin({}, 23, 10, spec_of(output))
        for rows in (batch(1, 2), batch(0, 11), Rows(0, [])):
            with pytest.raises(ValueError, match="Expected rows from 0 to at most 9"):
                run.write(rows)
        run.write(batch(0, 10))
        with pytest.raises(ValueError, match="Expected rows of an unfinished shard"):
            run.write(batch(0, 2))
        run.write(batch(20, 3))  # shards may be written in any order
        assert [(shard.number, shard.next, shard.stop) for shard in run.unfinished()] == [(1, 10, 20)]


def test_statuses_are_counted_over_all_that_ran(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    stop(output, 7)
    with RunFolder.take(output) as run:
        run.begin({"model": "a"}, 23, 10, spec_of(output))
        assert run.done == 14
        assert run.counts() == {"ok": 11, "damaged": 3}
        for shard in run.unfinished():
            for rows in batches(shard, 2):
                run.write(rows)
        assert run.counts() == {"ok": 19, "damaged": 4}
        assert [row(number).status for number in range(23)].count("damaged") == 4
        run.finish()


def test_a_worker_writes_as_the_run_was_begun(tmp_path: Path) -> None:
    spec = OutputSpec("csv", 1, csv_safe=True)
    with RunFolder.take(tmp_path / "out.csv") as run:
        run.begin({}, 1, 1, spec)
        with open_worker(run.path) as worker:
            worker.write(Rows(0, [Row("=1+1.png", "ok", ("cat",), (1.0,))]))
        run.finish()
    assert run.output.read_text().splitlines()[1].startswith("'=1+1.png,ok,cat,")


def test_rows_are_kept_until_what_follows_them_is_done(tmp_path: Path) -> None:
    def full() -> None:
        assert (tmp_path / "out.csv").exists()
        raise OSError(28, "No space left on device")

    def run_to_end() -> None:
        with RunFolder.take(output) as run:
            run.begin({"model": "a"}, 2, 2, spec_of(output))
            run.write(batch(0, 2))
            run.finish(full)

    output = tmp_path / "out.csv"
    with pytest.raises(OSError, match="No space") as caught:
        run_to_end()
    assert notes(caught.value) == (f"2 of 2 rows are kept in {output}.run: the same command continues.",)
    assert work(output, 2, 2) == 2
    assert names(tmp_path) == ["out.csv"]


def test_every_status_is_counted_as_itself(tmp_path: Path) -> None:
    statuses = [status for number, status in enumerate(STATUSES, 1) for _ in range(number)]
    with RunFolder.take(tmp_path / "out.jsonl") as run:
        run.begin({}, len(statuses), 100, spec_of(run.output))
        run.write(Rows(0, [Row(f"{n}.png", status, error="why") for n, status in enumerate(statuses)]))  # type: ignore[arg-type]
        assert run.finish() == {status: number for number, status in enumerate(STATUSES, 1)}


def test_a_run_of_one_row_and_one_of_none(tmp_path: Path) -> None:
    work(tmp_path / "one.csv", 1, 5)
    assert (tmp_path / "one.csv").read_bytes().count(b"\r\n") == 2
    work(tmp_path / "none.csv", 0, 5)
    assert (tmp_path / "none.csv").read_bytes().count(b"\r\n") == 1


def test_an_index_of_millions_of_batches_is_not_read_into_memory(tmp_path: Path) -> None:
    output, rows = tmp_path / "out.csv", 300_000
    with RunFolder.take(output) as run:
        run.begin({}, rows, rows, spec_of(output))
        run.write(batch(0, 1))
        layout = read_run(run.path).layout(run.path)
        with layout.index(0).open("wb") as file:
            for number in range(rows):
                file.write(pack(Mark(number + 1), layout.seed(0)))
        for end in (b"", b"cut", bytes(MARK_BYTES)):  # whole, and after a power cut
            with layout.index(0).open("ab") as file:
                file.write(end)
            tracemalloc.start()
            assert layout.last_mark(0).rows == rows
            assert tracemalloc.get_traced_memory()[1] < 2**20
            tracemalloc.stop()


# --- what is continued ---


def test_other_rows_are_dropped_and_what_changed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out.csv"
    stop(output, identity="a")
    assert work(output, identity="b") == 0
    assert caplog.messages == [
        f"12 rows of an earlier run for {output} are dropped, as these changed: model (a before, b now)"
    ]
    stop(output, identity="0" * 64)
    caplog.clear()
    assert work(output, 24, identity="1" * 64) == 0
    assert caplog.messages[0].endswith("these changed: model, number of images (23 before, 24 now)")


def test_each_part_of_an_identity_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out.csv"
    former = {"threads": 2, "threshold": 0.5, "list": os.fsdecode(b"\xff"), "gpu": None, "strict": True}

    def begin(identity: dict[str, object], **options: object) -> int:
        with RunFolder.take(output) as run:
            run.begin(identity, 4, 2, spec_of(output, **options))
            done = run.done
            run.write(batch(0 if done == 0 else 2, 1))
        return done

    assert begin(former) == 0
    others = [{"threads": 3}, {"threshold": 0.25}, {"list": os.fsdecode(b"\xfe")}, {"gpu": "x"}, {"strict": False}]
    for other in (*others, {"new": None}):
        caplog.clear()
        assert begin(former | other) == 0
        assert re.search(rf"these changed: {next(iter(other))}( \(|$)", caplog.messages[0])
        assert begin(former) == 0
    assert begin(former) == 1
    caplog.clear()
    assert begin(former, top_k=1) == 0
    assert caplog.messages[0].endswith("these changed: classes of a row (2 before, 1 now)")


def test_a_value_is_kept_by_a_run_that_goes_on_and_by_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def begin(threads: int, model: str = "a", *, fresh: bool = False) -> object:
        with RunFolder.take(tmp_path / "out.csv") as run:
            identity = {"model": model, "threads": threads}
            begun = run.begin(identity, 4, 2, spec_of(run.output), kept="threads", fresh=fresh)
            if run.done == 0:
                run.write(batch(0, 1))
        return begun["threads"]

    assert [begin(64), begin(2), begin(2)] == [64, 64, 64]
    assert begin(2, "b") == 2
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.endswith("these changed: model (a before, b now)")
    assert [begin(3, "b"), begin(3, "b", fresh=True)] == [2, 3]
    assert [begin(0, "b"), begin(4, "b")] == [0, 4]  # on a GPU there are none


def test_a_run_begins_anew_when_asked_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out.csv"
    folder = stop(output)
    assert work(output, fresh=True) == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    folder = stop(output)
    (folder / "run.json").write_text("{}")
    with pytest.raises(ProjectError, match=r"Expected the record of a run of schema 1 .* Begin anew with --restart"):
        work(output)
    assert (folder / "000000.csv").exists()
    assert work(output, fresh=True) == 0


def test_it_says_what_it_continues_and_what_it_keeps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out.csv"
    caplog.set_level(logging.INFO)
    for error in (KeyboardInterrupt(), ValueError("x"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)) as caught:
            run_into(output, error, 2)
        done = 2 + 2 * [KeyboardInterrupt, ValueError, OSError].index(type(error))
        assert notes(caught.value) == (f"{done} of 3,000 rows are kept in {output}.run: the same command continues.",)
    assert error.filename == str(output)
    assert caplog.messages == [f"continuing in {output}.run: {done} of 3,000 rows are done" for done in (2, 4)]


def test_a_full_disk_names_the_output_whichever_file_of_its_folder_was_full(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    for path in (output.with_name("out.csv.run") / "run.json", tmp_path / "features.npy"):
        error = OSError(28, "No space left on device", str(path))
        with pytest.raises(OSError, match="No space"):
            run_into(output, error, 2)
        assert error.filename == str(output if path.name == "run.json" else path)
        assert "kept in" in notes(error)[0]


def test_without_a_row_nothing_is_kept_or_said(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt) as caught:
        run_into(output, KeyboardInterrupt(), 0)
    assert notes(caught.value) == ()
    with pytest.raises(ValueError, match="x"), RunFolder.take(output):
        raise ValueError("x")
    assert names(tmp_path) == []


def test_an_error_before_it_begins_keeps_the_rows_that_are_there(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    stop(output)
    with pytest.raises(ValueError, match="x") as caught:
        run_into(output, ValueError("x"), None)
    assert notes(caught.value) == ()
    assert work(output) == 12


def test_rows_and_embeddings_are_two_files(tmp_path: Path) -> None:
    output = tmp_path / "features.parquet"
    said = r"Expected different outputs after -o and --embeddings\. Received: .* twice"
    with pytest.raises(ProjectError, match=said):
        RunFolder.take(output, {"--embeddings": tmp_path / "x" / ".." / "features.parquet"})
    assert names(tmp_path) == []


@pytest.mark.parametrize("option", ["-o", "--embeddings", "--sort-into"])
def test_a_name_that_is_too_long_for_a_temporary_one_is_refused_at_once(tmp_path: Path, option: str) -> None:
    def take(size: int) -> RunFolder:
        place = tmp_path / "new" / ("x" * (size - 4) + ".csv")
        return RunFolder.take(place) if option == "-o" else RunFolder.take(tmp_path / "a.csv", {option: place})

    for size in (227, 240, 251, 255):
        with pytest.raises(ProjectError, match=rf"shorter name after {option}, .* whose name has {size}\."):
            take(size)
        assert names(tmp_path) == []
    with take(226):
        pass
    work(tmp_path / ("ä" * 111 + ".csv"))


# --- whose it is ---


def test_a_second_run_with_one_output_is_refused_by_name(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        message = rf"^{re.escape(str(output))} is being written by process {holder.pid} since {since}\. Wait for it, or"
        for _ in range(2):
            with pytest.raises(ProjectError, match=message):
                work(output)
        with pytest.raises(ProjectError, match=message):
            work(output, fresh=True)
        work(tmp_path / "other.csv")  # another output in the same folder
        holder.kill()
    assert work(output) == 2
    assert names(tmp_path) == ["other.csv", "out.csv"]
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()


@pytest.mark.parametrize("option", ["--embeddings", "--sort-into"])
def test_two_runs_share_nothing_that_they_write(tmp_path: Path, option: str) -> None:
    shared = tmp_path / "new" / "shared.parquet"
    message = rf"^{re.escape(str(shared))} is being written by process {os.getpid()} since .* with {option}\.$"
    stop(tmp_path / "b.csv")
    with RunFolder.take(tmp_path / "a.csv", {option: shared}):
        with pytest.raises(ProjectError, match=message):
            RunFolder.take(tmp_path / "b.csv", {option: shared})
        with pytest.raises(ProjectError, match="is being written by process"):
            RunFolder.take(shared)
    assert names(shared.parent) == []
    assert work(tmp_path / "b.csv") == 12, "what is refused keeps its rows"


def test_a_killed_run_holds_nothing_and_the_rows_of_another_one_stay(tmp_path: Path) -> None:
    """Its folder is there with an unlocked lock; a stopped run's folder has rows, too."""
    shared = tmp_path / "shared.parquet"
    run_folder(shared).mkdir()
    (run_folder(shared) / "lock").write_text("process 1 since then\n")
    with RunFolder.take(tmp_path / "a.csv", {"--embeddings": shared}):
        pass
    assert names(tmp_path) == []
    stop(shared)
    with RunFolder.take(tmp_path / "a.csv", {"--embeddings": shared}):
        pass
    assert work(shared) == 12


def test_a_folder_that_goes_while_it_is_taken_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the lock and taking it, the run that had it ends."""
    from pipeline.inference.output import folder

    output = tmp_path / "out.csv"
    first = RunFolder.take(output)
    lock = folder.lock

    def late(descriptor: int, path: Path) -> bool:
        monkeypatch.setattr(folder, "lock", lock)
        first.__exit__(None, None, None)
        return lock(descriptor, path)

    monkeypatch.setattr(folder, "lock", late)
    with RunFolder.take(output) as run:
        assert run.path.is_dir()
        with pytest.raises(ProjectError, match="is being written by process"):
            RunFolder.take(output)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_locks_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    output = tmp_path / "out.csv"
    message = r"Expected a file system that locks .* Received: (.*): {}\. Write to a folder on another disk"
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        with pytest.raises(ProjectError, match=message.format(os.strerror(number))) as caught:
            RunFolder.take(output)
    assert str(output) in str(caught.value)
    assert names(tmp_path) == []
    stop(output)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fcntl", None)
        with pytest.raises(ProjectError, match=message.format(".*fcntl.*")):
            work(output)
    assert work(output) == 12


def refusals(folder: Path, elsewhere: Path) -> dict[str, str]:
    """Make what is no folder of ours; give what is said about it."""
    kind = folder.parent.name
    if kind == "link":
        folder.symlink_to(elsewhere)
        return {"received": "a symbolic link"}
    if kind == "dangling":
        folder.symlink_to(elsewhere / "none")
        return {"received": "a symbolic link"}
    if kind == "file":
        folder.write_text("mine")
        return {"received": "no folder"}
    folder.mkdir()
    if kind == "foreign":
        (folder / "thesis.txt").write_text("mine")
        return {"received": "a folder with 'thesis.txt', which no run makes"}
    if kind == "alike":
        (folder / "000000.csv").write_text("mine")
        return {"received": "a folder that no run made"}
    (folder / "lock").write_text("")
    if kind == "inputs":
        (folder / "inputs").mkdir()
        (folder / "inputs" / "plan").write_text("mine or a run's")
        (folder / "inputs" / "stdin-thesis.txt").write_text("mine")
        return {"received": "a folder with 'inputs/stdin-thesis.txt', which no run makes"}
    (folder / "000000.part").symlink_to(elsewhere / "victim")
    return {"received": "a folder with '000000.part', which no run makes"}


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "foreign", "alike", "planted", "inputs"])
def test_what_is_no_folder_of_ours_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "victim").write_text("mine")
    output = tmp_path / kind / "out.csv"
    output.parent.mkdir()
    said = refusals(run_folder(output), elsewhere)["received"]
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for fresh in (False, True):
        with pytest.raises(ProjectError, match=rf"Received: {re.escape(said)}\. Move it away, or name another"):
            work(output, fresh=fresh)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert (elsewhere / "victim").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives a folder to another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = stop(tmp_path / "out.csv")
    os.chown(folder, 12345, -1)
    with pytest.raises(ProjectError, match="Received: a folder of another user"):
        work(tmp_path / "out.csv")


@pytest.mark.skipif(os.name == "nt", reason="has no modes")
def test_nobody_else_reads_a_run(tmp_path: Path) -> None:
    folder = stop(tmp_path / "out.csv")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in folder.glob("0*")} == {0}


def test_a_link_that_comes_later_is_not_followed(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    (tmp_path / "victim").write_text("mine")
    with RunFolder.take(output) as run:
        run.begin({}, 23, 10, spec_of(output))
        (run.path / "000000.part").symlink_to(tmp_path / "victim")
        with pytest.raises(OSError, match=r"symbolic links|Too many levels"):
            run.write(batch(0, 2))
    assert (tmp_path / "victim").read_text() == "mine"


def test_an_output_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out.csv").symlink_to(tmp_path / "victim")
    work(tmp_path / "out.csv")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "out.csv").is_symlink()


def test_what_somebody_puts_beside_the_inputs_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "out.csv"
    with RunFolder.take(output) as run:
        (run.inputs / "plan").write_text("x")
        run.begin({}, 1, 10, spec_of(output))
        run.write(batch(0, 1))
        (run.inputs / "thesis.txt").write_text("mine")
        run.finish()
    assert "is complete; remove" in caplog.text
    assert names(run.inputs) == ["thesis.txt"]


# --- several processes ---

WORKER = """
import sys
from pathlib import Path
from pipeline.inference.output.run import open_worker
from tests.pipeline.inference.output.made_runs import batches
with open_worker(Path(sys.argv[1])) as worker:
    for number in map(int, sys.argv[2:]):
        for rows in batches(worker.claim(number), 2, True):
            worker.write(rows)
"""


def test_several_processes_write_shards_of_one_run(tmp_path: Path) -> None:
    work(tmp_path / "one.csv", embeddings=True)
    expected = finals(tmp_path / "one.csv")
    output = tmp_path / "two" / "one.csv"
    with RunFolder.take(output) as run:
        run.begin({}, 23, 10, spec_of(output, True))
        run.write(batch(0, 2, True))
        with open_worker(run.path) as worker:
            with pytest.raises(ProjectError, match="Expected no other process at rows 0 to 9"):
                worker.claim(0)
            assert worker.claim(2).next == 20
            worker.write(batch(20, 2, True))
        run.write(batch(10, 2, True))  # closes the first shard, which others may go on with now
        commands = [[sys.executable, "-c", WORKER, str(run.path), *numbers] for numbers in (["2"], ["0"])]
        workers = [subprocess.Popen(command, cwd=ROOT) for command in commands]
        assert [worker.wait() for worker in workers] == [0, 0]
        assert run.done == 15
        for rows in batches(run.unfinished()[0], 2, True):
            run.write(rows)
        assert run.counts() == {"ok": 19, "damaged": 4}
        run.finish()
    assert finals(output) == expected


def test_a_shard_that_is_finished_while_it_is_claimed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.inference.output import shards

    output = tmp_path / "out.csv"
    with RunFolder.take(output) as run:
        run.begin({}, 4, 4, spec_of(output))
        run.write(batch(0, 2))
        lock = shards.lock

        def late(descriptor: int, path: Path) -> bool:
            monkeypatch.setattr(shards, "lock", lock)
            run.write(batch(2, 2))  # the last rows: sealed, and its lock given back
            return lock(descriptor, path)

        with open_worker(run.path) as worker:
            monkeypatch.setattr(shards, "lock", late)
            assert worker.claim(0).next == 4
        run.finish()
    assert output.read_bytes().count(b".png") == 4


def test_a_worker_needs_a_run_that_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    folder = stop(output)
    with pytest.raises(ProjectError, match="Received: none; the run has ended"):
        open_worker(folder)
    with RunFolder.take(output) as run:
        run.begin({"model": "a"}, 23, 10, spec_of(output))
        worker = open_worker(folder)
        worker.claim(1)
        with pytest.raises(ProjectError, match="Expected no other process at rows 10 to 19"):
            run.write(batch(12, 2))
    with pytest.raises(ProjectError, match="Received: none; the run has ended"):
        worker.claim(2)
    assert work(output) == 12


def test_rows_of_a_process_that_still_writes_are_not_dropped(tmp_path: Path) -> None:
    """Its parent was killed, and the next run is of another model."""
    output = tmp_path / "out.csv"
    folder = stop(output)
    with RunFolder.take(output) as run:
        run.begin({"model": "a"}, 23, 10, spec_of(output))
        orphan = open_worker(folder)
        orphan.claim(1)
    with pytest.raises(ProjectError, match=r"Expected no other process in .* still writes 000001"):
        work(output, identity="b")
    with pytest.raises(ProjectError, match="Expected no other process at rows 10 to 19"):
        work(output)
    orphan.write(batch(12, 2))
    orphan.close()
    assert work(output) == 14


def test_a_damaged_image_that_has_an_answer_is_counted_as_damaged(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with RunFolder.take(output) as run:
        run.begin({}, 1, 1, spec_of(output))
        run.write(Rows(0, [Row("a", "damaged", ("x",), (0.5,), "kept", 3, 4)]))
        assert run.counts() == {"damaged": 1}
        run.finish()
    made = {
        "path": "a",
        "status": "damaged",
        "class": "x",
        "probability": 0.5,
        "error": "kept",
        "width": 3,
        "height": 4,
    }
    assert output.read_text() == json.dumps(made) + "\n"
