"""Several GPUs: the rows of one process, whichever wrote them and whichever ended meanwhile; and no process is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from export.errors import ProjectError, RunnerError
from export.files import ROOT
from pipeline.inference import gpus
from pipeline.inference.classify import Settings, classify
from pipeline.inference.gpus import GRACE_SECONDS, divide_threads, parse_gpus, run_on_gpus
from pipeline.inference.output.run import RunFolder
from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.pace import Pace
from pipeline.inference.rows import Row
from tests.fakes.gpu_work import BATCH, FileWork, RunWork, shards, written
from tests.fakes.inference import CARD, TextReader, TextRunner, items

KINDS = tuple("missing" if n % 7 == 3 else n % 4 for n in range(70))
ONE_FOUR = (*KINDS[:16], 4, *KINDS[17:])  # in the second shard of eight rows


def expected(kinds: tuple[int | str, ...]) -> list[list[object]]:
    batches = classify(items(kinds), TextReader(), TextRunner(), CARD, Settings(BATCH, 2), Pace())
    return [
        [batch.first + n, row.path, row.status, list(row.classes), list(row.probabilities)]
        for batch in batches
        for n, row in enumerate(batch.rows)
    ]


class Counts(Counter[str]):
    def __call__(self, rows: Sequence[Row]) -> None:
        self.update(row.status for row in rows)


def run(work: FileWork, gpus: tuple[int, ...] = (0, 1), pace: Pace | None = None) -> Counts:
    counts = Counts()
    run_on_gpus(gpus, shards(len(work.kinds), work.rows), work, 3, pace or Pace(), counts)
    return counts


def wait_for_end(folder: Path, seconds: float = 10.0) -> None:
    """Wait until no process that wrote its number there runs."""
    deadline = time.monotonic() + seconds
    for path in folder.glob("process-*"):
        while is_running(int(path.read_text())):
            assert time.monotonic() < deadline, f"{path.name} is left"
            time.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_gpus_write_the_rows_of_one_process(tmp_path: Path) -> None:
    pace = Pace()
    counts = run(FileWork(tmp_path, KINDS, seconds=0.02, together=2), pace=pace)
    assert written(tmp_path) == expected(KINDS)
    assert counts == {"ok": 60, "missing": 10}
    claims = [path.read_text().split() for path in tmp_path.glob("*.claims")]
    assert all(len(claim) == 1 for claim in claims), "a shard was written by two processes"
    assert {gpu for (gpu,) in claims} == {"0", "1"}, "one GPU did nothing"
    assert [(tmp_path / f"threads-{gpu}").read_text() for gpu in (0, 1)] == ["2", "1"]
    assert [(tmp_path / f"closed-{gpu}").exists() for gpu in (0, 1)] == [True, True]
    assert pace.busy().images == 70
    assert 0.35 < pace.busy().compute < 2
    wait_for_end(tmp_path, 0.0)


def test_processes_write_the_shards_of_a_run_s_folder(tmp_path: Path) -> None:
    kinds, one, two = KINDS * 8, tmp_path / "one.csv", tmp_path / "two.csv"
    batches = list(classify(items(kinds), TextReader(), TextRunner(), CARD, Settings(BATCH, 2), Pace()))
    for output, first in ((one, batches), (two, batches[:7])):  # the other one is stopped within a shard
        with RunFolder.take(output) as folder:
            folder.begin({}, len(kinds), 2 * BATCH, OutputSpec("csv", 2))
            for batch in first:
                folder.write(batch)
            if first is batches:
                folder.finish()
    with RunFolder.take(two) as folder:
        folder.begin({}, len(kinds), 2 * BATCH, OutputSpec("csv", 2))
        counts = Counts()
        run_on_gpus((0, 1), folder.unfinished(), RunWork(folder.path, kinds), 4, Pace(), counts)
        assert counts.total() == len(kinds) - 7 * BATCH
        folder.finish()
    assert one.read_bytes() == two.read_bytes()


def test_a_shard_goes_on_where_it_was_left_and_no_more_processes_than_shards(tmp_path: Path) -> None:
    (tmp_path / "000000").write_text("".join(f"[{n}]\n" for n in range(4)))
    run(FileWork(tmp_path, KINDS[:8]), gpus=(5, 6, 7))
    assert written(tmp_path)[4:] == expected(KINDS)[4:8]
    assert [path.name for path in tmp_path.glob("process-*")] == ["process-5"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [("kill", "its process was ended by SIGKILL."), ("open", "nothing is free")],
)
def test_another_gpu_takes_over_from_one_that_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, said: str
) -> None:
    kinds = (4,) * 160  # GPU 1 fails at its first batch
    run(FileWork(tmp_path, kinds, fault, (1,), seconds=0.01, together=2))
    assert written(tmp_path) == expected(kinds)
    (message,) = caplog.messages
    assert message.startswith("GPU 1 does no more: ")
    assert said in message


def test_a_process_that_hangs_with_its_pipe_closed_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "GRACE_SECONDS", 0.2)
    kinds = (4,) * 160
    try:
        run(FileWork(tmp_path, kinds, "hang", (1,), seconds=0.01, together=2))
        assert written(tmp_path) == expected(kinds)
        (message,) = caplog.messages
        assert message.startswith("GPU 1 does no more: its process was ended by SIGKILL.")
        wait_for_end(tmp_path, 0.0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "process-1").read_text()), signal.SIGKILL)


def test_the_run_ends_where_no_gpu_is_left(tmp_path: Path) -> None:
    work = FileWork(tmp_path, ONE_FOUR, "memory", (0,))
    with pytest.raises(RunnerError, match="none is left; GPU 0: the batch does not fit"):
        run(work, gpus=(0,))
    assert written(tmp_path) == expected(ONE_FOUR)[:16], "what was finished stays"


def test_a_shard_that_ends_two_processes_ends_the_run(tmp_path: Path) -> None:
    work = FileWork(tmp_path, ONE_FOUR, "kill", (0, 1, 2), seconds=0.01, together=3)
    with pytest.raises(RunnerError, match=r"Expected rows 16 to 23 to be .* 2 processes ended .* by SIGKILL"):
        run(work, gpus=(0, 1, 2))
    wait_for_end(tmp_path, 0.0)


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ("refuse", ProjectError, "Expected another model."),
        ("disk", OSError, "No space left on device: '/full'"),
        ("bug", RuntimeError, "ZeroDivisionError: a bug"),
    ],
)
def test_an_error_that_is_not_the_gpu_s_ends_the_run(
    tmp_path: Path, fault: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        run(FileWork(tmp_path, ONE_FOUR, fault, (0,)), gpus=(0,))
    assert type(caught.value) is error
    assert said in str(caught.value)
    wait_for_end(tmp_path, 0.0)


def test_ctrl_c_ends_all_processes_and_they_close_what_they_write(tmp_path: Path) -> None:
    def interrupt(rows: Sequence[Row]) -> None:
        raise KeyboardInterrupt

    work = FileWork(tmp_path, (1,) * 4000, seconds=0.01, rows=400)
    with pytest.raises(KeyboardInterrupt):
        run_on_gpus((0, 1), shards(4000, 400), work, 2, Pace(), interrupt)
    wait_for_end(tmp_path, 0.0)
    opened = [path.name.rpartition("-")[2] for path in tmp_path.glob("process-*")]
    assert [(tmp_path / f"closed-{gpu}").exists() for gpu in opened] == [True] * len(opened)
    assert 0 < len(written(tmp_path)) < 4000


def test_a_process_that_still_opens_its_model_is_not_waited_for(tmp_path: Path) -> None:
    def interrupt(rows: Sequence[Row]) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_on_gpus((0, 1), shards(8, 4), FileWork(tmp_path, KINDS[:8], "sleep", (1,), rows=4), 2, Pace(), interrupt)
    assert time.monotonic() - began < GRACE_SECONDS
    wait_for_end(tmp_path, 0.0)


PARENT = """
import sys
from pathlib import Path
from pipeline.inference.gpus import run_on_gpus
from pipeline.inference.pace import Pace
from pipeline.inference.rows import Row
from tests.fakes.gpu_work import FileWork, shards

