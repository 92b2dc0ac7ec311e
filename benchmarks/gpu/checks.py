"""Check properties of an engine that need a GPU: each check returns a summary, or raises what is wrong.

`make test-gpu` runs them on small engines, `make gpu-evidence` on the engines of a model. The module needs Python 3.10
and numpy alone.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.telemetry import resident_bytes
from export.words import count
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.base import top_k_of
from pipeline.runners.cuda.open import find_cuda
from pipeline.runners.cuda.resources import DeviceBuffer, PinnedBuffer, Stream
from pipeline.runners.tensorrt.device_input import DeviceArray
from pipeline.runners.tensorrt.runner import TensorRTRunner

DEVICE_SLACK, HOST_SLACK = 16 << 20, 64 << 20  # bytes that other processes and allocators may take meanwhile
ROUNDING = 1e-3  # of the largest logit; FP16 and INT8 sums that are split among threads differ by less
_WARM_UP = 20  # cycles until the libraries' lazy loading has ended


class CheckFailedError(Exception):
    """An engine fails a check."""


class CheckSkippedError(Exception):
    """A check cannot run on this machine."""


Check = Callable[[Path, np.ndarray], str]


def sizes_of(runner: TensorRTRunner) -> list[int]:
    """Return the batch sizes to check: the profile's ends and middle, odd sizes, and sizes that are split."""
    small, best, large = runner.sidecar.profile.min, runner.sidecar.profile.opt, runner.max_batch
    return sorted({1, small, small + 1, best, best + 1, max(1, large - 1), large, large + 1, 2 * large + 3, 7, 13})


def equal_images_give_equal_rows(plan: Path, pixels: np.ndarray) -> str:
    """Check that N equal images give N equal rows, at every batch size (see NVIDIA/TensorRT#4813 and #4853)."""
    with TensorRTRunner(plan) as runner:
        sizes, most = sizes_of(runner), 0.0
        for number in sizes:
            for _ in range(3):  # before a graph is captured, while it is captured, and with it
                rows = runner.infer(np.repeat(pixels[:1], number, axis=0)).logits
                # Parts of another size may use other kernels, so rows are equal within a part.
                firsts = rows[np.arange(number) // runner.max_batch * runner.max_batch]
                most = max(most, _difference(count(number, "equal image"), firsts, rows))
    return _summary(sizes, most)


def rows_stay_with_their_images(plan: Path, pixels: np.ndarray) -> str:
    """Check that permuted images give permuted rows, and that input that is split gives the rows of its parts."""
    with TensorRTRunner(plan, RuntimeOptions(graphs=False)) as runner:
        sizes, most = sizes_of(runner), 0.0
        for number in sizes:
            images = _images(pixels, number)
            order = np.random.default_rng(number).permutation(number)
            rows = runner.infer(images).logits
            if len(rows) != number:
                raise CheckFailedError(f"{count(number, 'image')} gave {count(len(rows), 'row')}")
            if number <= runner.max_batch:
                expected, received = rows[order], runner.infer(images[order]).logits
            else:
                starts = range(0, number, runner.max_batch)
                parts = [runner.infer(images[start : start + runner.max_batch]).logits for start in starts]
                expected, received = rows, np.concatenate(parts)
            most = max(most, _difference(count(number, "moved image"), expected, received))
    return _summary(sizes, most)


def graphs_change_no_bit(plan: Path, pixels: np.ndarray) -> str:
    """Check that an engine gives the same bytes with CUDA graphs and without."""
    with (
        TensorRTRunner(plan) as with_graphs,
        TensorRTRunner(plan, RuntimeOptions(graphs=False)) as without,
    ):
        profile = with_graphs.sidecar.profile
        sizes = sorted({profile.min, profile.opt, with_graphs.max_batch})
        for number in sizes:
            images = _images(pixels, number)
            expected = without.infer(images)
            for _ in range(4):
                _same("a graph", number, expected, with_graphs.infer(images))
        captured = with_graphs.graph_batches
    if captured != tuple(sizes):
        raise CheckFailedError(f"expected graphs for the batches {sizes}, there are some for {list(captured)}")
    return f"batches of {', '.join(map(str, sizes))}"


def options_change_no_bit(plan: Path, pixels: np.ndarray) -> str:
    """Check that page-locked input, several contexts and top-k output give the results of the default options."""
    with TensorRTRunner(plan) as runner, TensorRTRunner(plan, RuntimeOptions(contexts=2)) as two:
        number = 3 * runner.max_batch + 1
        images = _images(pixels, number)
        expected = runner.infer(images)
        pinned = runner.pinned_pixels(number)
        pinned[:] = images
        _same("page-locked input", number, expected, runner.infer(pinned))
        _same("two contexts", number, expected, two.infer(images))
        if not runner.graph_top_k:
            return f"{count(number, 'image')}; the engine picks no best classes"
        top, own = runner.top(images, runner.graph_top_k), top_k_of(expected.probabilities, runner.graph_top_k)
        if not np.allclose(top.probabilities, own.probabilities, rtol=1e-3, atol=1e-7):
            raise CheckFailedError("the best classes that the engine picks are not those of its probabilities")
        return f"{count(number, 'image')}, best {runner.graph_top_k} classes"


def two_runners_at_once(plan: Path, pixels: np.ndarray) -> str:
    """Check that two runners in two threads give the results of one runner alone."""
    with TensorRTRunner(plan) as first, TensorRTRunner(plan) as second:
        number = first.max_batch + 1
        images = _images(pixels, number)
        expected = first.infer(images)

        def work(runner: TensorRTRunner) -> None:
            for _ in range(20):
                _same("a second runner", number, expected, runner.infer(images))
                runner.infer(images[:1])

        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(work, runner) for runner in (first, second)]
        if error := futures[0].exception() or futures[1].exception():
            raise CheckFailedError(str(error)) from error
    return f"20 times {count(number, 'image')} each"


