"""Batch sizes and waiting times come from the benchmark of these very bytes, within the engine's profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.tensorrt.sidecar import BatchProfile
from pipeline.artifacts.paths import BENCHMARK, Artifacts
from pipeline.serving.select_model import Selection
from pipeline.triton.batching import Batching, find_batching
from pipeline.workflow.context import Context
from tests.pipeline.triton.recipes import FP32, make_context, make_recipe, timed_row, write_benchmark, write_engine

MEASURED = (timed_row(1, 2.0), timed_row(8, 4.0), timed_row(32, 20.0))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return make_recipe(tmp_path)


def batching(context: Context, batch_size: int = 64) -> Batching:
    choice = Selection(FP32, context.root / FP32, "onnxruntime", "fp32", "pass")
    return find_batching(Artifacts(context.root), choice, batch_size)


def numbers(found: Batching) -> tuple[int, int, int]:
    return found.largest.value, found.preferred.value, found.delay.value


def test_the_size_with_the_most_images_a_second_is_preferred(context: Context) -> None:
    write_benchmark(context, FP32, MEASURED, cpu="AMD EPYC")
    found = batching(context)
    assert numbers(found) == (64, 8, 2000)
    assert found.largest.source == "the recipe's infer.batch_size, at most 256"
    assert found.preferred.source == "2,000 images/s, the most in the benchmark on AMD EPYC, 2 cores"
    assert found.delay.source == "2 ms, which an image alone takes, within 100 to 5,000 microseconds"


def test_a_size_that_is_not_taken_is_not_preferred(context: Context) -> None:
    write_benchmark(context, FP32, MEASURED)
    assert numbers(batching(context, batch_size=7)) == (7, 1, 0)


def test_onnx_runtime_gets_no_more_at_once_than_it_does_here(context: Context) -> None:
    assert batching(context, batch_size=4096).largest.value == 256


@pytest.mark.parametrize(("alone", "delay"), [(0.01, 100), (0.7, 700), (80.0, 5000)])
def test_a_request_waits_as_long_as_an_image_takes_within_limits(context: Context, alone: float, delay: int) -> None:
    write_benchmark(context, FP32, [timed_row(1, alone), timed_row(16, alone)])
    assert numbers(batching(context)) == (64, 16, delay)


def test_nothing_waits_where_single_images_are_fastest(context: Context) -> None:
    write_benchmark(context, FP32, [timed_row(1, 1.0), timed_row(8, 9.0)])
    found = batching(context)
    assert numbers(found) == (64, 1, 0)
    assert found.delay.source == "no batch is faster than single images"


def test_without_a_time_of_a_single_image_the_default_holds(context: Context) -> None:
    write_benchmark(context, FP32, [timed_row(8, 9.0)])
    assert numbers(batching(context)) == (64, 8, 500)


def test_an_engine_keeps_to_its_profile(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    name = write_engine(context)
    choice = Selection(name, context.root / name, "tensorrt", "fp16", "pass", BatchProfile(1, 4, 16))
    found = find_batching(Artifacts(context.root), choice, batch_size=999)
    assert numbers(found) == (16, 4, 500)
    assert found.preferred.source == "opt of the engine's profile: there is no benchmark of the recipe"
    rows = [timed_row(size, 1.0, name, "tensorrt") for size in (1, 8, 16, 64)]  # 64 in four pieces
    write_benchmark(context, name, rows)
    found = find_batching(Artifacts(context.root), choice, batch_size=999)
    assert numbers(found) == (16, 16, 1000)
    assert found.largest.source == "max of the engine's profile, the largest batch that it takes"


def test_a_benchmark_of_other_bytes_does_not_count(context: Context) -> None:
    write_benchmark(context, FP32, MEASURED)
    (context.root / FP32).write_bytes(b"other")
    found = batching(context)
    assert numbers(found) == (64, 8, 500)
    assert found.delay.source == "default: the benchmark timed another file than this one"


def test_a_benchmark_that_was_edited_does_not_count(context: Context) -> None:
    write_benchmark(context, FP32, MEASURED)
    path = context.root / BENCHMARK
    path.write_text(path.read_text().replace("20.0", "2.00"))
    assert batching(context).preferred.source == "default: the benchmark was altered since it ran"


def test_another_backend_was_not_timed(context: Context) -> None:
    write_benchmark(context, FP32, [timed_row(8, 1.0, backend="onnxruntime-cuda")])
    assert batching(context).preferred.source == "default: the benchmark did not time it"


def test_without_a_benchmark_the_defaults_hold(context: Context) -> None:
    found = batching(context)
    assert numbers(found) == (64, 8, 500)
    assert found.preferred.source == "default: there is no benchmark of the recipe"
    assert numbers(batching(context, batch_size=3)) == (3, 3, 500)


def test_nothing_waits_where_a_single_image_is_preferred_unmeasured(context: Context, tmp_path: Path) -> None:
    assert numbers(batching(context, batch_size=1)) == (1, 1, 0)
    choice = Selection("e.plan", tmp_path / "e.plan", "tensorrt", "fp16", "pass", BatchProfile(1, 1, 8))
    found = find_batching(Artifacts(context.root), choice, batch_size=999)
    assert numbers(found) == (8, 1, 0)
    assert found.delay.source == "single images are preferred, which wait for no others"


@pytest.mark.parametrize("profile", [(1, 1, 1), (1, 2, 3), (1, 8, 8), (1, 4, 64)])
@pytest.mark.parametrize("timed", [(), (1, 2, 4, 8, 64, 128)])
@pytest.mark.parametrize("batch_size", [1, 5, 4096])
def test_no_number_is_beyond_the_engines_profile(
    tmp_path: Path, profile: tuple[int, int, int], timed: tuple[int, ...], batch_size: int
) -> None:
    context = make_context(tmp_path)
    name = write_engine(context, sizes=profile)
    if timed:
        write_benchmark(context, name, [timed_row(size, 1.0, name, "tensorrt") for size in timed])
    choice = Selection(name, context.root / name, "tensorrt", "fp16", "pass", BatchProfile(*profile))
    found = find_batching(Artifacts(context.root), choice, batch_size)
    assert found.largest.value == profile[2]
    assert 1 <= found.preferred.value <= profile[2]
