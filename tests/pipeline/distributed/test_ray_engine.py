"""``infer --engine ray`` on a cluster of two worker processes: the rows of `infer`, each once, whoever is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if importlib.util.find_spec("ray") is None:  # not imported: it reads its environment then
    pytest.skip("Ray is not installed: make install-distributed", allow_module_level=True)

from export.errors import ProjectError
from export.files import ROOT
from pipeline.artifacts.paths import CARD as CARD_FILE
from pipeline.cli import infer as verb
from pipeline.cli.verbs import build_parser
from pipeline.distributed.ray_engine import explained
from pipeline.inference.infer import infer
from pipeline.recipe.schema import Infer
from tests.pipeline.distributed.ray_runs import card_file, request, run, slow
from tests.pipeline.inference.deployments import CARD, make_deployment, make_photos

pytestmark = pytest.mark.distributed
DEADLINE = 90.0  # seconds


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"{what}: not within {DEADLINE:.0f} s")


def rows_of(folder: Path) -> pa.Table:
    return pq.read_table(folder).sort_by("row")


def committed(output: Path) -> list[Path]:
    folder = output.with_name(output.name + ".run") / "checkpoint"
    return sorted(path for path in folder.glob("*.parquet") if not path.stem.endswith(".pending"))


def processes(name: str, parent: int) -> list[int]:
    """The processes of a name in the session of another one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if name in command and os.getsid(int(folder.name)) == parent:
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def on_the_loopback_address() -> Iterator[None]:
    """What Ray reads when it is imported; one token for every cluster, and none in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (
            ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"),
            ("RAY_USAGE_STATS_ENABLED", "0"),
            ("RAY_AUTH_MODE", "token"),
            ("RAY_AUTH_TOKEN", secrets.token_hex(32)),
        ):
            patch.setenv(key, value)
        yield


def test_a_full_disk_is_said_in_a_line_and_not_by_the_traceback_of_a_worker(tmp_path: Path) -> None:
    from ray.exceptions import RayTaskError, UserCodeException

    full = OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    advised = OSError(28, full.strerror, "Failed to apply UDF transform after 1/1 attempts\nTo change retry attempts")
    wrapped = UserCodeException("in a worker")
    wrapped.__cause__ = full
    for told in (full, advised, wrapped):
        error = RayTaskError("write", "Traceback (most recent call last):\n  ...", told).as_instanceof_cause()
        said = explained(error, tmp_path)
        assert isinstance(said, OSError)
        assert str(said) == f"[Errno 28] No space left on device: {str(tmp_path)!r}"


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 3)
    began = time.monotonic()
    for address in ("127.0.0.1:1", "127.0.0.1:99999"):
        with pytest.raises(ProjectError, match=rf"^Expected a cluster of Ray at {address}\. Received: "):
            run(tmp_path, request([tmp_path / "photos"], tmp_path / "out"), _refuse, address)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out.run").exists()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Start runs over 64 photos as commands, with so many seconds for each part."""
    make_photos(tmp_path / "photos", 64)
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        words = [tmp_path, tmp_path / "photos", tmp_path / "out", seconds]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.distributed.ray_runs", *map(str, words)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def calls(folder: Path) -> list[int]:
    return [int(line.split()[0]) for line in (folder / "calls").read_text().splitlines()]


