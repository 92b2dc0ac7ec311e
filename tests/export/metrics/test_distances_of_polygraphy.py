"""Our distances against those of Polygraphy's comparator, on the same two ONNX files and the same images.

Polygraphy is no requirement: `pip install polygraphy==0.53.6` into an environment, and this runs in it. Its distances
are of whole arrays, so our cosine, which is a mean over images, is compared on one image.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.metrics.distances import compare
from export.ort_session import open_session
from tests.tiny_onnx import pixels, write

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("images", [1, 32])
def test_polygraphy_finds_the_same_distances(tmp_path: Path, precision: str, images: int) -> None:
    comparator = pytest.importorskip("polygraphy.comparator", reason="pip install polygraphy==0.53.6")
    backend = pytest.importorskip("polygraphy.backend.onnxrt")
    files = [write(tmp_path / f"{name}.onnx", name) for name in ("fp32", precision)]
    sessions = [partial(open_session, str(file), exact=True) for file in files]
    runs = comparator.Comparator.run(
        [backend.OnnxrtRunner(session, name=file.stem) for session, file in zip(sessions, files)],
        data_loader=[{"images": pixels(images)}],
    )
    reference, candidate = (session().run(["logits"], {"images": pixels(images)})[0] for session in sessions)
    ours = compare(reference, candidate)

    def theirs(function: object) -> Any:
        (result,) = comparator.Comparator.compare_accuracy(runs, compare_func=function)
        ((iteration,),) = result.values()
        return iteration["logits"]

    simple = theirs(comparator.SimpleCompareFunc())
    assert simple.max_absdiff == pytest.approx(ours.max_abs, rel=1e-6)
    norm = np.linalg.norm(reference.astype(np.float64))
    assert simple.mean_absdiff == pytest.approx(ours.mean_abs, rel=1e-5)
    assert theirs(comparator.L2CompareFunc()).l2_norm == pytest.approx(ours.relative_l2 * norm, rel=1e-5)
    assert theirs(comparator.SnrCompareFunc()).snr == pytest.approx(ours.sqnr_db, abs=1e-4)
    cosine = theirs(comparator.CosineSimilarityCompareFunc()).cosine_similarity
    assert images > 1 or cosine == pytest.approx(ours.cosine, abs=1e-6)
    assert ours.max_abs > 0
