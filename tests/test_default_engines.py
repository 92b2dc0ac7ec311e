"""Engines of the default recipe's own model, by a real TensorRT, on any machine."""

from pathlib import Path

import pytest

from export.errors import ProjectError
from export.files import ROOT
from export.records import to_json
from export.tensorrt.build import build_engine
from export.tensorrt.compatibility import check_engine
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import BatchProfile
from pipeline.artifacts.engines import engine_source
from pipeline.cli.commands import main

# Weights as they come; what a training and a search for the best scales add changes no operator.
QUICK = (
    "train.head.epochs=0",
    "train.fine_tune.epochs=0",
    "quantize.method=minmax",
    "quantize.equalize=false",
    "quantize.bias_correction=false",
    "quantize.sensitivity=never",
    "export.top_k=3",
    "build.precisions=[fp16]",
    "benchmark.seconds=0",
    "benchmark.min_samples=1",
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_tensorrt("rtx") is None:
        pytest.skip(f"no TensorRT-RTX: {why_missing()['rtx']}")
    root = tmp_path_factory.mktemp("artifacts")
    options = [word for one in QUICK for word in ("--set", one)]
    assert main(["run", "-c", str(ROOT / "configs/digits.yaml"), "--artifacts", str(root), *options]) == 0
    return root / "digits"


def test_a_model_of_no_epochs_goes_through_the_chain(artifacts: Path) -> None:
    assert "no epoch was trained" in (artifacts / "report/report.html").read_text()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("profile", "targets"),
    [
        (BatchProfile(1, 8, 32), ()),
        (BatchProfile(4, 4, 4), ("SM86",)),
        (BatchProfile(2, 3, 5), ("SM80", "SM86", "SM89", "SM120")),
    ],
    ids=["dynamic", "static", "fleet"],
)
def test_engines(
    artifacts: Path, tmp_path: Path, precision: str, profile: BatchProfile, targets: tuple[str, ...]
) -> None:
    trt = find_tensorrt("rtx")
    assert trt is not None
    plan = tmp_path / f"{precision}.plan"
    source = artifacts / engine_source(precision, strongly_typed=True)
    build_engine(source, plan, precision=precision, profile=profile, trt=trt, options=BuildOptions(targets=targets))
    sidecar = to_json(check_engine(plan, trt, "8.6"))
    assert sidecar["targets"] == [f"{name[2:-1]}.{name[-1]}" for name in targets]
    assert sidecar["plan_bytes"] == plan.stat().st_size > 100_000
    tensors = {one["name"]: one for one in sidecar["tensors"]}  # type: ignore[attr-defined]
    sizes = (profile.min, profile.opt, profile.max)
    assert tensors["images"]["dtype"] == "uint8"
    assert tensors["images"]["profile"] == {name: [size, 32, 32, 3] for name, size in zip(("min", "opt", "max"), sizes)}
    assert {name: one["shape"] for name, one in tensors.items() if name != "images"} == {
        "logits": [-1, 10],
        "probabilities": [-1, 10],
        "top_probabilities": [-1, 3],
        "top_classes": [-1, 3],
    }
    asked = sidecar["asked"]["convolutions"]
    assert sum(asked.values()) == 21
    assert asked[precision] >= (19 if precision == "int8" else 21)
    if targets:
        with pytest.raises(ProjectError, match=r"compute capability .*Received: 7\.5 here"):
            check_engine(plan, trt, "7.5")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_damaged_model_is_refused(artifacts: Path, tmp_path: Path, precision: str) -> None:
    trt = find_tensorrt("rtx")
    assert trt is not None
    whole = (artifacts / engine_source(precision, strongly_typed=True)).read_bytes()
    for name, data in {"short": whole[: len(whole) // 2], "empty": b"", "other": b"\x00" * 1000}.items():
        source = tmp_path / f"{name}.onnx"
        source.write_bytes(data)
        with pytest.raises(ProjectError, match=f"Expected .*{name}"):
            build_engine(source, tmp_path / "x.plan", precision=precision, profile=BatchProfile(1, 8, 32), trt=trt)
    assert not (tmp_path / "x.plan").exists()