def pycuda_gives_the_same_bytes(plan: Path, pixels: np.ndarray) -> str:
    """Check that an engine gives the same bytes through PyCUDA and through cuda-bindings."""
    if not _installed("pycuda"):
        raise CheckSkippedError("PyCUDA is not installed")
    with TensorRTRunner(plan, RuntimeOptions(cuda="bindings", graphs=False)) as runner:
        number = runner.max_batch + 1
        images = _images(pixels, number)
        expected = runner.infer(images)
    with TensorRTRunner(plan, RuntimeOptions(cuda="pycuda")) as runner:
        _same("PyCUDA", number, expected, runner.infer(images))
    return count(number, "image")


def arrays_on_the_gpu(plan: Path, pixels: np.ndarray) -> str:
    """Check that images on the GPU, also of PyTorch and CuPy, give the same bytes as images in host memory."""
    libraries = {"torch": _through_torch, "cupy": _through_cupy}
    installed = {name: through for name, through in libraries.items() if _installed(name)}
    with TensorRTRunner(plan, RuntimeOptions(graphs=False)) as runner:
        for name, through in {"our own array": _through_own_array, **installed}.items():
            for number in (1, runner.max_batch, runner.max_batch + 3):
                images = _images(pixels, number)
                _same(name, number, runner.infer(images), through(runner, images))
    return f"arrays: {', '.join(['ours', *installed])}"


def cycles_leak_nothing(plan: Path, pixels: np.ndarray, cycles: int = 1000, seconds: float | None = None) -> str:
    """Check that cycles of opening, inferring and closing do not increase device memory and host memory.

    Args:
        plan: the engine; a small one is quicker and shows the same leaks.
        pixels: images, uint8, (N, height, width, 3).
        cycles: number of cycles to count. Defaults to 1,000.
        seconds: limit for all cycles, warm-up included, after which fewer cycles are counted, but at least one.
            Defaults to None: no limit.
    """
    cuda = find_cuda()
    began = time.monotonic()

    def cycle() -> tuple[int, int]:
        with TensorRTRunner(plan) as runner:
            for _ in range(3):
                runner.infer(_images(pixels, 1))
            runner.infer(_images(pixels, runner.max_batch + 1))
        with cuda.scope(0):
            return cuda.memory_info()[0], resident_bytes()

    def over(share: float) -> bool:
        return seconds is not None and time.monotonic() - began >= share * seconds

    for _ in range(_WARM_UP):
        free_before, host_before = cycle()
        if over(0.25):
            break
    counted = 0
    while counted < cycles and not (counted and over(1.0)):
        free_after, host_after = cycle()
        counted += 1
    device, host = free_before - free_after, host_after - host_before
    summary = (
        f"{count(counted, 'cycle')} took {device / 2**20:.1f} MiB of device memory and {host / 2**20:.1f} MiB of host "
        "memory"
    )
    if device > DEVICE_SLACK or host > HOST_SLACK:
        raise CheckFailedError(summary)
    return summary


