"""Names of the files below ``artifacts/<recipe>/``, and access to those that were declared.

Names of the files that stages hand to each other and to other programs, below ``artifacts/<recipe>/``.

The files below ``artifacts/<recipe>/`` that a piece of code may read, by their names ``stage/file``.
"""

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
# For TensorRT 8.6, whose parser is for opset 17; there only where the recipe says quantize.tensorrt8.
TENSORRT8: Mapping[str, str] = {
    "fp16": "quantize/model.fp16-trt8.onnx",
    "int8": "quantize/model.int8-trt8.onnx",  # FP32 where it is not INT8
}
# An engine is a plan and the sidecar beside it: whoever reads the one reads the other.
ENGINES = ("build/*/*.plan", "build/*/*.json")
PARITY = "verify/parity.json"
REFERENCE = "verify/reference.npz"
BENCHMARK = "benchmark/benchmark.json"
PREDICTIONS = "infer/predictions.csv"
REPORT = "report/report.html"

_ENGINE = rf"({'|'.join(PRECISIONS)})(-[a-z0-9_]{{1,100}})?\.(plan|json)"
# Every file that a stage writes, by the stage; its manifest.json besides. What else an archive holds is not ours.
_WRITTEN: Mapping[str, str] = {
    "train": r"model\.(keras|json)|history\.json|images\.json|samples\.npz|(curves|samples)\.png|backbone\.weights\.h5",
    "export": r"model\.onnx|summary\.json",
    "quantize": r"model\.(fp16|int8)(-trt8)?\.onnx|(scales|placement|calibration|images)\.json|sensitivity\.(csv|png)",
    "build": rf"(tensorrt|rtx)/{_ENGINE}",
    "verify": r"parity\.json|reference\.npz",
    "benchmark": r"benchmark\.json",
    "infer": r"predictions\.csv|images/\d{3,9}-[^/\\\0]{1,250}\.png",
    "report": r"report\.html",
}


def is_written(name: str) -> bool:
    """Whether a stage writes a file of that name.

    Args:
        name: as ``<stage>/<file>``, with forward slashes.
    """
    stage, _, file = name.partition("/")
    return stage in _WRITTEN and re.fullmatch(rf"manifest\.json|{_WRITTEN[stage]}", file) is not None


class UndeclaredError(AssertionError):
    """A stage asked for what it did not declare: a mistake in its code, not in what a person gave it."""


@dataclass(frozen=True)
class Artifacts:
    """Files of one recipe, all of them or the declared ones; as text it is their folder, for messages.

    Args:
        _root: ``artifacts/<recipe>``, which nobody else may ask for: what is joined to it would go round the names.
        declared: patterns of the names that may be asked for. Defaults to None: every one.
    """

    _root: Path
    declared: Sequence[str] | None = None

    def __str__(self) -> str:
        return str(self._root)

    def declares(self, name: str) -> bool:
        """Whether a name, or a pattern with all that fits it, may be asked for."""
        return self.declared is None or any(fnmatchcase(name, pattern) for pattern in self.declared)

    def path(self, name: str) -> Path:
        """Where a file is, or would be.

        Raises:
            UndeclaredError: it is none of the declared ones.
        """
        if not self.declares(name):
            raise UndeclaredError(f"Expected one of the declared files {list(self.declared or ())}. Received: {name}.")
        return self._root / name

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Raises:
            UndeclaredError: it is none of the declared ones.
        """
        return self.path(name).is_file()

    def matching(self, pattern: str) -> list[str]:
        """Sorted names of the files that are there and fit a pattern such as ``build/*/*.plan``.

        Raises:
            UndeclaredError: it is none of the declared patterns, nor within one, whether a file fits or not.
        """
        self.path(pattern)
        return sorted(path.relative_to(self._root).as_posix() for path in self._root.glob(pattern) if path.is_file())
