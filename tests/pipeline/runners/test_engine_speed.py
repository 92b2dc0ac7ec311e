"""What makes engines fast must not change an answer: overlap, graphs, page-locked input, best classes, less memory."""

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import OutOfMemoryError, RunnerError
from export.tensorrt.library import TensorRT
from export.tensorrt.sidecar import sha256_file
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import top_k_of
from pipeline.runners.cuda import pycuda
from pipeline.runners.tensorrt import buffers, cuda_graphs, engine
from pipeline.runners.tensorrt.buffers import SLOTS, BufferRing
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.fakes.contexts import ACTIVATION_BYTES
from tests.fakes.cuda import Code
from tests.fakes.engine import assert_answers, install, make_plan, pixels
from tests.fakes.gpu import FakeTensorRT

SLOT_BYTES = 4 * (4 * 5 * 3 + 2 * 3 * 4)  # of a batch of 4: pixels, logits, probabilities


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install(monkeypatch)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return make_plan(tmp_path / "x.plan")


@pytest.mark.parametrize("cuda", ["bindings", "pycuda"])
@pytest.mark.parametrize("contexts", [1, 2, 3])
@pytest.mark.parametrize("count", [5, 12, 41])
def test_large_input_goes_through_the_ring(plan: Path, gpu: FakeTensorRT, contexts: int, count: int, cuda: Any) -> None:
    images = pixels(count)
    with TensorRTRunner(plan, RuntimeOptions(cuda=cuda, contexts=contexts)) as runner:
        assert len(gpu.contexts) == contexts
        for _ in range(3):
            assert_answers(runner.infer(images).logits, images)
    assert gpu.batches == ([4] * (count // 4) + ([count % 4] if count % 4 else [])) * 3
    assert gpu.runtime.live == 0


def test_the_uploads_run_ahead_of_the_downloads(plan: Path, gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    upload, collect = BufferRing.upload, BufferRing._collect
    monkeypatch.setattr(BufferRing, "upload", lambda *a: done.append("up") or upload(*a))
    monkeypatch.setattr(BufferRing, "_collect", staticmethod(lambda *a: done.append("down") or collect(*a)))
    with TensorRTRunner(plan) as runner:
        runner.infer(pixels(20))
    assert done == ["up"] * SLOTS + ["down", "up"] * (5 - SLOTS) + ["down"] * SLOTS


def test_the_last_piece_is_filled_up_to_the_smallest_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch, sizes=(3, 3, 4))
    images = pixels(9)
    with TensorRTRunner(make_plan(tmp_path / "x.plan", (3, 3, 4))) as runner:
        assert_answers(runner.infer(images).logits, images)
        own = runner.pinned_pixels(1)
        own[:] = images[:1]
        assert_answers(runner.infer(own).logits, images[:1])
    assert gpu.batches == [4, 4, 3, 3]


def test_large_pieces_are_copied_in_threads(plan: Path, gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_PARALLEL_BYTES", 1)
    monkeypatch.setattr(buffers.os, "cpu_count", lambda: 3)
    names = set()
    copyto = np.copyto

    def spy(*parts: Any) -> None:
        names.add(threading.current_thread().name.split("_")[0])
        copyto(*parts)

    monkeypatch.setattr(buffers.np, "copyto", spy)
    images = pixels(11)[:, ::-1]
    with TensorRTRunner(plan) as runner:
        assert_answers(runner.infer(images).logits, images)
    assert names == {"stage"}


def test_page_locked_pixels_are_not_copied(plan: Path, gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    with TensorRTRunner(plan) as runner:
        own = runner.pinned_pixels(11)
        assert (own.shape, own.dtype) == ((11, 4, 5, 3), np.uint8)
        own[:] = images = pixels(11)
        monkeypatch.setattr(BufferRing, "_copy", lambda *_: pytest.fail("pixels were copied"))
        assert_answers(runner.infer(own).logits, images)
        for _ in range(3):  # with a graph in the end
            assert_answers(runner.infer(own[2:5]).logits, images[2:5])
        monkeypatch.undo()
    assert gpu.runtime.live == 0


def test_part_of_page_locked_pixels_with_gaps_is_copied(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        own = runner.pinned_pixels(8)
        own[:] = images = pixels(8)
        assert_answers(runner.infer(own[::2]).logits, images[::2])
        with pytest.raises(RunnerError, match=r"at least 1\. Received: 0"):
            runner.pinned_pixels(0)


def test_a_batch_that_comes_again_gets_a_graph(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        for turn in range(5):
            for count in (1, 3):
                images = pixels(10 * turn + count)[:count]
                assert_answers(runner.infer(images).logits, images)
        assert gpu.runtime.calls.count("cudaGraphLaunch") == 2 * 4  # from the second request on
        assert len(gpu.contexts) == 3
        assert_answers(runner.infer(pixels(9)).logits, pixels(9))
    assert gpu.runtime.live == 0


@pytest.mark.parametrize("options", [RuntimeOptions(graphs=False), RuntimeOptions(cuda="pycuda")])
def test_no_graphs_where_none_are_wanted_or_there(plan: Path, gpu: FakeTensorRT, options: RuntimeOptions) -> None:
    with TensorRTRunner(plan, options) as runner:
        answers = [runner.infer(pixels(3)) for _ in range(4)]
    with TensorRTRunner(plan) as runner:
        with_graphs = [runner.infer(pixels(3)) for _ in range(4)]
    assert len(gpu.contexts) == 1 + 2
    for without, answer in zip(answers, with_graphs):
        assert without.logits.tobytes() == answer.logits.tobytes()
        assert without.probabilities.tobytes() == answer.probabilities.tobytes()


def test_only_so_many_graphs_are_kept(plan: Path, gpu: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    with TensorRTRunner(plan) as runner:
        for count in (1, 2, 3, 4) * 3:
            assert_answers(runner.infer(pixels(count)).logits, pixels(count))
    assert len(gpu.contexts) == 1 + 2


@pytest.mark.parametrize("where", ["capture", "create_execution_context", "cudaGraphInstantiate"])
def test_where_a_graph_fails_the_answer_comes_without_one(
    plan: Path, gpu: FakeTensorRT, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    with TensorRTRunner(plan) as runner:
        gpu.fail = where
        gpu.runtime.fail[where] = Code.cudaErrorStreamCaptureUnsupported
        for _ in range(4):
            assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert caplog.text.count("run without a CUDA graph") == 1
    assert gpu.runtime.live == 0


def test_a_graph_that_fails_leaves_the_others(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        for _ in range(3):
            runner.infer(pixels(1))
        gpu.runtime.fail["cudaGraphInstantiate"] = Code.cudaErrorMemoryAllocation
        for _ in range(3):
            assert_answers(runner.infer(pixels(2)).logits, pixels(2))
        gpu.runtime.fail.clear()
        before = gpu.runtime.calls.count("cudaGraphLaunch")
        assert_answers(runner.infer(pixels(1)).logits, pixels(1))
        assert gpu.runtime.calls.count("cudaGraphLaunch") == before + 1
        assert runner.graph_batches == (1,)
    assert gpu.runtime.live == 0


def test_a_profile_that_is_not_shared_gets_no_graph(
    plan: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = install(monkeypatch, "8")
    gpu.shares_profile = False
    with TensorRTRunner(plan) as runner:
        for _ in range(3):
            assert_answers(runner.infer(pixels(2)).logits, pixels(2))
        assert "Profile 0 has been chosen by another" in runner.graph_refusals[2]
    warned = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len([words for words in warned if "Profile 0 has been chosen by another" in words]) == 1
    with pytest.raises(RunnerError, match=r"choosing the batch profile.*Profile 0 has been chosen"):
        TensorRTRunner(plan, RuntimeOptions(contexts=2)).__enter__()


def test_the_first_run_is_over_when_it_is_open(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan, RuntimeOptions(contexts=2)):
        assert (gpu.first_runs, gpu.batches) == ([4, 4], [])


def test_memory_that_tensorrt_itself_lacks_halves_the_batch(
    plan: Path, gpu: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.enough_for = 1
    with TensorRTRunner(plan) as runner:
        assert runner.max_batch == 1
        assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert "runs batches of 1" in caplog.text
    gpu.enough_for = 0
    with pytest.raises(OutOfMemoryError, match="OutOfMemory"):
        TensorRTRunner(plan).__enter__()
    assert gpu.runtime.live == 0


def test_a_size_that_tensorrt_cannot_tell_is_no_size(plan: Path, gpu: FakeTensorRT) -> None:
    gpu.runtime.total, gpu.fail = 4 * ACTIVATION_BYTES, "update_device_memory_size_for_shapes"
    with pytest.raises(RunnerError, match="telling the memory of a batch of 2"):
        TensorRTRunner(plan).__enter__()
    assert gpu.runtime.live == 0


def rtx_plan(folder: Path) -> Path:
    return make_plan(folder / "x.plan", flavour="rtx")


def test_rtx_keeps_what_it_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, plan = install(monkeypatch, "rtx"), rtx_plan(tmp_path)
    for kernels in (1, 1, 2, 2):
        gpu.kernels = kernels
        with TensorRTRunner(plan) as runner:
            assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert gpu.kernels_loaded == [b"kernels of 1", b"kernels of 1", b"kernels of 2"]
    [kept] = engine.cache_folder().iterdir()
    kept.write_bytes(b"damaged")
    with TensorRTRunner(plan) as runner:
        assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert kept.read_bytes() == b"kernels of 2"


def test_rtx_runs_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "rtx")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(engine, "cache_folder", lambda: tmp_path / "file" / "below")
    with TensorRTRunner(rtx_plan(tmp_path)) as runner:
        assert_answers(runner.infer(pixels(3)).logits, pixels(3))


def test_kernels_lie_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine.cache_folder() == tmp_path / "keras-resnet-to-tensorrt" / "rtx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert engine.cache_folder().parts[-3:] == (".cache", "keras-resnet-to-tensorrt", "rtx")


def test_rtx_that_cannot_capture_runs_without_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu, plan = install(monkeypatch, "rtx"), rtx_plan(tmp_path)
    gpu.fail = "is_stream_capturable"
    with TensorRTRunner(plan) as runner:
        for _ in range(3):
            assert_answers(runner.infer(pixels(3)).logits, pixels(3))
        assert runner.graph_batches == ()
    assert "TensorRT says cannot be" in caplog.text


def test_rtx_makes_its_own_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch, "rtx")
    with TensorRTRunner(make_plan(tmp_path / "x.plan", flavour="rtx")) as runner:
        for _ in range(4):
            assert_answers(runner.infer(pixels(3)).logits, pixels(3))
    assert [context.own_graph for context in gpu.contexts] == [False, False, True]
    assert "cudaStreamBeginCapture" not in gpu.runtime.calls


def test_the_best_classes_alone_travel_back(tmp_path: Path, gpu: FakeTensorRT) -> None:
    gpu.top = ("top_probabilities", "top_classes")
    plan, images = make_plan(tmp_path / "x.plan", top=2), pixels(7)
    with TensorRTRunner(plan) as runner:
        assert runner.graph_top_k == 2
        whole = runner.infer(images)
        for _ in range(3):
            for k in (1, 2, 3, 9):
                for count in (3, 7):
                    found, expected = runner.top(images[:count], k), top_k_of(whole.probabilities[:count], k)
                    assert found.classes.dtype == np.int32
                    np.testing.assert_array_equal(found.classes, expected.classes)
                    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        before = gpu.runtime.calls.count("cudaMemcpyAsync")
        runner.top(images[:3], 2)
        graph = gpu.runtime.graphs[max(gpu.runtime.graphs)]
        assert gpu.runtime.calls.count("cudaMemcpyAsync") - before == 1  # the upload; the graph holds the rest
        assert len(graph) == 3  # compute, probabilities, classes
        with pytest.raises(RunnerError, match="Received: 0"):
            runner.top(images, 0)


def test_too_little_memory_halves_the_batch(plan: Path, gpu: FakeTensorRT, caplog: pytest.LogCaptureFixture) -> None:
    gpu.runtime.total = 4 * ACTIVATION_BYTES  # that, but not the buffers of a batch of 4
    with TensorRTRunner(plan) as runner:
        assert runner.max_batch == 2
        for count in (1, 2, 1, 3, 2, 1, 7):
            assert_answers(runner.infer(pixels(count)).logits, pixels(count))
    assert "lacks memory for batches of 4" in caplog.text
    assert "runs batches of 2" in caplog.text
    assert gpu.runtime.live == 0
    gpu.runtime.total = 1 << 20
    with runner:
        assert runner.max_batch == 4


def test_memory_that_never_suffices_is_an_error(plan: Path, gpu: FakeTensorRT) -> None:
    gpu.runtime.total = ACTIVATION_BYTES // 2
    with pytest.raises(OutOfMemoryError, match="smaller batch profile"):
        TensorRTRunner(plan).__enter__()
    assert gpu.runtime.live == 0


def test_tensorrt_8_needs_the_activations_of_the_largest_batch(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch, "8")
    with TensorRTRunner(plan) as runner:
        for count in (1, 3, 3, 3, 9):
            assert_answers(runner.infer(pixels(count)).logits, pixels(count))
        assert gpu.runtime.calls.count("cudaGraphLaunch") == 2
    gpu.runtime.total = 4 * ACTIVATION_BYTES + SLOTS * SLOT_BYTES // 2
    with TensorRTRunner(plan) as runner:
        assert runner.max_batch == 2
        assert_answers(runner.infer(pixels(5)).logits, pixels(5))
    gpu.runtime.total = 4 * ACTIVATION_BYTES - 1
    with pytest.raises(OutOfMemoryError):
        TensorRTRunner(plan).__enter__()
    assert gpu.runtime.live == 0


def test_computing_alone_is_timed(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        for batch, repeats in ((4, 5), (1, 1)):
            times = runner.compute_ms(pixels(batch), repeats)
            assert len(times) == repeats
            assert min(times) > 0
        assert runner.graph_batches == (1, 4)
        for batch, repeats in ((5, 1), (1, 0)):
            with pytest.raises(RunnerError, match="batch from 1 to 4"):
                runner.compute_ms(pixels(batch), repeats)
        assert_answers(runner.infer(pixels(4)).logits, pixels(4))
    assert runner.graph_batches == ()
    assert gpu.runtime.live == 0


def test_other_threads_may_call_and_two_runners_live_side_by_side(plan: Path, gpu: FakeTensorRT) -> None:
    found = []
    with TensorRTRunner(plan) as first, TensorRTRunner(plan) as second:
        for runner in (first, second, first, second):
            thread = threading.Thread(target=lambda runner=runner: found.append(runner.infer(pixels(6)).logits))
            thread.start()
            thread.join()
    assert len(found) == 4
    for logits in found:
        assert_answers(logits, pixels(6))


def test_two_threads_at_once_are_refused(plan: Path, gpu: FakeTensorRT) -> None:
    refused: list[str] = []

    def intrude(results: Any) -> None:
        def call() -> None:
            with pytest.raises(RunnerError) as caught:
                runner.infer(pixels(1))
            refused.append(str(caught.value))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    with TensorRTRunner(plan) as runner:
        gpu.spoil = intrude
        assert_answers(runner.infer(pixels(2)).logits, pixels(2))
        gpu.spoil = lambda results: None
        assert_answers(runner.infer(pixels(2)).logits, pixels(2))
    assert len(refused) == 1
    assert "Open a runner for each thread" in refused[0]


def test_pycuda_runs_in_the_context_of_the_caller(plan: Path, gpu: FakeTensorRT) -> None:
    own = pycuda.driver().Device(0).make_context()
    with TensorRTRunner(plan, RuntimeOptions(cuda="pycuda")) as runner:
        ours = runner.infer(pixels(9))
        assert pycuda.driver().Context.get_current() is own
    with TensorRTRunner(plan) as runner:
        assert runner.infer(pixels(9)).logits.tobytes() == ours.logits.tobytes()
    assert gpu.runtime.live == 0


def test_an_error_in_the_with_block_releases_everything_and_cycles_stay_flat(plan: Path, gpu: FakeTensorRT) -> None:
    runner = TensorRTRunner(plan)
    for _ in range(50):
        with pytest.raises(ZeroDivisionError), runner:  # noqa: PT012
            runner.infer(pixels(9))
            runner.infer(pixels(2))
            raise ZeroDivisionError
        assert (gpu.runtime.live, gpu.runtime.graphs, gpu.runtime.events) == (0, {}, {})


def test_a_runner_goes_on_after_an_error(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        gpu.runtime.fail["cudaEventSynchronize"] = Code.cudaErrorInvalidDevice
        with pytest.raises(RunnerError, match="waiting for an event"):
            runner.infer(pixels(9))
        assert not any(gpu.runtime.queues.values())
        gpu.runtime.fail.clear()
        assert_answers(runner.infer(pixels(9)).logits, pixels(9))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contexts": 0}, r"runtime\.contexts as a number from 1 to 64. Received: 0"),
        ({"contexts": True}, "runtime.contexts"),
        ({"device": -1}, r"runtime\.device as a whole number from 0 on. Received: -1"),
        ({"cuda": "cupy"}, r"runtime\.cuda as one of auto, bindings, pycuda. Received: 'cupy'"),
        ({"graphs": "no"}, r"runtime\.graphs as true or false"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RunnerError, match=words):
        RuntimeOptions(**options)


def stripped(root: Path, source: bytes = b"onnx", **changes: Any) -> Path:
    onnx = root / "quantize" / "model.onnx"
    onnx.parent.mkdir()
    onnx.write_bytes(source)
    described = {
        "onnx_file": "quantize/model.onnx",
        "onnx_sha256": sha256_file(onnx),
        "options": {"strip_weights": True},
    }
    return make_plan(root / "build" / "tensorrt" / "x.plan", **{**described, **changes})


def test_a_stripped_plan_gets_its_weights_from_the_onnx_file(tmp_path: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(stripped(tmp_path)) as runner:
        assert_answers(runner.infer(pixels(2)).logits, pixels(2))
    assert gpu.refitted == [str(tmp_path / "quantize" / "model.onnx")]


@pytest.mark.parametrize("call", ["refit_from_file", "refit_cuda_engine"])
def test_a_refit_that_fails_is_an_error(tmp_path: Path, gpu: FakeTensorRT, call: str) -> None:
    gpu.fail = call
    with pytest.raises(RunnerError, match=f"taking the weights from .*{call} said no"):
        TensorRTRunner(stripped(tmp_path)).__enter__()


def test_a_stripped_plan_without_its_onnx_file_is_refused(tmp_path: Path, gpu: FakeTensorRT) -> None:
    plan = stripped(tmp_path)
    onnx = tmp_path / "quantize" / "model.onnx"
    onnx.write_bytes(b"other")
    with pytest.raises(RunnerError, match=r"model\.onnx with sha256.*holds no weights.*another file"):
        TensorRTRunner(plan).__enter__()
    onnx.unlink()
    with pytest.raises(RunnerError, match=r"no such file.*strip_weights: false"):
        TensorRTRunner(plan).__enter__()


def test_a_tensorrt_that_cannot_refit_from_onnx_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "8")
    with pytest.raises(RunnerError, match="takes weights from an ONNX file"):
        TensorRTRunner(stripped(tmp_path)).__enter__()


def test_only_version_compatible_plans_may_bring_code(tmp_path: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(make_plan(tmp_path / "x.plan")):
        assert not gpu.host_code_allowed
    bringing = make_plan(tmp_path / "y.plan", options={"version_compatible": True})
    with pytest.raises(RunnerError, match=r"brings code for the CPU.*runtime\.host_code=true"):
        TensorRTRunner(bringing).__enter__()  # its sidecar came with it and gives no permission
    assert not gpu.host_code_allowed
    with TensorRTRunner(bringing, RuntimeOptions(host_code=True)):
        assert gpu.host_code_allowed


def test_rtx_says_whether_a_plan_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = install(monkeypatch, "rtx")
    plan = make_plan(tmp_path / "x.plan", flavour="rtx")
    validity = type(gpu.validity)
    gpu.validity = validity.SUBOPTIMAL
    with TensorRTRunner(plan) as runner:
        assert_answers(runner.infer(pixels(2)).logits, pixels(2))
    assert "may be slower here" in caplog.text
    gpu.validity = validity.INVALID
    with pytest.raises(RunnerError, match=r"finds it invalid here \(diagnostics 7\)"):
        TensorRTRunner(plan).__enter__()
    assert gpu.runtime.live == 0


def test_capabilities_of_the_fakes_are_those_of_the_versions() -> None:
    """The fakes stand for 8.6, 10.13 and RTX 1.7: their capabilities are read as those of the real ones are."""
    from tests.fakes.cuda import FakeRuntime

    def of(kind: str) -> dict[str, bool]:
        trt: TensorRT = FakeTensorRT(FakeRuntime(), kind=kind).trt
        names = ("allocation_strategies", "memory_for_shapes", "memory_with_size", "memory_size_v2", "jit")
        return {name: getattr(trt, name) for name in (*names, "engine_validity", "refit_from_onnx")}

    assert not any(of("8").values())
    assert [name for name, has in of("10").items() if not has] == ["jit", "engine_validity"]
    assert all(of("rtx").values())