if __name__ == "__main__":
    work = FileWork(Path(sys.argv[1]), (1,) * 40000, seconds=0.01, rows=4000)
    run_on_gpus((0, 1), shards(40000, 4000), work, 2, Pace(), lambda rows: print("written", flush=True))
"""


def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"written\n"
        parent.send_signal(signal.SIGKILL)
    wait_for_end(tmp_path)


@pytest.mark.parametrize(
    ("text", "devices", "gpus"), [("all", 2, (0, 1)), ("1", 2, (1,)), (" 1, 0 ", 2, (1, 0)), ("all", 1, (0,))]
)
def test_gpus_are_named(text: str, devices: int, gpus: tuple[int, ...]) -> None:
    assert parse_gpus(text, devices) == gpus


@pytest.mark.parametrize(
    ("text", "devices", "said"),
    [
        ("all", 0, "Expected GPUs for --gpus all. Received: a machine without any. Leave the option out."),
        ("0,2,7", 2, "Expected --gpus with GPUs of this machine. Received: 2, 7; this machine has 2 GPUs: 0, 1."),
        ("0,0", 2, "Expected --gpus with each GPU once. Received: '0,0'."),
        ("-1", 1, 'Expected --gpus "all", or numbers as in "0,1". Received: \'-1\'; this machine has 1 GPU: 0.'),
        ("", 1, 'Expected --gpus "all", or numbers as in "0,1". Received: \'\'; this machine has 1 GPU: 0.'),
        ("0;1", 2, 'Expected --gpus "all", or numbers as in "0,1". Received: \'0;1\'; this machine has 2 GPUs: 0, 1.'),
        ("²", 3, 'Expected --gpus "all", or numbers as in "0,1". Received: \'²\'; this machine has 3 GPUs: 0, 1, 2.'),
    ],
)
def test_gpus_that_are_not_there_are_named(text: str, devices: int, said: str) -> None:
    with pytest.raises(ProjectError) as caught:
        parse_gpus(text, devices)
    assert str(caught.value) == said


@pytest.mark.parametrize(("threads", "processes", "each"), [(8, 2, (4, 4)), (7, 3, (3, 2, 2)), (2, 4, (1, 1, 1, 1))])
def test_threads_are_divided(threads: int, processes: int, each: tuple[int, ...]) -> None:
    assert divide_threads(threads, processes) == each
