"""The verify stage's results image by image, ``verify/images.npz``: top classes, their probabilities, and the noise.

NumPy and the standard library only, Python 3.10 syntax.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import DataError
from pipeline.artifacts.archives import parse_meta, read_arrays

SCHEMA = 1
NEAR_TIE = 0.1  # margin of the reference below which a changed answer is a near tie


@dataclass(frozen=True, eq=False)
class ImageResults:
    """Results of the runs on the test images.

    Attributes:
        names: Name of each of N images, as `pipeline.data.sample.Sample` has it; "" where unknown.
        labels: int64 (N,), true class; -1 where there is none.
        runs: Names of R runs, see `run_name`; the first is Keras. Only runs that gave logits.
        classes: int32 (R, N), top class; -1 where the logits are not finite.
        scores: float32 (R, N), its probability.
        margins: float32 (N,), probability of Keras' top class minus that of its second.
        noise_db: float32 (R, N), SQNR of the logits against Keras in dB; inf where equal, -inf where not finite.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    runs: tuple[str, ...]
    classes: np.ndarray
    scores: np.ndarray
    margins: np.ndarray
    noise_db: np.ndarray

    def write(self, path: Path) -> None:
        """Write the file."""
        meta = json.dumps({"schema": SCHEMA, "names": self.names, "runs": self.runs})
        np.savez(
            path,
            labels=self.labels,
            classes=self.classes,
            scores=self.scores,
            margins=self.margins,
            noise_db=self.noise_db,
            meta=np.frombuffer(meta.encode("utf-8", "surrogatepass"), dtype=np.uint8),
        )


def read_image_results(path: Path) -> ImageResults:
    """Read the results.

    Raises:
        DataError: The file is missing, damaged, or its arrays do not fit each other.
    """
    arrays = read_arrays(path, ("labels", "classes", "scores", "margins", "noise_db", "meta"))
    try:
        meta = parse_meta(arrays.pop("meta"))
        if meta["schema"] != SCHEMA:
            raise ValueError(f"schema {meta['schema']}, where {SCHEMA} is read")
        results = ImageResults(tuple(map(str, meta["names"])), runs=tuple(map(str, meta["runs"])), **arrays)
        images, runs = len(results.names), len(results.runs)
        shapes: dict[str, tuple[int, ...]] = {"labels": (images,), "margins": (images,)}
        shapes |= dict.fromkeys(("classes", "scores", "noise_db"), (runs, images))
        for name, shape in shapes.items():
            if getattr(results, name).shape != shape:
                raise ValueError(f"{name} of shape {getattr(results, name).shape}, where {shape} is needed")
        return results
    except (KeyError, TypeError, ValueError) as error:
        expected = "Expected the results of the verify stage"
        raise DataError(f"{expected}. Received: {path}: {error}. Run it again.") from error
