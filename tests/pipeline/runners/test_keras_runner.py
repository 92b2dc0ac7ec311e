"""The reference runner, opened by a program that has not imported TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import keras

from export.files import ROOT

OPEN = """
import sys
from pathlib import Path
from export.preprocessing import PreprocessingSpec
from pipeline.runners.keras import KerasRunner

with KerasRunner(Path(sys.argv[1]), PreprocessingSpec.from_mode("none")) as runner:
    print(runner.classes)
"""


def test_opening_shows_no_log_lines_of_tensorflow(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    command = [sys.executable, "-c", OPEN, str(tmp_path / "model.keras")]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    opened = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, "2\n", "")
