"""Shrinks each run that fails to its smallest failing part, and writes that as files: ``verify --reduce``."""

import logging
from collections.abc import Mapping as Table
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import DeviceUnavailableError
from export.onnx_passes.graph import tensor_shapes
from pipeline.artifacts.array_rows import array_forms, read_rows
from pipeline.artifacts.engines import plan_flavour
from pipeline.artifacts.layer_report import LayerRun, Reduced
from pipeline.artifacts.parity_report import FROM_KERAS, Hop, read_parity
from pipeline.artifacts.paths import PARITY, REFERENCE, Artifacts
from pipeline.recipe.schema import Recipe, Thresholds
from pipeline.verification.culprits import culprits
from pipeline.verification.layers.compare_engines import built_from, open_subject
from pipeline.verification.layers.engines import judge_on_engine, open_builder
from pipeline.verification.layers.keras_layers import KerasLayers
from pipeline.verification.layers.mapping import Mapping
from pipeline.verification.layers.reduce import Part, judge_on_cpu, reduce_graph
from pipeline.verification.layers.reduced_files import write_reduced
from pipeline.verification.layers.subject import FedSession, Subject

log = logging.getLogger(__name__)

_IMAGES = 4  # the worst ones of the verdict


@dataclass(frozen=True)
class Failing:
    """What is needed to shrink a run.

    Attributes:
        artifacts: Files, engines and the verdict.
        keras_layers: The reference.
        mappings: Tensors of the layers by name of the ONNX file.
        settings: The recipe.
        out: The stage's folder.
    """

    artifacts: Artifacts
    keras_layers: KerasLayers
    mappings: Table[str, Mapping]
    settings: Recipe
    out: Path

    def reduce(self, runs: Sequence[LayerRun]) -> tuple[Reduced, ...]:
        """Shrink the runs that fail: by the verdict, or by the own error of a layer.

        Args:
            runs: As the layers were compared.
        """
        hops = read_parity(self.artifacts.path(PARITY)).hops if self.artifacts.has(PARITY) else ()
        at_fault = {hop.run_name for hop in culprits(hops)}
        reduced = []
        for run in runs:
            if not run.first_below and run.run not in at_fault:
                continue
            from_keras = next((hop for hop in hops if (hop.run_name, hop.kind) == (run.run, FROM_KERAS)), None)
            images = self._worst(from_keras)
            found = self._file(run, images) if run.run in self.mappings else self._engine(run, images)
            if found is not None:
                reduced.append(found)
        return tuple(reduced)

    def _worst(self, hop: Hop | None) -> np.ndarray:
        """Return a few images, those first whose logits differ most."""
        noise = hop.image_noise if hop is not None else None
        path = self.artifacts.path(REFERENCE)
        images = array_forms(path, ("pixels",))["pixels"].shape[0]
        worst = [index for index, _ in noise.worst if index < images] if noise is not None else []
        return read_rows(path, "pixels", list(dict.fromkeys([*worst, *range(min(_IMAGES, images))]))[:_IMAGES])

    def _least_db(self, run: LayerRun) -> float:
        """Return the SQNR that a part is asked for: that of a layer, or where every layer has it, of the logits."""
        limits: Thresholds = getattr(self.settings.verify.thresholds, run.precision)
        return run.threshold_db if run.first_below else max(run.threshold_db, limits.sqnr_db or 0.0)

    def _file(self, run: LayerRun, images: np.ndarray) -> Reduced | None:
        """Shrink an ONNX file against Keras' values."""
        subject = open_subject(self.artifacts, run.run, run.run, run.precision)
        mapping = self.mappings[run.run]
        known = keras_values(self.keras_layers, mapping, subject, images[: subject.batch or len(images)])
        end = next((row.tensor for row in run.rows if row.layer == run.first_below), "")
        part = reduce_graph(subject.model, known, judge_on_cpu(self._least_db(run)), end, description=f"{run.run}")
        return self._written(run, part, mapping, self.artifacts.path(run.run))

    def _engine(self, run: LayerRun, images: np.ndarray) -> Reduced | None:
        """Shrink an engine against the values of the ONNX file that it was built from."""
        if not run.rows:
            return None  # not compared here, which the run says
        source = built_from(self.artifacts, run.run)
        subject = open_subject(self.artifacts, source, run.run, run.precision)
        try:
            builder = open_builder(plan_flavour(run.run), self.settings.runtime, self.out / "engine")
        except DeviceUnavailableError as error:
            log.warning("%s is not shrunk: %s", run.run, error)
            return None
        known = file_values(subject, images[: subject.batch or len(images)])
        judge = judge_on_engine(builder, run.precision, self._least_db(run))
        part = reduce_graph(subject.model, known, judge, description=f"{run.run}")
        return self._written(run, part, self.mappings[source], self.artifacts.path(source), builder.versions)

    def _written(
        self,
        run: LayerRun,
        part: Part | None,
        mapping: Mapping,
        subject: Path,
        versions: Table[str, str] | None = None,
    ) -> Reduced | None:
        if part is None:
            log.warning(
                "%s fails, and no part of it does when it is given the reference's values: the fault is in what goes "
                "in, in its softmax, or in many small errors that add up",
                run.run,
            )
            return None
        layers = {
            layer.tensor: [
                *(name for name, why in mapping.without_tensor.items() if why == f"folded into {layer.name}"),
                layer.name,
            ]
            for layer in mapping.layers
        }
        return write_reduced(self.out, part, run.run, layers, subject, versions, engine=versions is not None)


def keras_values(
    keras_layers: KerasLayers, mapping: Mapping, subject: Subject, pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Return Keras' values of the tensors of a file's layers, in its layout, and the file's inputs."""
    inputs, outputs = subject.inputs(pixels), keras_layers.outputs(pixels)
    values = FedSession(subject.model, (), [layer.tensor for layer in mapping.layers]).run(inputs, {})
    known = dict(inputs)
    for layer in mapping.layers:
        like = values.pop(layer.tensor)
        known[layer.tensor] = subject.file_value(layer.tensor, layer.in_file(outputs[layer.name], like))
    return known


def file_values(subject: Subject, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return a file's own values of its float tensors, and its inputs."""
    inputs = subject.inputs(pixels)
    shapes = tensor_shapes(subject.model)
    made = [name for node in subject.model.graph.node for name in node.output if len(shapes.get(name, ())) > 1]
    values = FedSession(subject.model, (), made).run(inputs, {})
    return {**inputs, **{name: value for name, value in values.items() if value.dtype.kind == "f"}}
