"""An engine for the fake GPU, and the fake GPU where the runner looks for a real one."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.records import from_json
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.library import find_tensorrt
from export.tensorrt.sidecar import SCHEMA, Sidecar, sha256_file, write_plan
from pipeline.runners.cuda import bindings
from pipeline.runners.cuda import pycuda as cuda_pycuda
from pipeline.runners.tensorrt import engine
from pipeline.runners.tensorrt import runner as runner_module
from tests.fakes.cuda import FakeRuntime
from tests.fakes.gpu import FakeTensorRT
from tests.fakes.pycuda import fake_pycuda

SIZE = (4, 5)


def make_sidecar(**fields: Any) -> Sidecar:
    """A sidecar of plain values; what is not given is that of an engine of TensorRT 10.13 in FP16."""
    given = {
        "schema": SCHEMA,
        "flavour": "tensorrt",
        "tensorrt_version": "10.13.0",
        "compute_capability": "8.9",
        "targets": [],
        "precision": "fp16",
        "onnx_sha256": "0" * 64,
        "plan_sha256": "0" * 64,
        "plan_bytes": 4,
        "profile": {"min": 1, "opt": 2, "max": 4},
        "tensors": [],
        "options": {},
        **fields,
    }
    return from_json(Sidecar, given, "a test", remedy="Fix the test.")


def make_plan(path: Path, sizes: tuple[int, int, int] = (1, 2, 4), top: int = 0, **changes: Any) -> Path:
    """A plan file with its sidecar; what is in it does not matter to the fake."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"plan")
    best = [("top_probabilities", "float32"), ("top_classes", "int32")] if top else []
    outputs = [
        {"name": name, "dtype": dtype, "shape": [-1, top if name.startswith("top") else 3]}
        for name, dtype in (("logits", "float32"), ("probabilities", "float32"), *best)
    ]
    write_plan(
        path,
        b"plan",
        make_sidecar(
            **{
                "plan_sha256": sha256_file(path),
                "profile": dict(zip(("min", "opt", "max"), sizes)),
                "tensors": [{"name": "images", "dtype": "uint8", "shape": [-1, *SIZE, 3]}, *outputs],
                **changes,
            }
        ),
    )
    return path


def install(
    monkeypatch: pytest.MonkeyPatch,
    kind: str = "10",
    sizes: tuple[int, ...] = (1, 2, 4),
    size: tuple[int, int] = SIZE,
    version: str = "10.13.0",
) -> FakeTensorRT:
    """Put a fake GPU, CUDA and TensorRT in the place of the real ones."""
    fake = FakeTensorRT(FakeRuntime(devices=2), size, sizes, kind, version)
    devices = (Device("Fake GPU", "8.9", 1 << 30), Device("Other GPU", "9.0", 1 << 30))
    status = DriverStatus(True, "", "580.95.05", "13.1", devices)
    for module in ("runtime", "driver_api"):
        monkeypatch.setattr(bindings, module, lambda: fake.runtime)
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    monkeypatch.setattr(engine, "cache_folder", lambda: folder)
    pycuda = fake_pycuda(fake.runtime)
    monkeypatch.setattr(cuda_pycuda, "driver", lambda: pycuda)
    monkeypatch.setattr(runner_module, "driver_status", lambda: status)
    here = {"tensorrt": None, "rtx": None, fake.trt.flavour: fake.trt}
    monkeypatch.setattr(
        runner_module,
        "find_tensorrt",
        lambda flavour: here[flavour] if flavour in here else find_tensorrt(flavour),
    )
    return fake


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def assert_answers(logits: np.ndarray, images: np.ndarray) -> None:
    np.testing.assert_allclose(logits, images.mean((1, 2)), rtol=1e-6)