def test_the_rows_are_those_of_infer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = make_photos(Path("photos"), 20)
    photos[3].write_bytes(b"no image")
    photos[5].write_bytes(photos[5].read_bytes()[:300])
    os.link(photos[0], b"photos/caf\xe9.png")
    with tarfile.open("shard.tar", "w") as tar:
        for photo in photos[:6]:
            entry = tarfile.TarInfo(f"in-{photo.name}")
            entry.size = photo.stat().st_size
            tar.addfile(entry, io.BytesIO(photo.read_bytes()))
    pq.write_table(pa.table({"image": [photo.read_bytes() for photo in photos[:7]]}), "data.parquet")
    inputs = ["photos", "shard.tar", "nowhere.png", "data.parquet"]
    deployment = make_deployment(tmp_path)
    infer(request(inputs, Path("here.parquet")), card_file(tmp_path), CARD, lambda size: deployment.choice, quiet=True)
    result = run(tmp_path, request(inputs, Path("out")), lambda size: deployment)
    expected, rows = pq.read_table("here.parquet"), rows_of(Path("out"))
    assert rows["row"].to_pylist() == list(range(expected.num_rows))
    assert rows.drop_columns("row").equals(expected)
    failed = [status for status in expected["status"].to_pylist() if status != "ok"]
    assert (result.images, result.failed, result.continued) == (35, len(failed), 0)
    assert result.statuses["missing"] == 1
    assert b"photos/caf\xe9.png" in rows["path_bytes"].to_pylist()
    assert not Path("out.run").exists()


def test_the_verb_writes_a_folder_and_says_what_infer_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    photos = make_photos(tmp_path / "photos", 12)
    photos[1].write_bytes(b"no image")
    card = tmp_path / CARD_FILE
    card.parent.mkdir()
    card.write_text("of the model")
    invocation = SimpleNamespace(completing_errors=contextlib.nullcontext)
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(infer=Infer()), root=tmp_path, card=lambda: CARD, invocation=invocation
    )
    asked: list[dict[str, Any]] = []

    def deploy(context: object, **options: Any) -> Any:
        asked.append(options)
        return make_deployment(tmp_path, batch_size=options["batch_size"], top_k=options["top_k"])

    monkeypatch.setattr(verb, "deploy", deploy)
    options = [
        "--engine",
        "ray",
        "--workers",
        "2",
        "-o",
        str(tmp_path / "answers"),
        "--top-k",
        "1",
        "--batch-size",
        "4",
    ]
    args = build_parser().parse_args(["infer", str(tmp_path / "photos"), *options, "--precision", "fp32", "--quiet"])
    with caplog.at_level("INFO"):
        summary = verb.infer_images(args, context)
    assert (summary["images"], summary["failed"], summary["workers"], summary["exit"]) == (12, 1, 2, 3)
    assert summary["statuses"] == {"ok": 11, "not_an_image": 1}
    assert (
        f"{tmp_path / 'answers'}: 12 images, 1 of them failed (1 not_an_image), classified by export/mo" in caplog.text
    )
    assert f"{photos[1]}: not an image" in caplog.text
    assert rows_of(tmp_path / "answers").num_rows == 12
    assert (asked[0]["precision"], asked[0]["batch_size"], len(asked)) == ("fp32", 4, 1)


def test_a_killed_worker_loses_no_row_and_doubles_none(
    tmp_path: Path, command: Callable[[float], subprocess.Popen[str]]
) -> None:
    process = command(0.3)
    wait_for(lambda: len(committed(tmp_path / "out")) >= 2, "two parts")
    worker = wait_for(lambda: processes("MapWorker(MapBatches(Classifier", process.pid), "a worker")[0]
    os.kill(worker, signal.SIGKILL)
    said, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, said) == (0, "64 0\n")
    rows = rows_of(tmp_path / "out")
    assert rows["row"].to_pylist() == list(range(64))
    assert set(rows["status"].to_pylist()) == {"ok"}
    assert len({line.split()[1] for line in (tmp_path / "calls").read_text().splitlines()}) >= 3, "one was replaced"


def test_a_killed_driver_goes_on_and_does_nothing_twice(
    tmp_path: Path, command: Callable[[float], subprocess.Popen[str]]
) -> None:
    process = command(0.3)
    wait_for(lambda: len(committed(tmp_path / "out")) >= 2, "two parts")
    process.kill()
    process.wait()
    wait_for(lambda: not processes("ray::MapWorker", process.pid), "the end of its workers")
    names = [path.stem for path in committed(tmp_path / "out")]
    kept = pa.concat_tables([pq.read_table(path) for path in committed(tmp_path / "out")])["row"].to_pylist()
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.run" / "parts").iterdir()}
    assert 0 < len(kept) < 64
    (tmp_path / "calls").unlink()
    again = command(0.0)
    said, _ = again.communicate(timeout=DEADLINE)
    assert (again.returncode, said) == (0, f"64 {len(kept)}\n")
    assert rows_of(tmp_path / "out")["row"].to_pylist() == list(range(64))
    assert sorted(calls(tmp_path)) == sorted(set(range(64)) - set(kept))
    for name in names:
        assert (tmp_path / "out" / f"{name}-0.parquet").stat().st_mtime_ns == parts[f"{name}-0.parquet"]


