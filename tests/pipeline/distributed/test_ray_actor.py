"""A worker without a cluster: the rows that it gives, what it misses, and calls elsewhere."""

from __future__ import annotations

import logging
import pickle
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from export.errors import ProjectError
from pipeline.distributed.cluster import Cluster, require_ray
from pipeline.distributed.parts import ROW, part_ranges
from pipeline.distributed.ray_actor import Classifier, Work
from pipeline.distributed.remotely import Call
from pipeline.inference.inputs.make_plan import make_plan
from pipeline.inference.output.parquet import rows_as_table
from tests.pipeline.inference.deployments import make_deployment, make_photos


@pytest.fixture
def work(tmp_path: Path) -> Work:
    make_photos(tmp_path / "photos", 6)
    plan = make_plan([str(tmp_path / "photos")], [], tmp_path / "plan")
    return Work(make_deployment(tmp_path), plan.file, tmp_path, (), 2)


def test_a_worker_gives_the_rows_of_its_numbers_in_order(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work.folder)
    classify = Classifier(pickle.loads(pickle.dumps(work)))
    table = classify(pa.table({ROW: [5, 0, 2, 1]}))
    assert table[ROW].to_pylist() == [0, 1, 2, 5]
    with work.deployment.open() as here:
        photos = sorted((work.folder / "photos").iterdir())
        expected = rows_as_table(here.files([photos[row] for row in (0, 1, 2, 5)]), 2)
    assert table.drop_columns(ROW).equals(expected)


@pytest.mark.parametrize("missing", ["folder", "plan", "files"])
def test_a_worker_that_does_not_see_a_file_says_which(
    work: Work, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    without = replace(work, **{missing: (gone,) if missing == "files" else gone})  # type: ignore[arg-type]
    text = f"Expected {gone} on every machine of the cluster. Received: nothing there on {platform.node()}."
    with pytest.raises(ProjectError, match=re.escape(text)):
        Classifier(without)(pa.table({ROW: [0]}))


def test_parts_are_whole_batches_and_the_last_takes_the_rest() -> None:
    assert part_ranges(10, 4) == [(0, 4), (4, 10)]
    assert part_ranges(8, 4) == [(0, 4), (4, 8)]
    assert part_ranges(3, 4) == [(0, 3)]


def test_what_is_logged_and_raised_elsewhere_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("pipeline.somewhere")

    def answer(fails: bool) -> Path:
        log.warning("%s is slow", "it")
        if fails:
            raise ProjectError("Expected more.")
        return Path.cwd()

    result, records, error = Call(lambda: answer(False), tmp_path).run()
    assert (result, [record.getMessage() for record in records], error) == (tmp_path, ["it is slow"], None)
    result, records, error = Call(lambda: answer(True), tmp_path).run()
    assert (result, len(records), str(error)) == (None, 1, "Expected more.")


@pytest.mark.parametrize(
    ("cluster", "asked", "workers"),
    [
        (Cluster(2, 0, True), None, 1),
        (Cluster(2, 0, True), 4, 4),
        (Cluster(16, 0, False), None, 8),
        (Cluster(1, 0, False), None, 1),
        (Cluster(64, 8, False), None, 8),
        (Cluster(64, 8, False), 3, 3),
    ],
)
def test_workers_by_default(cluster: Cluster, asked: int | None, workers: int) -> None:
    assert cluster.workers(asked) == workers


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(ProjectError, match=r"at most 8 after --workers\. Received: 9; the cluster has 8 GPUs"):
        Cluster(64, 8, False).workers(9)


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ProjectError, match=r"Expected the package ray for --engine ray.*`make install-distributed`"):
        require_ray()
