"""What only a GPU shows about an engine: each check says what it saw, or raises what is wrong.

`make test-gpu` asks them of small engines, `make gpu-evidence` of a model's own. Python 3.10 syntax, numpy alone.
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
from pipeline.runners.base import top_of
from pipeline.runners.cuda.open import find_cuda
from pipeline.runners.cuda.resources import DeviceBuffer, PinnedBuffer, Stream
from pipeline.runners.tensorrt.device_input import DeviceArray
from pipeline.runners.tensorrt.runner import TensorRTRunner

DEVICE_SLACK, HOST_SLACK = 16 << 20, 64 << 20  # bytes that other work and allocators may take meanwhile
ROUNDING = 1e-3  # of the largest logit; FP16 and INT8 sums that are split among threads differ by less
_WARM_UP = 20  # cycles until libraries have loaded what they load lazily


class CheckFailedError(Exception):
    """An engine does not do what it should."""


class CheckSkippedError(Exception):
    """A check that cannot be made here, and why."""


Check = Callable[[Path, np.ndarray], str]


def sizes_of(runner: TensorRTRunner) -> list[int]:
    """Batch sizes where engines go wrong: the profile's ends and middle, odd ones, and what is split."""
    profile = runner.sidecar.profile
    small, best, large = profile.min, profile.opt, runner.max_batch
    around = {1, small, small + 1, best, best + 1, large - 1, large, large + 1, 2 * large + 3, 7, 13}
    return sorted(size for size in around if size >= 1)


def equal_images_give_equal_rows(plan: Path, pixels: np.ndarray) -> str:
    """The same image N times gives N equal rows, at every batch size (it did not: NVIDIA/TensorRT#4813, #4853)."""
    with TensorRTRunner(plan) as runner:
        sizes, most = sizes_of(runner), 0.0
        for number in sizes:
            for _ in range(3):  # without a graph, while one is made, with it
                rows = runner.infer(np.repeat(pixels[:1], number, axis=0)).logits
                # Pieces of another size may go through other kernels: rows are equal within a piece.
                firsts = rows[np.arange(number) // runner.max_batch * runner.max_batch]
                most = max(most, _apart(count(number, "equal image"), firsts, rows))
    return _described(sizes, most)


def rows_stay_with_their_images(plan: Path, pixels: np.ndarray) -> str:
    """Images in another order give the same rows in that order, and input that is split gives its pieces' rows."""
    with TensorRTRunner(plan, RuntimeOptions(graphs=False)) as runner:
        sizes, most = sizes_of(runner), 0.0
        for number in sizes:
            images = _images(pixels, number)
            order = np.random.default_rng(number).permutation(number)
            rows = runner.infer(images).logits
            if len(rows) != number:
                raise CheckFailedError(f"{count(number, 'image')} gave {count(len(rows), 'row')}")
            if number <= runner.max_batch:
                expected, found = rows[order], runner.infer(images[order]).logits
            else:
                pieces = range(0, number, runner.max_batch)
                found = np.concatenate([runner.infer(images[at : at + runner.max_batch]).logits for at in pieces])
                expected = rows
            most = max(most, _apart(f"{count(number, 'moved image')}", expected, found))
    return _described(sizes, most)


def graphs_change_no_bit(plan: Path, pixels: np.ndarray) -> str:
    """Engines launched by CUDA graphs give the bytes that they give without."""
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
        made = with_graphs.graph_batches
    if made != tuple(sizes):
        raise CheckFailedError(f"expected graphs for the batches {sizes}, there are some for {list(made)}")
    return f"batches of {', '.join(map(str, sizes))}"


def options_change_no_bit(plan: Path, pixels: np.ndarray) -> str:
    """Page-locked input, several contexts and the best classes alone give what the plain way gives."""
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
        top, own = runner.top(images, runner.graph_top_k), top_of(expected.probabilities, runner.graph_top_k)
        if not np.allclose(top.probabilities, own.probabilities, rtol=1e-3, atol=1e-7):
            raise CheckFailedError("the best classes that the engine picks are not those of its probabilities")
        return f"{count(number, 'image')}, best {runner.graph_top_k} classes"


def two_runners_at_once(plan: Path, pixels: np.ndarray) -> str:
    """Two runners in two threads give what one gives alone."""
    with TensorRTRunner(plan) as first, TensorRTRunner(plan) as second:
        number = first.max_batch + 1
        images = _images(pixels, number)
        expected = first.infer(images)

        def work(runner: TensorRTRunner) -> None:
            for _ in range(20):
                _same("a second runner", number, expected, runner.infer(images))
                runner.infer(images[:1])

        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(work, runner) for runner in (first, second)]
        if error := ends[0].exception() or ends[1].exception():
            raise CheckFailedError(str(error)) from error
    return f"20 times {count(number, 'image')} each"


