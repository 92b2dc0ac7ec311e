"""What PyTorch needs around a model: the package itself, the settings of the process, pinned buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import DeviceUnavailableError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp16"]  # of what PyTorch computes in; its INT8 is another format


def import_torch() -> Any:
    """Return torch.

    Raises:
        DeviceUnavailableError: it is not installed here; the project itself never needs it.
    """
    try:
        import torch
    except ImportError as error:
        raise DeviceUnavailableError(
            f"Expected PyTorch for its peer. Received: {error}. Run it in the peer's own environment, see "
            "benchmarks/peers/README.md.",
            reason="no PyTorch here",
        ) from error
    return torch


def versions() -> dict[str, str | None]:
    """The versions that decide PyTorch's speed: torch, its CUDA, cuDNN and Triton; None where one is missing."""
    torch = import_torch()
    try:
        import triton

        compiler = triton.__version__
    except ImportError:
        compiler = None
    cudnn = torch.backends.cudnn.version()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "triton": compiler,
    }


@contextmanager
def settings(torch: Any, tf32: bool) -> Iterator[None]:
    """Set what decides PyTorch's speed and is global to the process; put it back afterwards.

    PyTorch 2.9 brought new switches for TF32. Who reads the old ones after the new ones were set may get a
    RuntimeError, so the old ones are touched only where the new ones do not exist.
    """
    cudnn = torch.backends.cudnn
    benchmark, cudnn.benchmark = cudnn.benchmark, True
    try:
        with _new_switches(torch, tf32) if _has_new_switches(torch) else _old_switches(torch, tf32):
            yield
    finally:
        cudnn.benchmark = benchmark


def tf32_allowed(torch: Any) -> tuple[bool, bool]:
    """Whether products and convolutions may use TF32 now."""
    backends = torch.backends
    if _has_new_switches(torch):
        return backends.cuda.matmul.fp32_precision == "tf32", backends.cudnn.conv.fp32_precision == "tf32"
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32


def _has_new_switches(torch: Any) -> bool:
    matmul, conv = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)
    return hasattr(matmul, "fp32_precision") and hasattr(conv, "fp32_precision")


@contextmanager
def _new_switches(torch: Any, tf32: bool) -> Iterator[None]:
    """Set ``fp32_precision`` of products, convolutions and recurrent layers, which have to agree.

    ``set_float32_matmul_precision`` has a state of its own, which torch.compile reads and refuses where it says other
    than the switch of products (pytorch/pytorch#166387): it is set alongside, and put back where it could be read.
    """
    cudnn = torch.backends.cudnn
    switches = [torch.backends.cuda.matmul, *(one for one in (cudnn.conv, getattr(cudnn, "rnn", None)) if one)]
    before = [one.fp32_precision for one in switches]
    try:
        matmul: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody mixed old and new switches before
        matmul = None
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        for one in switches:
            one.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for one, value in zip(switches, before):
            one.fp32_precision = value


@contextmanager
def _old_switches(torch: Any, tf32: bool) -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


class Slot:
    """The buffers of one batch: pixels in host memory and on the device, results in host memory."""

    def __init__(self, torch: Any, device: str, shape: tuple[int, ...], classes: list[int]) -> None:
        cuda = device.startswith("cuda")
        self.host: torch.Tensor = torch.zeros(shape, dtype=torch.uint8, pin_memory=cuda)
        self.pixels: torch.Tensor = self.host.to(device)  # on a CPU the same tensor
        self.host_outputs: list[torch.Tensor] = [
            torch.empty((shape[0], count), dtype=torch.float32, pin_memory=cuda) for count in classes
        ]

    def upload(self, count: int) -> None:
        """Queue a copy of the first pixels to the device."""
        self.pixels[:count].copy_(self.host[:count], non_blocking=True)

    def download(self, outputs: list[torch.Tensor], count: int) -> None:
        """Queue copies of the results to host memory."""
        for host, output in zip(self.host_outputs, outputs):
            host[:count].copy_(output, non_blocking=True)