def an_error_releases_everything(plan: Path, pixels: np.ndarray) -> str:
    """Check that an error inside the with block releases its device memory, and that the next runner works."""
    cuda = find_cuda()
    frees = []
    for _ in range(6):
        with suppress(_ExpectedError), TensorRTRunner(plan) as runner:
            runner.infer(_images(pixels, runner.max_batch + 1))
            raise _ExpectedError
        with cuda.scope(0):
            frees.append(cuda.memory_info()[0])
    if frees[2] - frees[-1] > DEVICE_SLACK:
        raise CheckFailedError(f"three failures took {(frees[2] - frees[-1]) / 2**20:.1f} MiB of device memory")
    return "six failures"


class _ExpectedError(Exception):
    """Raised on purpose inside the with block of a runner."""


CHECKS: Sequence[Check] = (
    equal_images_give_equal_rows,
    rows_stay_with_their_images,
    graphs_change_no_bit,
    options_change_no_bit,
    two_runners_at_once,
    pycuda_gives_the_same_bytes,
    arrays_on_the_gpu,
    an_error_releases_everything,
)
QUICK: Sequence[Check] = (equal_images_give_equal_rows, rows_stay_with_their_images, graphs_change_no_bit)


def _difference(case: str, expected: np.ndarray, received: np.ndarray) -> float:
    """Return the largest difference over the largest logit; refuse more than sums in another order may give."""
    if not np.isfinite(received).all():
        raise CheckFailedError(f"{case}: not finite")
    equal = np.array_equal(expected, received)
    difference = 0.0 if equal else float(np.abs(expected - received).max() / np.abs(expected).max())
    if not difference <= ROUNDING:
        raise CheckFailedError(f"{case}: rows differ by {difference:.3g} of the largest logit")
    return difference


def _summary(sizes: Sequence[int], difference: float) -> str:
    words = f"rows differ by up to {difference:.3g} of the largest logit" if difference else "equal in every bit"
    return f"batches of {', '.join(map(str, sizes))}: {words}"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _images(pixels: np.ndarray, number: int) -> np.ndarray:
    """Return ``number`` images, repeated where there are fewer."""
    return pixels[np.arange(number) % len(pixels)]


def _same(case: str, number: int, expected: Any, received: Any) -> None:
    for name, before, after in zip(("logits", "probabilities"), expected, received):
        if before.tobytes() != after.tobytes():
            most = np.abs(before.astype(np.float64) - after).max()
            raise CheckFailedError(f"{case}: {name} of {count(number, 'image')} differ by up to {most:.3g}")


def _through_own_array(runner: TensorRTRunner, images: np.ndarray) -> list[np.ndarray]:
    cuda = find_cuda("bindings")
    with (
        cuda.scope(0),
        Stream(cuda) as stream,
        PinnedBuffer(cuda, images.shape, np.uint8) as host,
        DeviceBuffer(cuda, images.nbytes) as device,
    ):
        host.array[:] = images
        device.upload(host.handle, images.nbytes, stream)
        stream.synchronize()
        results = []
        for output in runner.infer_device(DeviceArray(int(device), images.shape, images.dtype, device)):
            with PinnedBuffer(cuda, output.shape, output.dtype) as back:
                cuda.memcpy_async(back.handle, output.address, output.nbytes, "to_host", stream.handle)
                stream.synchronize()
                results.append(back.array.copy())
    return results


def _through_torch(runner: TensorRTRunner, images: np.ndarray) -> list[np.ndarray]:
    import torch

    shape = (len(images), runner.sidecar.tensors[1].shape[1])
    targets = [torch.zeros(shape, device="cuda") for _ in range(2)]
    runner.infer_device(torch.from_numpy(images).cuda(), targets)
    return [target.cpu().numpy() for target in targets]


def _through_cupy(runner: TensorRTRunner, images: np.ndarray) -> list[np.ndarray]:
    import cupy

    return [cupy.asnumpy(cupy.asarray(output)) for output in runner.infer_device(cupy.asarray(images))]
