"""Import PyTorch, set its process-wide options, and allocate pinned buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from export.errors import DeviceUnavailableError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp16"]  # of PyTorch's computations; its INT8 is another format


def import_torch() -> Any:
    """Import and return torch.

    Raises:
        DeviceUnavailableError: it is not installed; the project itself does not need it.
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
    """Return the versions that matter for PyTorch's speed: torch, its CUDA, cuDNN and Triton; None where missing."""
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
    """Set the process-wide options that matter for PyTorch's speed, and restore them afterwards.

    PyTorch 2.9 introduced new switches for TF32. Reading the old ones after the new ones were set may raise a
    RuntimeError, so the old ones are used only where the new ones do not exist.

    ``set_float32_matmul_precision`` has a state of its own, which torch.compile reads and refuses where it differs from
    the new switch of matrix products (pytorch/pytorch#166387): it is set too, before the switches, and restored where
    it could be read.
    """
    owners, name = _tf32_switches(torch)
    new = name == "fp32_precision"
    value = ("tf32" if tf32 else "ieee") if new else tf32
    switches = [(torch.backends.cudnn, "benchmark", True), *((owner, name, value) for owner in owners)]
    before = [getattr(owner, switch) for owner, switch, _ in switches]
    matmul = _matmul_precision(torch) if new else None
    try:
        if new:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        for owner, switch, setting in switches:
            setattr(owner, switch, setting)
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for (owner, switch, _), earlier in zip(switches, before):
            setattr(owner, switch, earlier)


def tf32_allowed(torch: Any) -> tuple[bool, bool]:
    """Return whether matrix products and convolutions may use TF32 now."""
    (matmul, conv, *_), name = _tf32_switches(torch)
    return getattr(matmul, name) in (True, "tf32"), getattr(conv, name) in (True, "tf32")


def _tf32_switches(torch: Any) -> tuple[list[Any], str]:
    """Return the owners of TF32 switches (products, convolutions, recurrent layers; they must agree), and the name."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    conv, rnn = getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)
    if hasattr(matmul, "fp32_precision") and hasattr(conv, "fp32_precision"):
        return [matmul, conv, *([rnn] if rnn else [])], "fp32_precision"
    return [matmul, cudnn], "allow_tf32"


def _matmul_precision(torch: Any) -> str | None:
    """Return the state of ``set_float32_matmul_precision``; None where old and new switches were mixed before."""
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return None


class Slot:
    """The buffers of one batch: pixels in host memory and on the device, results in host memory."""

    def __init__(self, torch: Any, device: str, shape: tuple[int, ...], classes: list[int]) -> None:
        cuda = device.startswith("cuda")
        self.host: torch.Tensor = torch.zeros(shape, dtype=torch.uint8, pin_memory=cuda)
        self.pixels: torch.Tensor = self.host.to(device)  # the same tensor on a CPU
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
