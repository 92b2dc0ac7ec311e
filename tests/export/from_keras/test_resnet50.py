"""The real thing: Keras' ResNet50 and ResNet50V2 at 224×224, with trained-like weights."""

import json
import subprocess
import sys

import pytest

from export.files import ROOT

pytestmark = pytest.mark.slow

CODE = """
import dataclasses, json, resource, sys
import numpy as np
from tests.export import keras_models
import keras
from export.from_keras.convert import export_keras
from export.from_keras.logits import logits_model
from export.preprocessing import PreprocessingSpec
model = getattr(keras.applications, sys.argv[1])(weights=None)
keras_models.randomize(model, gamma=(0.3, 0.8))
spec = PreprocessingSpec.from_mode("caffe")
classes = [str(i) for i in range(1000)]
summary = export_keras(model, sys.argv[2], preprocessing=spec, classes=classes)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
pixels = keras_models.images(2, 224)
np.save(sys.argv[3], logits_model(model).predict(spec.apply(pixels), verbose=0))
print(json.dumps({"peak": peak, **dataclasses.asdict(summary)}))
"""


@pytest.mark.parametrize(
    ("name", "muls", "borders", "pairs"),
    [
        # 53 weights; 49 Conv inputs, 4 projections as skips and the head's pool: what ModelOpt places, too.
        ("ResNet50", 0, 0, 53 + 49 + 4 + 1),
        # The skips are tensors of their own (16), and the first pool has a border.
        ("ResNet50V2", 17, 1, 53 + 49 + 16 + 1 + 1),
    ],
)
def test_export_of_a_resnet50(tmp_path, name, muls, borders, pairs):
    import numpy as np

    from export.fp16.convert import to_half
    from export.int8.qdq import quantize
    from export.metrics.distances import compare, relative_error
    from export.onnx_passes.file import load_model
    from export.onnx_passes.graph import op_counts
    from tests.export.conftest import calibrate, run_onnx
    from tests.export.keras_models import images

    path, reference = tmp_path / "model.onnx", tmp_path / "logits.npy"
    command = [sys.executable, "-c", CODE, name, str(path), str(reference)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["peak"] < 3e9
    counts = report["ops_after"]
    assert counts["Conv"] == 53
    assert counts["Relu"] == 49
    assert counts.get("Mul", 0) == muls
    assert counts["Add"] == 16 + 1 + muls
    assert "Pad" not in counts
    assert counts.get("Max", 0) == borders

    model, pixels = load_model(path), images(2, 224)
    expected = np.load(reference)
    assert np.ptp(expected, axis=0).max() > 0.05 * np.abs(expected).max()  # the images are told apart
    parity = relative_error(expected, run_onnx(model, pixels)[0])
    half = compare(expected, run_onnx(to_half(model), pixels)[0])
    assert parity <= 1e-5
    assert half.sqnr_db >= 50
    int8 = quantize(model, calibrate(model, [images(8, 224, seed=1)])).model
    result = compare(expected, run_onnx(int8, pixels, exact=True)[0])
    print(
        f"{name}: peak {report['peak'] / 1e9:.2f} GB, parity {parity:.1e}, "
        f"FP16 {half.sqnr_db:.1f} dB, INT8 {result.sqnr_db:.1f} dB"
    )
    assert result.sqnr_db >= 20
    assert op_counts(int8)["QuantizeLinear"] == pairs
