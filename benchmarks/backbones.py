"""Run one backbone of each family through the whole chain: ``python -m benchmarks.backbones``.

No published weights are needed. Random weights are drawn with statistics like those of a trained network: normalisation
statistics of the photographs, scales and shifts away from their initial values, and logits that differ between
photographs. A freshly initialised network would hide errors, because its outputs are nearly equal for all images. Each
backbone runs train, export, quantize and verify as a finished model.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from benchmarks.telemetry import commit, machine
from export.errors import DataError, ProjectError
from export.records import read_record, to_json, without_none
from export.words import count, listed
from pipeline.artifacts.files import write_json
from pipeline.artifacts.machine import Machine
from pipeline.artifacts.output import check_output
from pipeline.artifacts.parity_report import FROM_KERAS, Overall, Verdict, read_parity
from pipeline.artifacts.paths import PARITY
from pipeline.artifacts.stage_files import read_calibration
from pipeline.cli import options
from pipeline.cli.commands import main as pipeline
from pipeline.data.dataset import Pixels, load_image_set
from pipeline.data.decode import DecodeSpec
from pipeline.recipe.backbones import BACKBONES
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Data, Model, Splits
from pipeline.terminal.command_line import Parser, suggest_closest
from pipeline.terminal.console import start_tensorflow
from pipeline.terminal.processes import raise_interruption

if TYPE_CHECKING:
    import keras

log = logging.getLogger("benchmarks.backbones")

SCHEMA = 1
SPLITS = Splits(train=0.1)
FEWEST = 8  # calibration images, and test images
# Mean of the random shifts. Around 0 half of all units are off, and rounding errors grow from layer to layer more than
# in any trained network. FP16 of ResNet-50: 46 dB with 0.5, 53 with 1, 60 with its published weights; of MobileNetV2:
# 28 with 0, 46 with 1, 34 to 49 in trained models.
SHIFT = 1.0
SMALLEST = (
    "resnet50", "efficientnetb0", "efficientnetv2b0", "mobilenet", "mobilenetv2", "mobilenetv3small", "densenet121",
    "convnexttiny", "inceptionv3", "xception", "nasnetmobile", "vgg16", "inceptionresnetv2",
)  # fmt: skip
EXAMPLES = """examples:
  python -m benchmarks.backbones --data /data/photos --output benchmarks/results/backbones.json
  python -m benchmarks.backbones --data /data/photos --only mobilenetv2,densenet121 --size 96
"""


@dataclass(frozen=True)
class Distance:
    """The distance of a file's logits from Keras'; the fields are those of `pipeline.artifacts.parity_report.Hop`."""

    verdict: Verdict
    images: int
    relative_error: float | None
    sqnr_db: float | None
    top1_agreement: float | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of one backbone.

    Attributes:
        backbone: its name.
        input_size: height and width of the images.
        parameters: number of parameters of the classifier.
        stopped_in: the stage that refused it; None where none did.
        status: exit status of that stage.
        verdict: of the verify stage. This and all following fields but the commit are None where a stage refused it.
        fp32: distance of the FP32 file, by ONNX Runtime.
        fp16: distance of the FP16 file.
        int8: distance of the INT8 file.
        method: that chose the INT8 scales.
        convolutions: number of convolutions.
        int8_convolutions: number of convolutions in INT8.
        kept: nodes that stay in float in the INT8 graph.
        fp32_in_fp16: nodes that stay FP32 in the FP16 graph.
        seconds: duration of all stages.
        commit: of this code; None outside a repository.
    """

    backbone: str
    input_size: int
    parameters: int
    stopped_in: str | None = None
    status: int | None = None
    verdict: Overall | None = None
    fp32: Distance | None = None
    fp16: Distance | None = None
    int8: Distance | None = None
    method: str | None = None
    convolutions: int | None = None
    int8_convolutions: int | None = None
    kept: tuple[str, ...] | None = None
    fp32_in_fp16: tuple[str, ...] | None = None
    seconds: int | None = None
    commit: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields that are not None, as JSON types."""
        return without_none(self)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The JSON file: a row for each backbone, the machine that measured last, and the schema."""

    schema: int = SCHEMA
    machine: Machine
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """Read the results of an earlier run.

    Raises:
        ProjectError: missing, damaged, or of another schema; with the file and the key.
    """
    remedy = "Name another file with --output, or delete this one to measure every backbone again."
    return read_record(Table, path, remedy=remedy, what="table of backbones")


