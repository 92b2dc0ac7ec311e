"""Timed rows on the fake GPU: what they are, and why some have no times."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import timings
from benchmarks.gpu.timings import _streamed, time_engines, why_without_peers
from pipeline.artifacts.gpu_evidence import Measures, TimedRow
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.fakes.engine import install, make_plan, pixels
from tests.fakes.gpu import FakeTensorRT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    monkeypatch.setattr(timings, "MOST_STREAMED", 5)
    return install(monkeypatch)


@pytest.fixture
def plans(tmp_path: Path) -> dict[str, Path]:
    return {one: make_plan(tmp_path / f"{one}-throughput.plan", precision=one) for one in ("fp16", "int8")}


def timed(plans: dict[str, Path], measures: Measures, batch: int = 4) -> list[TimedRow]:
    return time_engines(plans, pixels(3), "throughput", batch, measures, 0.001)


@pytest.mark.parametrize(
    ("measures", "batches", "graphs"),
    [("compute", 1, [True] * 2), ("infer", 1, [True, False] * 2), ("stream", 5, [None] * 2),
     ("stream pinned", 5, [None] * 2)],
)  # fmt: skip
def test_every_row_says_what_it_is(
    measures: Measures, batches: int, graphs: list[bool | None], plans: dict[str, Path], gpu: FakeTensorRT
) -> None:
    rows = timed(plans, measures)
    assert [row.graphs for row in rows] == graphs
    assert {row.precision for row in rows} == {"fp16", "int8"}
    assert {(row.batch, row.batches, row.measures, row.error) for row in rows} == {(4, batches, measures, "")}
    assert all(row.n >= 10 and row.p50_ms for row in rows)
    for row in rows:
        assert row.p50_ms is not None
        assert row.images_per_second == pytest.approx(4 * batches * 1000 / row.p50_ms, rel=1e-3), "milliseconds a call"
    assert gpu.runtime.live == 0


def test_engines_take_turns_except_from_page_locked_memory(
    plans: dict[str, Path], gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, most = [0], [0]
    enter, leave = TensorRTRunner.__enter__, TensorRTRunner.__exit__

    def count_in(runner: TensorRTRunner) -> TensorRTRunner:
        opened[0] += 1
        most[0] = max(most[0], opened[0])
        return enter(runner)

    def count_out(runner: TensorRTRunner, *exc: object) -> None:
        opened[0] -= 1
        leave(runner, *exc)

    monkeypatch.setattr(TensorRTRunner, "__enter__", count_in)
    monkeypatch.setattr(TensorRTRunner, "__exit__", count_out)
    for measures, together in (("stream", 2), ("stream pinned", 1)):
        most[0] = 0
        timed(plans, measures)  # type: ignore[arg-type]
        assert most == [together]


def test_an_engine_that_fails_leaves_the_others(plans: dict[str, Path], gpu: FakeTensorRT) -> None:
    plans["int8"].write_bytes(b"other")
    rows = {row.precision: row for row in timed(plans, "compute")}
    assert rows["fp16"].p50_ms is not None
    assert "is not loaded" in rows["int8"].error
    gpu.fail = "execute_async_v3"
    assert all("execute_async_v3 said no" in row.error for row in timed({"fp16": plans["fp16"]}, "compute"))


def test_another_batch_than_asked_for_is_said(plans: dict[str, Path], gpu: FakeTensorRT) -> None:
    for batch in (3, 8):
        (row,) = timed({"fp16": plans["fp16"]}, "compute", batch=batch)
        assert row.error == "it runs batches of 4 at most here"


def test_a_streamed_call_holds_many_batches_within_a_gibibyte() -> None:
    photo = np.zeros((1, 224, 224, 3), np.uint8)
    assert [_streamed(photo, batch) for batch in (1, 64, 256, 1024, 4096)] == [32, 32, 27, 6, 4]


def test_a_refused_graph_does_not_touch_streams(
    plans: dict[str, Path], gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorRTRunner, "graph_refusals", {4: "it says no"})
    words = "no CUDA graph was made for batches of 4: it says no"
    assert [row.error for row in timed({"fp16": plans["fp16"]}, "infer")] == [words, ""]
    assert [row.error for row in timed({"fp16": plans["fp16"]}, "compute")] == [words]
    assert [row.error for row in timed({"fp16": plans["fp16"]}, "stream")] == [""]


def test_why_pytorch_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    assert why_without_peers(tmp_path / "model.onnx") == "onnx not installed"
    there.add("onnx")
    missing = tmp_path / "export" / "model.onnx"
    assert why_without_peers(missing) == "it needs export/model.onnx, which is not there"
    missing.parent.mkdir()
    missing.write_bytes(b"")
    assert why_without_peers(missing) == ""
