"""Faults of engines. Where nothing runs an engine, ONNX Runtime with its source stands in for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks.faults.graph_edits import set_values, values
from benchmarks.faults.planted import Change, Plant, Planted, Replaced, draw
from benchmarks.faults.specimen import Specimen
from export.onnx_passes.file import save_model
from export.tensorrt.sidecar import (
    INPUT,
    OUTPUTS,
    BatchProfile,
    Sidecar,
    TensorInfo,
    read_sidecar,
    sha256_file,
    sidecar_path,
    write_plan,
)
from pipeline.artifacts.engines import engines, plan_precision
from pipeline.artifacts.files import write_json
from pipeline.artifacts.paths import ONNX, Artifacts
from pipeline.runners.base import Runner
from pipeline.runners.open import open_runner

_EVERY = 4  # rows of a batch of which a broken engine computes the first


def _engine(specimen: Specimen, random: np.random.Generator) -> str:
    """Return the name of an engine; one that nothing can run is written where there is none."""
    names = engines(Artifacts(specimen.folder))
    if not names:
        precision = draw(random, ("fp16", "int8"), "")
        names = [f"build/tensorrt/{precision}.plan"]
        _write_engine(specimen, names[0], precision)
    return draw(random, names, "an engine")


def _write_engine(specimen: Specimen, name: str, precision: str) -> None:
    plan, source = specimen.path(name), specimen.path(ONNX[precision])
    content = b"stands for an engine"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(content)
    sidecar = Sidecar(
        flavour="tensorrt",
        tensorrt_version="10.13.0",
        compute_capability="9.0",
        targets=(),
        precision=precision,
        onnx_sha256=sha256_file(source),
        plan_sha256=sha256_file(plan),
        plan_bytes=len(content),
        profile=BatchProfile(1, 8, 32),
        tensors=_tensors(specimen),
        options={},
    )
    write_plan(plan, content, sidecar)


def _tensors(specimen: Specimen) -> tuple[TensorInfo, ...]:
    height, width = specimen.card.size
    outputs = [TensorInfo(name, "float32", (-1, len(specimen.card.classes)), "output") for name in OUTPUTS]
    return TensorInfo(INPUT, "uint8", (-1, height, width, 3), "input"), *outputs


def _open(path: Path, precision: str) -> Runner:
    return open_runner(path, "onnxruntime", precision)


def _set_source(plan: Path, digest: str) -> None:
    """Let the sidecar say that the plan was built from another file."""
    path = sidecar_path(plan)
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"onnx_sha256": digest})


def _other_source(specimen: Specimen, random: np.random.Generator) -> Planted:
    name = _engine(specimen, random)
    _set_source(specimen.path(name), random.bytes(32).hex())
    return Planted(Change("its sidecar names a file that is not here", ("stale engine",)), name)


def _new_source(specimen: Specimen, random: np.random.Generator) -> Planted:
    name = _engine(specimen, random)
    source = ONNX[plan_precision(name)]
    model = specimen.load(source)
    model.doc_string = "exported again"
    save_model(model, specimen.path(source))
    return Planted(Change("its ONNX file was made again", ("stale engine",)), name)


def _former_weights(specimen: Specimen, random: np.random.Generator) -> Planted:
    name = _engine(specimen, random)
    precision = plan_precision(name)
    model, former = specimen.load(ONNX[precision]), specimen.path("former.onnx")
    _disturb(model, random)
    save_model(model, former)
    _set_source(specimen.path(name), sha256_file(former))
    change = Change("built from the weights before the last training", ("stale engine",))
    return Planted(change, name, {name: partial(_open, former, precision)})


def _disturb(model: onnx.ModelProto, random: np.random.Generator) -> None:
    """Move the weights of the last product."""
    names = {tensor.name for tensor in model.graph.initializer}
    node = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")][-1]
    name = next(name for name in node.input if name in names)
    weight = values(model, name)
    set_values(model, name, weight + 0.3 * weight.std() * random.normal(size=weight.shape))


def _replaced(change: Callable[[np.ndarray], np.ndarray], known: Change) -> Plant:
    def plant(specimen: Specimen, random: np.random.Generator) -> Planted:
        name = _engine(specimen, random)
        precision = read_sidecar(specimen.path(name)).precision
        source = specimen.path(ONNX[precision])
        return Planted(known, name, {name: lambda: Replaced(_open(source, precision), change, "tensorrt")})

    return plant


def first_row(rows: np.ndarray) -> np.ndarray:
    """Return the first row for all."""
    return np.repeat(rows[:1], len(rows), axis=0)


def first_of_four(rows: np.ndarray) -> np.ndarray:
    """Return the first of every four rows for these."""
    return np.asarray(np.repeat(rows[::_EVERY], _EVERY, axis=0)[: len(rows)])


def nan_in_third_row(rows: np.ndarray) -> np.ndarray:
    """Return NaN in the third row, where there is one."""
    result = np.array(rows)
    result[2:3] = np.nan
    return result


STALE: Mapping[str, Plant] = {
    "other source": _other_source,
    "new source": _new_source,
    "former weights": _former_weights,
}
ROWS: Mapping[str, Plant] = {
    "engine": _replaced(first_row, Change("the first row for all", ("repeated row",))),
    "engine, by fours": _replaced(first_of_four, Change("the first row of four for all four", ("repeated row",))),
}
NANS: Mapping[str, Plant] = {
    "engine": _replaced(nan_in_third_row, Change("NaN in the third row of every batch", ("not finite",))),
}