def measure(name: str, data: Path, size: int, images: int) -> Row:
    """Run one backbone through the chain.

    Args:
        name: of the backbone.
        data: a folder of photographs with a subfolder for each class.
        size: height and width of the input; raised to the smallest that the backbone takes.
        images: largest number of calibration images, and of test images.

    Returns:
        Row: the result; where a stage refused the backbone, the stage and its exit status.
    """
    size = max(size, BACKBONES[name].smallest)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = folder / "recipe.yaml"
        sections = {"name": "b", "data": {"path": str(data.resolve()), "splits": {"train": SPLITS.train}}}
        recipe.write_text(yaml.safe_dump(sections), encoding="utf-8")
        parameters = _make(name, size, recipe, folder / "model.keras")
        settings = {
            "model.path": folder / "model.keras",
            "model.preprocessing": BACKBONES[name].preprocessing,
            "quantize.min_images": FEWEST,
            "quantize.max_images": images,
            "verify.min_images": FEWEST,
            "verify.max_images": images,
        }
        overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        row = Row(backbone=name, input_size=size, parameters=parameters, commit=commit())
        for verb in ("train", "export", "quantize", "verify"):
            status = pipeline([verb, "-c", str(recipe), "--artifacts", str(folder / "artifacts"), *overrides])
            raise_interruption(status)
            if status not in (0, 1):  # 1: the verdict is fail, which the row records
                return replace(row, stopped_in=verb, status=status)
        row = _judged(row, folder / "artifacts" / "b")
    return replace(row, seconds=round(time.monotonic() - started))


def _make(name: str, size: int, recipe: Path, target: Path) -> int:
    """Draw a classifier's weights, save it, and return the number of its parameters."""
    import keras

    from pipeline.models.classifier import build_classifier

    images = load_image_set(load_recipe(recipe).data)
    keras.utils.set_random_seed(1)
    classifier = build_classifier(Model(backbone=name, input_size=size), len(images.classes))  # type: ignore[arg-type]
    samples = [sample for split in images.splits.values() for sample in split][:64]
    pixels, _ = Pixels(DecodeSpec((size, size), "stretch"), 0).all(samples, "photographs")
    spread(classifier.model, classifier.backbone, classifier.preprocessing.apply(pixels))
    classifier.model.save(target)
    return int(classifier.model.count_params())


def spread(model: keras.Model, backbone: keras.Model, pixels: np.ndarray) -> None:
    """Give a fresh classifier random weights with statistics like those of a trained one.

    Args:
        model: changed in place; it ends with a Dense layer of one output for each class.
        backbone: shares the layers of ``model``.
        pixels: preprocessed photographs, float32, (N, height, width, 3).
    """
    import keras

    random = np.random.default_rng(0)
    layers = [layer for layer in backbone._flatten_layers() if not isinstance(layer, keras.Model)]
    for layer in layers:
        for weight in layer.trainable_weights:
            if weight.name == "gamma":  # ConvNeXt's LayerScale starts at 1e-6, so that its block has no effect
                low, high = (0.1, 0.5) if type(layer).__name__ == "LayerScale" else (0.6, 1.4)
                weight.assign(random.uniform(low, high, weight.shape))
            elif weight.name in ("beta", "bias"):
                weight.assign(random.normal(SHIFT, 0.3, weight.shape))
    normalisations = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in normalisations]
    for layer in normalisations:
        layer.momentum = 0.0  # one pass sets the statistics to those of the photographs
    backbone(pixels, training=True)
    for layer, momentum in zip(normalisations, momenta):
        layer.momentum = momentum
    head = model.layers[-1]
    features = keras.Model(model.input, head.input).predict(pixels, batch_size=16, verbose=0).astype(np.float64)
    kernel = random.normal(size=head.kernel.shape)
    logits = features @ kernel
    scale = 2.5 / (logits.std(axis=0) + 1e-9)
    head.set_weights([(kernel * scale).astype(np.float32), (-logits.mean(axis=0) * scale).astype(np.float32)])


