"""Recipes of small classifiers that passed, as a Triton model repository is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import yaml

from pipeline.artifacts.benchmark_report import BenchmarkReport, BenchmarkRow, TimedModel
from pipeline.artifacts.fastest import Serves
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.machine import Cpu, Machine
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.artifacts.paths import BENCHMARK, CARD, ONNX
from pipeline.cli.commands import main
from pipeline.models.model_card import ModelCard
from pipeline.recipe.load import load_recipe
from pipeline.workflow.context import Context
from tests import tiny_onnx
from tests.fakes.engine import SIZE, make_plan
from tests.made_records import make_card, make_hop, write_verdict
from tests.pipeline.inference import deployments

FP32, FINISHED = ONNX["fp32"], "finished.keras"


def make_context(folder: Path, name: str = "tiny", **sections: Any) -> Context:
    """A recipe without artifacts."""
    path = folder / f"{name}.yaml"
    tree = {"name": name, "data": {"source": "digits"}, "model": {"path": FINISHED}}
    path.write_text(yaml.safe_dump(tree | sections))
    return Context(load_recipe(path), path, folder / "artifacts")


def make_recipe(folder: Path, name: str = "tiny", **sections: Any) -> Context:
    """A recipe whose FP32 file answers by colour, and passed on ONNX Runtime's CPU."""
    context = make_context(folder, name, **sections)
    write_card(context, deployments.CARD)
    (context.root / FP32).parent.mkdir(parents=True)
    deployments.make_deployment((context.root / FP32).parent, name)
    write_verdict(context.root, make_hop(FP32))
    return context


def write_card(context: Context, card: ModelCard) -> None:
    (context.root / CARD).parent.mkdir(parents=True, exist_ok=True)
    write_json(context.root / CARD, replace(card, source=FINISHED))


def write_onnx(context: Context, precision: str, card: ModelCard = deployments.CARD, **options: Any) -> str:
    """A file of a precision, exported from a card's model; its name below the artifacts."""
    model = tiny_onnx.classifier(precision, **options)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in card.metadata().items()})
    path = context.root / ONNX[precision]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return ONNX[precision]


ENGINE_CARD = make_card(size=SIZE)


def write_engine(context: Context, name: str = "build/tensorrt/fp16.plan", **changes: Any) -> str:
    """An engine of the card's model; its name below the artifacts."""
    facts = ENGINE_CARD.metadata()
    described = {"classes": facts["classes"], "preprocessing": facts["preprocessing"]}
    more = {"precision": Path(name).stem, "metadata": {"decode": facts["decode"]}, "gpu": "Fake GPU"}
    make_plan(context.root / name, **(described | more | changes))
    return name


def write_benchmark(
    context: Context, timed: str, rows: Sequence[BenchmarkRow], cpu: str = "a CPU", serves: Serves | None = None
) -> None:
    """A benchmark that timed a file as it is now."""
    folder = (context.root / BENCHMARK).parent
    folder.mkdir(exist_ok=True)
    machine = Machine(cpu=Cpu(model=cpu, usable_cores=2))
    write_json(
        context.root / BENCHMARK,
        BenchmarkReport(context.recipe.name, TimedModel((16, 16), 4), machine, None, (), (), tuple(rows), serves),
    )
    key = Key({timed: sha256_file(context.root / timed)}, {}, "")
    write_manifest(folder, stage="benchmark", recipe=context.recipe.name, key=key, seconds=1.0, result={})


def timed_row(batch: int, milliseconds: float, file: str = FP32, backend: str = "onnxruntime") -> BenchmarkRow:
    """A row of the benchmark."""
    return BenchmarkRow(
        backend=backend,  # type: ignore[arg-type]
        precision="fp32",
        batch=batch,
        includes="all",
        caveat="",
        variant="",
        file=file.removeprefix("build/"),
        samples_ms=(milliseconds,),
        turns=(1,),
        n=1,
        p50_ms=milliseconds,
        p90_ms=milliseconds,
        p99_ms=milliseconds,
        mean_ms=milliseconds,
        images_per_second=1000 * batch / milliseconds,
        p99_is_near_max=True,
        percentile_method="linear",
    )


def write_repository(context: Context, output: Path, *options: str) -> int:
    """The exit status of ``triton-repo``."""
    words = ["triton-repo", "-c", str(context.recipe_path), "--artifacts", str(context.artifacts)]
    return main([*words, "-o", str(output), *options])