def pycuda_gives_the_same_bytes(plan: Path, pixels: np.ndarray) -> str:
    """Through PyCUDA an engine gives the bytes that it gives through cuda-bindings."""
    if not _installed("pycuda"):
        raise CheckSkippedError("PyCUDA is not installed")
    with TensorRTRunner(plan, RuntimeOptions(cuda="bindings", graphs=False)) as runner:
        number = runner.max_batch + 1
        images = _images(pixels, number)
        expected = runner.infer(images)
    with TensorRTRunner(plan, RuntimeOptions(cuda="pycuda")) as runner:
        _same("PyCUDA", number, expected, runner.infer(images))
    return f"{count(number, 'image')}"


def arrays_on_the_gpu(plan: Path, pixels: np.ndarray) -> str:
    """Images that lie on the GPU give the bytes that images in host memory give; also those of PyTorch and CuPy."""
    libraries = {"torch": _through_torch, "cupy": _through_cupy}
    there = {name: through for name, through in libraries.items() if _installed(name)}
    with TensorRTRunner(plan, RuntimeOptions(graphs=False)) as runner:
        for name, through in {"our own array": _through_own_array, **there}.items():
            for number in (1, runner.max_batch, runner.max_batch + 3):
                images = _images(pixels, number)
                _same(name, number, runner.infer(images), through(runner, images))
    return f"arrays: {', '.join(['ours', *there])}"


def cycles_leak_nothing(plan: Path, pixels: np.ndarray, cycles: int = 1000, seconds: float | None = None) -> str:
    """Opening, inferring and closing again and again keeps device memory and host memory flat.

    Args:
        plan: the engine; a small one makes it quicker, and says as much.
        pixels: images.
        cycles: how many are counted. Defaults to 1,000.
        seconds: after which it ends with fewer, those before the counting included; one is counted at least. Defaults
            to None: all of them.
    """
    cuda = find_cuda()
    began = time.monotonic()

    def once() -> tuple[int, int]:
        with TensorRTRunner(plan) as runner:
            for _ in range(3):
                runner.infer(_images(pixels, 1))
            runner.infer(_images(pixels, runner.max_batch + 1))
        with cuda.scope(0):
            return cuda.memory_info()[0], resident_bytes()

    def over(share: float) -> bool:
        return seconds is not None and time.monotonic() - began >= share * seconds

    for _ in range(_WARM_UP):
        free_before, host_before = once()
        if over(0.25):
            break
    made = 0
    while made < cycles and not (made and over(1.0)):
        free_after, host_after = once()
        made += 1
    device, host = free_before - free_after, host_after - host_before
    took = f"{device / 2**20:.1f} MiB of device memory and {host / 2**20:.1f} MiB of host memory"
    text = f"{count(made, 'cycle')} took {took}"
    if device > DEVICE_SLACK or host > HOST_SLACK:
        raise CheckFailedError(text)
    return text


def an_error_releases_everything(plan: Path, pixels: np.ndarray) -> str:
    """What fails inside the with block gives its device memory back, and the next runner works."""
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
    pass


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


def _apart(what: str, expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, over the largest logit: sums in another order may round otherwise, wrong rows may not."""
    if not np.isfinite(found).all():
        raise CheckFailedError(f"{what}: not finite")
    apart = (
        float(np.abs(expected - found).max() / np.abs(expected).max()) if not np.array_equal(expected, found) else 0.0
    )
    if not apart <= ROUNDING:
        raise CheckFailedError(f"{what}: rows differ by {apart:.3g} of the largest logit")
    return apart


def _described(sizes: Sequence[int], apart: float) -> str:
    words = f"rows differ by up to {apart:.3g} of the largest logit" if apart else "equal in every bit"
    return f"batches of {', '.join(map(str, sizes))}: {words}"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _images(pixels: np.ndarray, number: int) -> np.ndarray:
    """So many images, from the beginning again where there are fewer."""
    return pixels[np.arange(number) % len(pixels)]


def _same(what: str, number: int, expected: Any, found: Any) -> None:
    for name, before, after in zip(("logits", "probabilities"), expected, found):
        if before.tobytes() != after.tobytes():
            most = np.abs(before.astype(np.float64) - after).max()
            raise CheckFailedError(f"{what}: {name} of {count(number, 'image')} differ by up to {most:.3g}")


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
        outputs = runner.infer_device(DeviceArray(int(device), images.shape, images.dtype, device))
        found = []
        for output in outputs:
            with PinnedBuffer(cuda, output.shape, output.dtype) as back:
                cuda.memcpy_async(back.handle, output.address, output.nbytes, "to_host", stream.handle)
                stream.synchronize()
                found.append(back.array.copy())
    return found


def _through_torch(runner: TensorRTRunner, images: np.ndarray) -> list[np.ndarray]:
    import torch

    source = torch.from_numpy(images).cuda()
    classes = runner.sidecar.tensors[1].shape[1]
    targets = [torch.zeros((len(images), classes), device="cuda") for _ in range(2)]
    runner.infer_device(source, targets)
    return [target.cpu().numpy() for target in targets]


def _through_cupy(runner: TensorRTRunner, images: np.ndarray) -> list[np.ndarray]:
    import cupy

    outputs = runner.infer_device(cupy.asarray(images))
    return [cupy.asnumpy(cupy.asarray(output)) for output in outputs]