def test_ctrl_c_leaves_what_can_be_continued_and_no_process(
    tmp_path: Path, command: Callable[[float], subprocess.Popen[str]]
) -> None:
    process = command(0.3)
    wait_for(lambda: committed(tmp_path / "out"), "a part")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert f"of 64 rows are kept in {tmp_path / 'out.run'}: the same command continues." in said
    wait_for(lambda: not processes("ray", process.pid), "the end of every process of Ray")
    assert (tmp_path / "out.run" / "run.json").is_file()


def test_a_killed_head_ends_the_run_with_a_word_and_loses_no_row(
    tmp_path: Path, command: Callable[[float], subprocess.Popen[str]]
) -> None:
    process = command(0.3)
    wait_for(lambda: committed(tmp_path / "out"), "a part")
    for head in processes("gcs_server", process.pid):
        os.kill(head, signal.SIGKILL)
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2, "Ray itself ends the process with 1, and says nothing"
    assert said.startswith("Expected a cluster of Ray of this machine that stays. Received: none any more")
    assert f"of 64 rows are kept in {tmp_path / 'out.run'}: the same command continues." in said
    again = command(0.0)
    said, _ = again.communicate(timeout=DEADLINE)
    assert again.returncode == 0
    assert rows_of(tmp_path / "out")["row"].to_pylist() == list(range(64))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that is there, on the loopback address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [*("-m", "ray.scripts.scripts", "start", "--head", "--block"), f"--port={port}", "--num-cpus=4"]
    words += ["--include-dashboard=false", "--disable-usage-stats", f"--object-store-memory={2**27}"]
    folder = tmp_path_factory.mktemp("cluster")
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, *words], cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "log").read_text(), "the cluster")
        yield f"127.0.0.1:{port}"
    finally:
        for process in [head.pid, *processes("ray", head.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        head.wait()


def _deploy(size: int, folder: Path) -> Any:
    return slow(make_deployment(folder), folder / "calls", 0.0)


def _refuse(size: int) -> Any:
    raise ProjectError("Expected a model. Received: none. Make one.")


def test_a_cluster_that_is_there_selects_and_answers_and_stays(tmp_path: Path, cluster: str) -> None:
    photos = make_photos(tmp_path / "photos", 10)
    asked = request([tmp_path / "photos"], tmp_path / "out")
    result = run(tmp_path, asked, partial(_deploy, folder=tmp_path), cluster)
    assert (result.images, result.failed) == (len(photos), 0)
    assert rows_of(tmp_path / "out")["row"].to_pylist() == sorted(calls(tmp_path)) == list(range(10))
    with pytest.raises(ProjectError, match=r"^Expected a model\. Received: none\. Make one\.$"):
        run(tmp_path, asked, _refuse, cluster)
    with pytest.raises(ProjectError, match=r"at most 3 after --workers\. Received: 9"):
        run(tmp_path, asked, partial(_deploy, folder=tmp_path), cluster, workers=9)


def test_another_file_than_the_selected_one_answers_nowhere(tmp_path: Path, cluster: str) -> None:
    make_photos(tmp_path / "photos", 3)
    deployment = replace(make_deployment(tmp_path), digest="0" * 64)
    with pytest.raises(ProjectError, match=r"as it was when it was selected, sha256 000000000000\. Received: "):
        run(tmp_path, request([tmp_path / "photos"], tmp_path / "out"), partial(_same, deployment=deployment), cluster)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


def _same(size: int, deployment: Any) -> Any:
    return deployment
