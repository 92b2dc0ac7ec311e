"""What PyTorch needs around a model: the package itself, the settings of the process, pinned buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import DeviceUnavailableError

if TYPE_CHECKING:
    import torch


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
    """Set what decides PyTorch's speed and is global to the process; put it back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
    try:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = tf32, tf32, True
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


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
