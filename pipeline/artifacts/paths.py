"""Names of the files in ``artifacts/<recipe>/``, and access to those that code has declared."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from export.tensorrt.sidecar import PRECISIONS

KERAS = "train/model.keras"
CARD = "train/model.json"
ONNX: Mapping[str, str] = {
    "fp32": "export/model.onnx",
    "fp16": "quantize/model.fp16.onnx",
    "int8": "quantize/model.int8.onnx",
}
EQUALIZATION = "quantize/equalization.npz"
SCALES = "quantize/scales.json"
# For TensorRT 8.6, whose parser takes opset 17; written only with quantize.tensorrt8.
TENSORRT8: Mapping[str, str] = {
    "fp16": "quantize/model.fp16-trt8.onnx",
    "int8": "quantize/model.int8-trt8.onnx",  # FP32 where it is not INT8
}
# An engine is a plan and the sidecar beside it; they are read together.
ENGINES = ("build/*/*.plan", "build/*/*.json")
CALIBRATION_IMAGES = "quantize/images.json"
PARITY = "verify/parity.json"
REFERENCE = "verify/reference.npz"
IMAGE_RESULTS = "verify/images.npz"
DIAGNOSIS = "verify/diagnosis.json"
LAYERS = "layers/layers.json"
BENCHMARK = "benchmark/benchmark.json"
PREDICTIONS = "infer/predictions.csv"
REPORT = "report/report.html"

_ENGINE = rf"({'|'.join(PRECISIONS)})(-[a-z0-9_]{{1,100}})?\.(plan|json)"
# Every file that a stage writes, besides its manifest.json. Other files in an archive are ignored.
_WRITTEN: Mapping[str, str] = {
    "train": r"model\.(keras|json)|history\.json|images\.json|samples\.npz|(curves|samples)\.png|backbone\.weights\.h5",
    "export": r"model\.onnx|summary\.json",
    "quantize": r"model\.(fp16|int8)(-trt8)?\.onnx|(scales|placement|calibration|rounding|images)\.json|equalization\.npz"
    r"|sensitivity\.(csv|png)",
    "build": rf"(tensorrt|rtx)/{_ENGINE}",
    "verify": r"(parity|diagnosis)\.json|(reference|images)\.npz",
    "layers": r"layers\.json|reduced/[a-z0-9_-]{1,100}/(model\.onnx|(inputs|expected)\.npz|README\.txt)",
    "benchmark": r"benchmark\.json",
    "infer": r"predictions\.csv|images/\d{3,9}-[^/\\\0]{1,250}\.png",
    "report": r"report\.html",
}


def is_written(name: str) -> bool:
    """Return whether a stage writes a file of this name.

    Args:
        name: ``<stage>/<file>``, with forward slashes.
    """
    stage, _, file = name.partition("/")
    return stage in _WRITTEN and re.fullmatch(rf"manifest\.json|{_WRITTEN[stage]}", file) is not None


class UndeclaredError(AssertionError):
    """A stage read something that it did not declare: an error in its code, not in a user's input."""


@dataclass(frozen=True)
class Artifacts:
    """Files of one recipe, all or the declared ones; ``str()`` gives their folder, for messages.

    Args:
        _root: ``artifacts/<recipe>``; private, because joining a path to it would bypass the declared names.
        declared: Patterns of the names that may be read. Defaults to None: all.
    """

    _root: Path
    declared: Sequence[str] | None = None

    def __str__(self) -> str:
        return str(self._root)

    def declares(self, name: str) -> bool:
        """Return whether a name, or every name that matches a pattern, may be read."""
        return self.declared is None or any(fnmatchcase(name, pattern) for pattern in self.declared)

    def path(self, name: str) -> Path:
        """Return the path of a file, which need not exist.

        Raises:
            UndeclaredError: The file is not declared.
        """
        if not self.declares(name):
            raise UndeclaredError(f"Expected one of the declared files {list(self.declared or ())}. Received: {name}.")
        return self._root / name

    def has(self, name: str) -> bool:
        """Return whether a file exists.

        Raises:
            UndeclaredError: The file is not declared.
        """
        return self.path(name).is_file()

    def matching(self, pattern: str) -> list[str]:
        """Return the sorted names of the existing files that match a pattern such as ``build/*/*.plan``.

        Raises:
            UndeclaredError: No declared pattern covers this one, whether or not a file matches.
        """
        self.path(pattern)
        return sorted(path.relative_to(self._root).as_posix() for path in self._root.glob(pattern) if path.is_file())
