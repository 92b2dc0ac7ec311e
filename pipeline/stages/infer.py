"""The infer stage: a sample of the test images, classified by the file that serves."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.artifacts.benchmark_report import read_serves
from pipeline.artifacts.files import sha256_json
from pipeline.artifacts.inputs import Consulted, Derived, Inputs, Required, Split
from pipeline.artifacts.paths import BENCHMARK, CARD, KERAS, PARITY, Artifacts
from pipeline.artifacts.results import Inferred
from pipeline.data.dataset import ImageSet
from pipeline.models.model_card import read_card
from pipeline.recipe.schema import Recipe
from pipeline.stages.declared import ENGINES, ONNX_FILES
from pipeline.workflow.environment import runtime_environment
from pipeline.workflow.stage import Stage


def run(inputs: Inputs, settings: Recipe, out: Path) -> Inferred:
    """Classify the recipe's sample of test images: ``predictions.csv``, and the images where they were arrays."""
    from pipeline.inference.classify import Settings, classify
    from pipeline.inference.inputs.reader import PathReader
    from pipeline.inference.items import Item
    from pipeline.inference.output.spec import OutputSpec
    from pipeline.inference.output.stream import StreamWriter
    from pipeline.inference.pace import Pace
    from pipeline.serving.select_model import select_model

    section, card = settings.infer, read_card(inputs.path(CARD))
    paths = sample_images(inputs.images, section.samples, out / "images")
    items = [Item(row, _relative(path, out), "file", str(path)) for row, path in enumerate(paths)]
    choice = select_model(inputs, settings, batch_size=min(section.batch_size, max(len(paths), 1)))
    how = Settings(section.batch_size, section.top_k, decode_threads=section.decode_threads)
    with choice.open() as runner, (out / "predictions.csv").open("wb") as file:
        writer = StreamWriter(file, OutputSpec("csv", min(section.top_k, len(card.classes))))
        for rows in classify(items, PathReader(), runner, card, how, Pace()):
            writer.write(rows)
    counts = writer.counts()
    failed = writer.done - counts.get("ok", 0)
    won = (choice.won.pair.second, choice.won.batch) if choice.won else ()
    return Inferred(writer.done, failed, choice.name, choice.backend, choice.precision, *won)


def sample_images(images: ImageSet, number: int, folder: Path) -> list[Path]:
    """Return the first test images as files; those of array data sets are written as PNG, which is lossless."""
    from pipeline.data.decode import array_to_image

    paths = []
    for index, sample in enumerate(images.splits["test"][:number]):
        if sample.path is not None:
            paths.append(sample.path)
            continue
        folder.mkdir(exist_ok=True)
        label = re.sub(r"[/\\\0]", "_", images.classes[sample.label])[:60]  # safe and short in a file name
        path = folder / f"{index:03d}-{label}.png"
        content = sample.read()
        if isinstance(content, np.ndarray):
            array_to_image(content).save(path)
            paths.append(path)
    return paths


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _serves(artifacts: Artifacts, recorded: Mapping[str, str]) -> dict[str, str]:
    """Digest what can change which file serves: times differ in every benchmark, their order seldom does."""
    serves, _ = read_serves(artifacts)
    deciding = serves.deciding() if serves else None
    return {"benchmark/serves": sha256_json(deciding)} if deciding else {}


STAGE = Stage(
    "infer",
    inputs=(
        *(Required(CARD), *ONNX_FILES, *ENGINES, Required(PARITY), Consulted("verify/manifest.json")),
        Derived((BENCHMARK, "benchmark/manifest.json"), _serves),
        *(Consulted(KERAS), Split("test")),  # Keras' file may be missing; if it exists, it must be the verified one
    ),
    keys=("infer", "runtime", "verify.thresholds"),
    run=run,
    result=Inferred,
    environment=runtime_environment,
)
