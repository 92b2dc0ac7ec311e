"""Execution contexts as each TensorRT wants them: their profile, their memory, their kernels, and graphs that fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.errors import OutOfMemoryError, RunnerError
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.tensorrt import cuda_graphs, engine
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.fakes.contexts import ACTIVATION_BYTES, Specialization
from tests.fakes.engine import assert_answers, install, make_plan, pixels
from tests.fakes.gpu import FakeTensorRT

EVERY = pytest.mark.parametrize("kind", ["8", "10", "rtx"])
PROFILE = (1, 4, 8)


def plan_for(folder: Path, kind: str, sizes: tuple[int, int, int] = (1, 2, 4)) -> Path:
    return make_plan(folder / "x.plan", sizes, flavour="rtx" if kind == "rtx" else "tensorrt")


def slots_bytes(batch: int) -> int:
    return 3 * batch * (4 * 5 * 3 + 2 * 3 * 4)


# --- the profile ---


@EVERY
def test_every_context_chooses_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    gpu = install(monkeypatch, kind)
    with TensorRTRunner(plan_for(tmp_path, kind), RuntimeOptions(contexts=2)) as runner:
        for _ in range(3):
            assert_answers(runner.infer(pixels(2)).logits, pixels(2))
        assert runner.graph_batches == (2,)
        assert runner.graph_refusals == {}
    assert {context.profiles_chosen for context in gpu.contexts} == {1}
    assert len(gpu.contexts) == (5 if kind == "rtx" else 3)


@EVERY
def test_a_profile_that_is_refused_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    gpu = install(monkeypatch, kind)
    gpu.fail = "set_optimization_profile_async"
    with pytest.raises(RunnerError, match=r"choosing the batch profile.*set_optimization_profile_async said no"):
        TensorRTRunner(plan_for(tmp_path, kind)).__enter__()
    assert gpu.runtime.live == 0


# --- graphs that were asked for and are not there ---


@EVERY
def test_a_graph_that_fails_can_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    gpu = install(monkeypatch, kind)
    with TensorRTRunner(plan_for(tmp_path, kind)) as runner:
        gpu.fail = "create_execution_context"
        for count in (3, 1, 3, 3, 2):
            runner.infer(pixels(count))
        assert list(runner.graph_refusals) == [3]
        runner.compute_ms(pixels(3), 2)  # another graph of the same batch size: it is said once
        runner.infer(pixels(1))
    assert list(runner.graph_refusals) == [1, 3], "it can be read when the runner is closed"
    assert "create_execution_context said no" in runner.graph_refusals[3]
    assert caplog.text.count("batches of 3 run without a CUDA graph") == 1
    gpu.fail = ""
    with runner:
        for _ in range(2):
            runner.infer(pixels(3))
    assert runner.graph_refusals == {}, "of the last opening"


def test_graphs_beyond_the_limit_and_cuda_without_graphs_are_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    plan = plan_for(tmp_path, "10")
    with TensorRTRunner(plan) as runner:
        for count in (1, 2, 3, 4) * 2 + (4,):
            runner.infer(pixels(count))
        assert (runner.graph_batches, list(runner.graph_refusals)) == ((1, 2), [3, 4])
        assert runner.graph_refusals[3].startswith("there are 2 already")
    with TensorRTRunner(plan, RuntimeOptions(cuda="pycuda")) as runner:
        for count in (1, 3, 3):
            runner.infer(pixels(count))
        assert runner.graph_refusals == {3: "PyCUDA has none; runtime.cuda: bindings has"}
    with TensorRTRunner(plan, RuntimeOptions(graphs=False)) as runner:
        for count in (3, 3):
            runner.infer(pixels(count))
        assert runner.graph_refusals == {}, "none was asked for"


# --- the memory ---


def test_rtx_gets_all_its_memory_whatever_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = install(monkeypatch, "rtx")
    gpu.runtime.total = 4 * ACTIVATION_BYTES + slots_bytes(2)
    with TensorRTRunner(plan_for(tmp_path, "rtx")) as runner:
        assert runner.max_batch == 2
        assert {context.memory[1] for context in gpu.contexts if context.memory} == {4 * ACTIVATION_BYTES}
        for count in (1, 2, 3, 2):
            assert_answers(runner.infer(pixels(count)).logits, pixels(count))
    assert "activation memory stay, whatever the batch" in caplog.text
    assert gpu.runtime.live == 0


@pytest.mark.parametrize("kind", ["8", "rtx"])
def test_memory_that_a_smaller_batch_does_not_spare_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    gpu = install(monkeypatch, kind)
    gpu.runtime.total = 4 * ACTIVATION_BYTES - 1
    with pytest.raises(OutOfMemoryError, match=r"activations of .*x\.plan: .* needs all of it for every batch size"):
        TensorRTRunner(plan_for(tmp_path, kind)).__enter__()
    assert "runs batches of" not in caplog.text
    assert gpu.runtime.calls.count("cudaMalloc") == 1
    assert gpu.runtime.live == 0


# --- the kernels of TensorRT-RTX ---


def rtx(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install(monkeypatch, "rtx", PROFILE)


def test_only_sizes_that_matter_are_compiled_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = rtx(monkeypatch)
    with TensorRTRunner(plan_for(tmp_path, "rtx", PROFILE), RuntimeOptions(graphs=False)) as runner:
        assert gpu.compiled == [8], "the largest, when it is opened"
        for count in (2, 3, 5, 6, 7, 8 + 3, 3):
            assert_answers(runner.infer(pixels(count)).logits, pixels(count))
        assert gpu.compiled == [8], "what may never come again waits for no compiler"
        for count in (1, 4):
            runner.infer(pixels(count))
        assert gpu.compiled == [8, 1, 4], "sizes that the profile names"
    assert all(config._cache is not None for config in gpu.configs)
    kernels = [context.kernels for context in gpu.contexts]
    assert kernels == [Specialization.EAGER, Specialization.NONE], "and never LAZY, which changes its answers"


def test_what_comes_again_is_compiled_for_once_with_its_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = rtx(monkeypatch)
    with TensorRTRunner(plan_for(tmp_path, "rtx", PROFILE)) as runner:
        runner.infer(pixels(3))
        assert gpu.compiled == [8]
        for _ in range(3):
            runner.infer(pixels(3))
        assert gpu.compiled == [8, 3]
        assert runner.graph_batches == (3,)


def test_a_graph_changes_no_bit_of_the_sizes_that_the_profile_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx(monkeypatch)
    plan = plan_for(tmp_path, "rtx", PROFILE)
    with TensorRTRunner(plan, RuntimeOptions(graphs=False)) as runner:
        without = {count: runner.infer(pixels(count)).logits for count in (1, 3, 4, 8)}
    with TensorRTRunner(plan) as runner:
        for count, expected in without.items():
            answers = [runner.infer(pixels(count)).logits for _ in range(4)]
            same = [answer.tobytes() == expected.tobytes() for answer in answers]
            assert same == ([True, False, False, False] if count == 3 else [True] * 4)
            assert_answers(answers[-1], pixels(count))


def test_an_engine_of_one_size_has_one_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch, "rtx", (4, 4, 4))
    with TensorRTRunner(plan_for(tmp_path, "rtx", (4, 4, 4))) as runner:
        assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert [context.kernels for context in gpu.contexts] == [Specialization.EAGER]


def test_kernels_are_kept_as_soon_as_they_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = rtx(monkeypatch)
    plan = plan_for(tmp_path, "rtx", PROFILE)
    with TensorRTRunner(plan) as runner:  # a process that is killed from here on has lost nothing
        TensorRTRunner(plan).__enter__()
        gpu.kernels = 2
        for _ in range(2):
            runner.infer(pixels(3))
        TensorRTRunner(plan).__enter__()
    assert gpu.kernels_loaded == [b"kernels of 1", b"kernels of 2"]


def test_two_runners_keep_their_kernels_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = rtx(monkeypatch)
    plan = plan_for(tmp_path, "rtx", PROFILE)
    replace, seen = os.replace, []

    def slow(source: str, target: str) -> None:
        """The first write is not over when the second one begins and ends."""
        seen.append(Path(source))
        if len(seen) == 1:
            gpu.kernels = 2
            with TensorRTRunner(plan):
                pass
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    with TensorRTRunner(plan):
        pass
    assert len(set(seen)) == len(seen) >= 2
    assert [path.read_bytes() for path in engine.cache_folder().iterdir()] == [b"kernels of 2"]


@pytest.mark.parametrize("call", ["create_runtime_cache", "set_runtime_cache"])
def test_kernels_that_cannot_be_kept_are_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    gpu, plan = rtx(monkeypatch), plan_for(tmp_path, "rtx", PROFILE)
    with TensorRTRunner(plan):
        pass
    gpu.fail = call
    with TensorRTRunner(plan) as runner:
        assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert caplog.text.count(f"kernels are compiled at every start: {call} said no") == 1


def test_rtx_that_makes_no_configuration_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = rtx(monkeypatch)
    gpu.fail = "create_runtime_config"
    with pytest.raises(RunnerError, match=r"making a runtime configuration.*create_runtime_config said no"):
        TensorRTRunner(plan_for(tmp_path, "rtx", PROFILE)).__enter__()
    assert gpu.runtime.live == 0
