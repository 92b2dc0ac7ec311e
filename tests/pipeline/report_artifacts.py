"""A recipe's artifacts made by hand, as far as the report reads them: no training, no conversion, no engine."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from export.int8.report import (
    BiasCorrection,
    CalibrationReport,
    Distances,
    Equalization,
    Fp16Report,
    Fp16Rounding,
    Placement,
    PlacementReport,
    Refusal,
    SecondOrder,
    ShiftReport,
)
from export.metrics.confidence import McNemar
from export.preprocessing import PreprocessingSpec
from export.tensorrt.sidecar import (
    BatchProfile,
    EngineLayers,
    RequestedLayers,
    Sidecar,
    sha256_file,
    sidecar_path,
    write_plan,
)
from pipeline.artifacts.benchmark_report import BenchmarkReport, BenchmarkRow, Compute, TimedModel
from pipeline.artifacts.diagnosis import Decoding, Diagnosis, Hint
from pipeline.artifacts.fastest import Serves
from pipeline.artifacts.files import sha256_bytes, write_json
from pipeline.artifacts.image_results import ImageResults
from pipeline.artifacts.layer_report import LayerReport, LayerRow, LayerRun, Reduced
from pipeline.artifacts.machine import Cpu, Gpu, Machine
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.artifacts.parity_report import Hop, ImageNoise, ParityReport, overall_verdict, thresholds_by_precision
from pipeline.data.decode import DecodeSpec
from pipeline.models.model_card import ModelCard
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.stages import BY_NAME
from pipeline.training.checkpoint import Epoch, History
from pipeline.workflow.context import Context
from tests.pipeline.report_page import Page
from tests.stage_parts import run_stage

CLASSES = ("cat", "dog", "owl")
ONNX = (
    *("export/model.onnx", "quantize/model.fp16.onnx", "quantize/model.int8.onnx"),
    *("quantize/model.fp16-trt8.onnx", "quantize/model.int8-trt8.onnx"),
)
SIZE = 8
PLAN = "build/rtx/int8.plan"
RESULTS: dict[str, dict[str, Any]] = {  # what a stage says at least
    "build": {"built": {}, "kept": []},
    "verify": {"verdict": "pass", "images": 200, "accuracy": 0.9},
    "infer": {"images": 3, "failed": 0, "backend": "onnxruntime", "precision": "fp32"},
}
LAYERS = [
    ("conv_2", "n2", "Conv", "18.25", "1.500e-02", "0.9300", "0.0250", "fp16"),
    ("conv_1", "n1", "Conv", "31.75", "5.000e-03", "0.9950", "-0.0050", "int8"),
]


def hop(candidate: str, precision: str, verdict: str = "pass", **numbers: Any) -> Hop:
    """A comparison with Keras; without numbers it is a good one."""
    engine = candidate.endswith(".plan")
    given: dict[str, Any] = {
        "kind": "from_keras",
        "reference": "train/model.keras",
        "backend": "tensorrt" if engine else "onnxruntime",
        "images": 200,
    }
    if verdict != "not run":
        given |= {
            **{"finite": True, "max_abs": 0.25, "relative_error": 0.0125, "cosine": 0.999, "sqnr_db": 42.5},
            **{"top1_agreement": 0.985, "accuracy_reference": 0.925, "accuracy_candidate": 0.915},
            "mcnemar": McNemar(3, 1, 0.625),
        }
    if verdict in ("fail", "inconclusive"):
        given["why"] = "SQNR 42.5 dB, at least 60.0 dB needed"
    return Hop(candidate=candidate, precision=precision, verdict=verdict, **given | numbers)  # type: ignore[arg-type]


def not_compared(candidate: str, precision: str, verdict: str, why: str) -> Hop:
    """A candidate that gave no answers."""
    empty = dict.fromkeys(
        ("finite", "max_abs", "relative_error", "cosine", "sqnr_db", "top1_agreement", "accuracy_reference")
    )
    return hop(candidate, precision, verdict, why=why, accuracy_candidate=None, mcnemar=None, **empty)


def row(backend: str, precision: str, batch: int, p50: float | None, **more: Any) -> BenchmarkRow:
    """A row of a benchmark; None: it failed."""
    file = {"keras": "train/model.keras", "onnxruntime": "export/model.onnx"}.get(backend, f"rtx/{precision}.plan")
    given: dict[str, Any] = {"file": file, "variant": "", "caveat": "", "includes": "host to host"}
    if p50 is None:
        given["error"] = "out of memory"
    else:
        given |= {
            "samples_ms": (p50,),
            "turns": (1,),
            "n": 1,
            "p50_ms": p50,
            "p90_ms": p50 * 1.5,
            "p99_ms": p50 * 2,
            "mean_ms": p50,
        }
        given["images_per_second"] = 1000 * batch / p50 if p50 else None
    return BenchmarkRow(backend=backend, precision=precision, batch=batch, **given | more)  # type: ignore[arg-type]


def distances(sqnr: float, agreement: float = 0.99, drop: float = 0.005, **more: float | None) -> Distances:
    """Of a graph of which the median image is 2 dB better than all, the worst 5 % 7 and the worst 10 dB worse."""
    by_image = {"median_db": sqnr + 2, "tail_db": sqnr - 7, "worst_db": sqnr - 10}
    return Distances(sqnr, agreement, drop, **by_image | more)


def image_noise(worst: Sequence[tuple[int, float | None]], median: float = 40.0) -> ImageNoise:
    return ImageNoise(median, median - 10, median - 1, 2.5, tuple(worst))


def image_results(answers: dict[str, Sequence[int]], margins: Sequence[float] = (0.5,) * 6) -> ImageResults:
    """Results on the six test images, whose true classes are 0, 1, 2, 0, 1, 2, which is what Keras answers.

    Args:
        answers: the classes of each run, by its name.
        margins: of Keras' answers.
    """
    classes = np.array([[0, 1, 2, 0, 1, 2], *answers.values()], np.int32)
    scores = np.full(classes.shape, 0.75, np.float32)
    scores[0] = 0.9
    scores[classes < 0] = np.nan
    names = tuple(f"{number}.png" for number in range(6))
    runs = ("train/model.keras", *answers)
    noise = np.full(classes.shape, 40.0, np.float32)
    return ImageResults(names, np.arange(6) % 3, runs, classes, scores, np.array(margins, np.float32), noise)


def layer(name: str, own: float | None, total: float | None, **more: Any) -> LayerRow:
    """A layer without a scale."""
    given: dict[str, Any] = {"cosine": 0.999, "finite": True, "saturated": None, "range_used": None, "largest": 2.0}
    return LayerRow(name, f"{name}/out", sqnr_db=total, own_sqnr_db=own, **given | more)


def layer_run(run: str, precision: str, threshold: float, *rows: LayerRow, **more: Any) -> LayerRun:
    first = next((row.layer for row in rows if row.own_sqnr_db is not None and row.own_sqnr_db < threshold), "")
    given: dict[str, Any] = {"first_below": first, "seconds": 1.5}
    return LayerRun(run, precision, threshold, rows, **given | more)  # type: ignore[arg-type]


ASKED = {"fp32": {"sqnr_db": 100.0}, "fp16": {"sqnr_db": 50.0}, "int8": {"sqnr_db": 20.0}}


@dataclass
class Artifacts:
    """What the stages wrote, until `write` puts it on disk; fields may be changed before."""

    folder: Path
    hops: list[Hop] = field(
        default_factory=lambda: [
            hop("export/model.onnx", "fp32", sqnr_db=120.5, top1_agreement=1.0),
            hop("quantize/model.fp16.onnx", "fp16", sqnr_db=61.25, top1_agreement=0.995),
            hop("quantize/model.int8.onnx", "int8", sqnr_db=31.0, top1_agreement=0.975),
        ]
    )
    warnings: tuple[str, ...] = ()
    rows: list[BenchmarkRow] | None = field(
        default_factory=lambda: [row("keras", "fp32", 4, 12.0), row("onnxruntime", "fp32", 4, 6.0)]
    )
    serves: Serves | None = None  # what the benchmark says of the fastest
    served: dict[str, Any] = field(default_factory=lambda: {"model": "export/model.onnx"})  # what infer says
    history: Sequence[Epoch] = (
        Epoch("head", 1, 0.9, 0.5, 1.1, 0.4, 0.01),
        Epoch("fine_tune", 2, 0.3, 0.75, 0.6, 0.65, 0.001),
    )
    card: ModelCard = field(
        default_factory=lambda: ModelCard(
            classes=CLASSES,
            preprocessing=PreprocessingSpec.from_mode("unit"),
            decode=DecodeSpec(size=(SIZE, SIZE), resize="stretch"),
            output="softmax",
            backbone="resnet20",
            parameters=273_652,
        )
    )
    samples: Sequence[int] | None = None  # labels of samples.npz; None: an earlier version, which wrote none
    plans: list[str] = field(default_factory=list)
    predictions: list[tuple[Any, ...]] | None = None  # path, status, class, probability, error
    sensitivity: list[tuple[Any, ...]] | None = None
    calibration: dict[str, Any] = field(default_factory=dict)  # what calibration.json says otherwise
    results: ImageResults | None = None  # images.npz; None: there is none
    hints: tuple[Hint, ...] = ()
    decoding: tuple[Decoding, ...] = ()
    layers: tuple[LayerRun, ...] = ()  # without one there is no layers.json
    reduced: tuple[Reduced, ...] = ()
    without_tensor: dict[str, str] = field(default_factory=dict)
    description: str = ""
    overrides: list[str] = field(default_factory=list)  # of --set

    @property
    def root(self) -> Path:
        return self.folder / "artifacts" / "hand"

    @property
    def context(self) -> Context:
        recipe = self.folder / "hand.yaml"
        tree = {"name": "hand", "description": self.description, "data": {"source": "digits"}}
        none = dict.fromkeys(("relative_error", "top1_agreement", "accuracy_drop"))
        tree["verify"] = {"thresholds": {precision: none | limits for precision, limits in ASKED.items()}}
        tree["data"]["resize"] = self.card.decode.resize
        recipe.write_text(yaml.safe_dump(tree))
        loaded = load_recipe(recipe, self.overrides)  # whose sizes begin at 32
        path = None if self.card.source is None else "model.keras"
        model = replace(loaded.model, input_size=SIZE, backbone=self.card.backbone or "resnet20", path=path)  # type: ignore[arg-type]
        return Context(replace(loaded, model=model), recipe, self.folder / "artifacts", self.overrides)

    def image(self, number: int) -> np.ndarray:
        """The pixels of a test image; its class is ``number % 3``."""
        return np.full((SIZE, SIZE, 3), 10 * number + 5, dtype=np.uint8)

    def write(self) -> Artifacts:
        """Put everything on disk, each stage with its manifest."""
        root = self.root
        for stage in ("train", "export", "quantize", "build", "verify", "layers", "infer/images"):
            (root / stage).mkdir(parents=True, exist_ok=True)
        (root / "train/model.keras").write_bytes(b"keras")
        write_json(root / "train/model.json", self.card)
        write_json(root / "train/history.json", History(tuple(self.history)))
        if self.samples is not None:
            pixels = np.stack([self.image(number) for number in range(len(self.samples))])
            np.savez(root / "train/samples.npz", pixels=pixels, labels=np.array(self.samples))
        for name in ONNX:
            (root / name).write_bytes(300 * name.encode())
        write_json(root / "export/summary.json", {})
        self._quantize()
        for name in self.plans:
            write_plan(root / name, plan_of(name), self.sidecar(name))
        self.manifest("train", {})
        for stage in ("export", "quantize", "build"):
            self.manifest(stage, {"why_not": "rtx: no wheel"} if stage == "build" else {})
        self.judge()
        if self.rows is not None:
            self._benchmark(self.rows)
        return self

    def judge(self) -> None:
        """Verify the files as they are on disk now, and what follows from that."""
        self._verify()
        self._infer()
        if self.layers:
            subjects = self.digests("train/model.keras", *ONNX[:3])
            kinds = {row.layer: "Conv2D" for run in self.layers for row in run.rows}
            report = LayerReport(subjects, 4, kinds, self.without_tensor, self.layers, self.reduced, peak_mib=512.4)
            write_json(self.root / "layers/layers.json", report)

    def manifest(self, stage: str, result: dict[str, Any], inputs: dict[str, str] | None = None) -> None:
        key = Key(inputs or {}, BY_NAME[stage].recipe_part(self.context) if stage in BY_NAME else {}, "code")
        result = RESULTS.get(stage, {}) | result
        write_manifest(self.root / stage, stage=stage, recipe="hand", key=key, seconds=1.25, result=result)

    def digests(self, *names: str) -> dict[str, str]:
        return {name: sha256_file(self.root / name) for name in names}

    def sidecar(self, name: str) -> Sidecar:
        precision = Path(name).stem.partition("-")[0]
        return Sidecar(
            flavour="rtx",
            tensorrt_version="1.7.1",
            compute_capability=None,
            targets=("SM86", "SM89"),
            precision=precision,
            onnx_sha256="0" * 64,
            plan_sha256=sha256_bytes(plan_of(name)),
            plan_bytes=1_200_000,
            profile=BatchProfile(1, 4, 8),
            tensors=(),
            options={},
            seconds=2.5,
            asked=RequestedLayers(precision, {precision: 20, "fp32": 1}, {}),
            found=EngineLayers(21, convolutions={"int8": 19, "fp16": 2}) if "int8" in precision else None,
            warnings=("a convolution is FP32",) if precision == "fp16" else (),
        )

    @property
    def calibration_report(self) -> CalibrationReport:
        """``quantize/calibration.json``."""
        rounding = Fp16Rounding("mean", nearest=distances(58.0), mean=distances(66.0, 0.995))
        report = CalibrationReport(
            fp16=Fp16Report(rounding, {"conv_9": "overflows"}),
            equalized_activations=7,
            held_out_images=18,
            scale_images=54,
            int8_convolutions=19,
            convolutions=21,
            budget="SQNR of at least 20.0 dB",
            method="lp_3",
            methods={"minmax": distances(28.5, 0.94, 0.0556), "lp_3": distances(32.0)},
            all_int8=distances(34.25),
            kept=(),
            budget_met=True,
            shift=ShiftReport(
                True,
                ("conv_1/Relu:0", "conv_2/Relu:0"),
                {
                    "conv_3/Relu:0": Refusal("Conv reads it with padding", "conv_4/Conv"),
                    "conv_5/Relu:0": Refusal("it is an output of the model"),
                    "conv_6/Relu:0": Refusal("Conv reads it with padding", "conv_7/Conv"),
                },
                6,
                plain=distances(30.5),
                after=distances(32.0),
            ),
            equalization=Equalization(True, distances(25.5), {"0.5": distances(27.0), "0.7": distances(28.0)}, "0.7"),
            rounding=SecondOrder(True, 54, distances(32.0), distances(34.25), {"conv_8/Conv": "it stays in float"}),
            bias_correction=BiasCorrection(False, distances(34.25), distances(33.25)),
        )
        return replace(report, **self.calibration)

    def _quantize(self) -> None:
        root = self.root / "quantize"
        write_json(root / "calibration.json", self.calibration_report)
        nodes = (Placement("a/Conv", "conv_1", "Conv", "int8", "input of a Conv"),)
        nodes += (Placement("b/MatMul", "dense", "MatMul", "fp16", "the classifier stays in float"),)
        write_json(root / "placement.json", PlacementReport(nodes))
        if self.sensitivity is not None:
            head = ("keras_layer", "node", "op", "sqnr_db", "noise", "top1_agreement", "accuracy_drop", "kept")
            write_csv(root / "sensitivity.csv", head, self.sensitivity)

    def _verify(self) -> None:
        root = self.root
        images = np.stack([self.image(number) for number in range(6)])
        labels = np.arange(6) % 3
        np.savez(root / "verify/reference.npz", pixels=images, labels=labels, logits=np.zeros((6, 3), np.float32))
        subjects = self.digests("train/model.keras", "train/model.json", "verify/reference.npz", *ONNX[:3])
        for name in self.plans:
            subjects |= self.digests(name, sidecar_path(name).as_posix())
        asked = thresholds_by_precision(self.context.recipe.verify.thresholds)
        hops = tuple(self.hops)
        write_json(
            root / "verify/parity.json", ParityReport(overall_verdict(hops), asked, hops, subjects, self.warnings)
        )
        if self.results is not None:
            self.results.write(root / "verify/images.npz")
        digest = sha256_file(root / "verify/parity.json")
        write_json(root / "verify/diagnosis.json", Diagnosis(digest, self.hints, self.decoding))
        self.manifest("verify", {})

    def _benchmark(self, rows: list[BenchmarkRow]) -> None:
        machine = Machine(
            Cpu("Fast CPU", 4, 2, ()), None, "Linux", "3.11", {}, "580.1", "13.0", (Gpu("Big GPU", "9.0", 1 << 30),)
        )
        report = BenchmarkReport(
            "hand", TimedModel((SIZE, SIZE), len(CLASSES)), machine, None, (), (), tuple(rows), self.serves
        )
        write_json(self.root / "benchmark/benchmark.json", report)
        self.manifest("benchmark", {}, self.digests("train/model.keras", *ONNX))

    def _infer(self) -> None:
        rows = self.predictions
        if rows is None:
            rows = [(f"images/{n}.png", "ok", CLASSES[n % 3], 0.875, "") for n in range(3)]
        for number in range(6):
            Image.fromarray(self.image(number)).save(self.root / f"infer/images/{number}.png")
        write_csv(self.root / "infer/predictions.csv", ("path", "status", "class", "probability", "error"), rows)
        inputs = self.digests("verify/parity.json", "export/model.onnx", "train/model.json")
        self.manifest("infer", self.served | {"images": len(rows)}, inputs)

    def inputs(self) -> dict[str, str]:
        """What the stage says that it reads."""
        return BY_NAME["report"].digests(self.context, {})

    def page(self, recipe: Recipe | None = None) -> Page:
        """The page as it is written now, of this recipe or another."""
        folder = self.folder / "out"
        folder.mkdir(exist_ok=True)
        context = self.context if recipe is None else replace(self.context, recipe=recipe)
        run_stage(BY_NAME["report"], context, folder)
        return Page((folder / "report.html").read_text(encoding="utf-8"))


def plan_of(name: str) -> bytes:
    return b"plan of " + name.encode()


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def compute(p50: float) -> Compute:
    return Compute(3, p50, p50, p50, p50, None, True, "linear", includes="the engine")