def _judged(row: Row, root: Path) -> Row:
    """Add the results in the artifacts: distances from Keras, and the nodes that stay in float."""
    parity, calibration = read_parity(root / PARITY), read_calibration(root / "quantize" / "calibration.json")
    distances = {
        hop.precision: Distance(**{field.name: getattr(hop, field.name) for field in fields(Distance)})
        for hop in reversed(parity.hops)  # of two hops of a precision the first counts
        if (hop.kind, hop.backend) == (FROM_KERAS, "onnxruntime")
    }
    return replace(
        row,
        verdict=parity.verdict,
        fp32=distances.get("fp32"),
        fp16=distances.get("fp16"),
        int8=distances.get("int8"),
        method=calibration.method,
        convolutions=calibration.convolutions,
        int8_convolutions=calibration.int8_convolutions,
        kept=calibration.kept,
        fp32_in_fp16=tuple(sorted(calibration.fp16.kept_fp32)),
    )


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.backbones",
        description=__doc__,
        parents=[options.output_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="photographs, with a subfolder for each class"
    )
    parser.add_argument(
        "--only", default=",".join(SMALLEST), metavar="NAMES", help="default: the smallest of each family"
    )
    parser.add_argument("--size", type=int, default=96, help="input size, where the network allows; default: 96")
    parser.add_argument("--images", type=int, default=64, help="calibration, and test images; default: 64")
    parser.add_argument("--output", type=Path, help="JSON file; rows of an older one are kept")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _measure_all)


def _measure_all(args: argparse.Namespace) -> dict[str, object]:
    names = _checked(args)
    start_tensorflow()
    earlier = read_table(args.output).rows if args.output is not None and args.output.is_file() else ()
    rows = {row.backbone: row for row in earlier}
    for name in names:
        rows[name] = measure(name, args.data, args.size, args.images)
        log.info("%s", to_json(rows[name]))
        if args.output is not None:
            write_json(args.output, to_json(Table(machine=machine(), rows=tuple(rows.values()))))
    stopped = [name for name in names if rows[name].stopped_in is not None]
    if stopped == names:
        raise ProjectError(f"Expected a backbone that comes through the chain. Received: {listed(names)}; see above.")
    return {"rows": [to_json(rows[name]) for name in names], "exit": options.SOME_FAILED if stopped else options.DONE}


def _checked(args: argparse.Namespace) -> list[str]:
    """Return the backbones to measure, after a check of the arguments and the photographs."""
    names = [name.strip() for name in args.only.split(",")]
    for name in names:
        if name not in BACKBONES:
            raise ProjectError(
                f"--only: expected names of backbones. Received: {name!r}.{suggest_closest(name, BACKBONES)}"
            )
    if args.size < 1 or args.images < FEWEST:
        raise ProjectError(
            f"Expected --size of at least 1 and --images of at least {FEWEST}. Received: {args.size} and {args.images}."
        )
    if args.output is not None:
        check_output(args.output, "--output", "backbones.json", (".json",))
    if not args.data.is_dir():
        problem = "which is not a folder" if args.data.exists() else "which does not exist"
        raise DataError(f"--data: expected a folder with a subfolder for each class. Received: {args.data}, {problem}.")
    splits = load_image_set(Data(path=str(args.data), splits=SPLITS)).splits
    few = {split: len(splits[split]) for split in ("calibration", "test") if len(splits[split]) < FEWEST}
    if few:
        numbers = " and ".join(f"{number} for {split}" for split, number in few.items())
        raise DataError(
            f"--data: expected at least {count(FEWEST, 'photograph')} for calibration and as many for test. Received: "
            f"{args.data} with {sum(map(len, splits.values())):,} in all, which leaves {numbers}. Name a larger one."
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
