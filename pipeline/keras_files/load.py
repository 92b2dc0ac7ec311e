"""Loading of untrusted models, without running code that the recipe does not allow.

The file is read and checked first (``read``, ``code_scan``); only then Keras builds it. The result is always a Keras 3
model: files that only Keras 2 opens are rebuilt (``keras2``), and graphs of SavedModels become a layer
(``frozen_graph``).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import ModelError, cause
from pipeline.artifacts.files import redirect_temporary_files
from pipeline.keras_files.allowed_names import APPLICATION_LAYERS
from pipeline.keras_files.code_scan import SAVED_MODEL, refuse_unsafe
from pipeline.keras_files.load_guards import check_tensors, keras_modules_only, weight_budget
from pipeline.keras_files.model_file import ARCHIVE, SAVED_MODEL_FOLDER, ModelFile
from pipeline.keras_files.read import read_model_file
from pipeline.terminal.console import start_tensorflow

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)


def load_model(path: Path, allow: Sequence[str] = (), *, compare: bool = False) -> keras.Model:
    """Load a model written by any version of Keras.

    Args:
        path: a ``.keras`` archive, an HDF5 file or a SavedModel folder.
        allow: names that may run: Lambda layers, ``SavedModel``, operations of a SavedModel. Defaults to none.
        compare: whether to open a file of Keras 2 with tf_keras too, and to rebuild that model if a layer's values
            differ: Keras 3 assigns weights by position, which silently fails in some nested models, and defines some
            functions of Keras 2 differently. Defaults to False.

    Returns:
        A Keras 3 model, not compiled.

    Raises:
        ModelError: not a model, unsafe, or neither Keras 3 nor Keras 2 opens it.
    """
    file = read_model_file(path)
    refuse_unsafe(file.findings, allow, str(path))
    start_tensorflow()
    if file.kind == SAVED_MODEL_FOLDER:
        from pipeline.keras_files.saved_model import load_saved_model

        return load_saved_model(file)
    with weight_budget(file.held, str(path), file.legacy):
        try:
            model = _load_keras3(file, allow)
        except Exception as error:  # Keras raises many types on what it cannot rebuild
            model = _load_legacy(file, allow, error)
        else:
            check_tensors(model, str(path))  # before it runs for the first time
            model = _compared(model, file, allow) if compare and file.legacy else model
    check_tensors(model, str(path))
    return model


def load_classifier(path: Path, allow: Sequence[str] = ()) -> keras.Model:
    """Load the classifier that the train stage saved.

    Args:
        path: ``train/model.keras``.
        allow: names that may run, from the recipe. Defaults to none.

    Returns:
        float32 (N, height, width, 3) in, (N, classes) out; not compiled.

    Raises:
        ModelError: not a model, unsafe, or not of this form.
    """
    model = load_model(path, allow)
    check_classifier(model, path)
    return model


def check_classifier(model: keras.Model, path: Path) -> None:
    """Refuse a model without the form that every stage needs.

    Raises:
        ModelError: several inputs or outputs, or other shapes than (N, height, width, 3) to (N, classes).
    """
    inputs = [tuple(t.shape) for t in model.inputs or ()]
    outputs = [tuple(t.shape) for t in model.outputs or ()]
    signature = f"{path} takes {inputs} and gives {outputs}"
    if len(inputs) != 1 or len(inputs[0]) != 4 or inputs[0][-1] != 3 or None in inputs[0][1:]:
        raise ModelError(f"Expected one input of shape (N, height, width, 3), fixed size. Received: {signature}.")
    if len(outputs) != 1 or len(outputs[0]) != 2 or outputs[0][-1] is None or outputs[0][-1] < 2:
        raise ModelError(f"Expected one output of shape (N, classes), at least two classes. Received: {signature}.")


def _load_keras3(file: ModelFile, allow: Sequence[str]) -> keras.Model:
    import keras

    if any(f.name == SAVED_MODEL for f in file.findings):
        import pipeline.keras_files.frozen_graph  # noqa: F401 - registers the layer
    # Keras' own safe mode allows all or nothing; code that is not allowed by name was refused before.
    with redirect_temporary_files(), keras_modules_only(), keras.saving.custom_object_scope(_application_layers()):
        return keras.saving.load_model(file.path, compile=False, safe_mode=not _lambdas(file, allow))


def _application_layers() -> dict[str, type[keras.Layer]]:
    """Return the layers of keras.applications, which HDF5 files name without their module."""
    return {
        kind: getattr(importlib.import_module(f"keras.src.{module}"), kind)
        for kind, module in APPLICATION_LAYERS.items()
    }


def _lambdas(file: ModelFile, allow: Sequence[str]) -> bool:
    return any(f.kind == "Lambda" and f.name in allow for f in file.findings)


def _load_legacy(file: ModelFile, allow: Sequence[str], error: Exception) -> keras.Model:
    from pipeline.keras_files.keras1 import as_keras2
    from pipeline.keras_files.keras2 import load_legacy

    reason = cause(error)
    if file.kind == ARCHIVE and not file.legacy:
        raise ModelError(f"Expected a Keras model that loads. Received: {file.path}: {reason}") from error
    log.info("Keras 3 does not open %s (%s); trying tf_keras, which is Keras 2", file.path.name, reason)
    try:
        with as_keras2(file) as path:
            if path != file.path:  # rewritten from Keras 1: check the file that will be loaded
                refuse_unsafe(read_model_file(path).findings, allow, str(file.path))
            return load_legacy(path, lambdas=_lambdas(file, allow))
    except Exception as second:  # translating Keras 1 raises many types on a malformed architecture
        bytecode = (
            " A Lambda's bytecode runs only in the Python that wrote it."
            if any(f.kind == "Lambda" for f in file.findings)
            else ""
        )
        raise ModelError(
            f"Expected a model that Keras 3 or Keras 2 opens. Received: {file.path}, written by {file.written_by}. "
            f"Keras 2: {second}{bytecode} (Keras 3: {reason[:160]})"
        ) from second


def _compared(model: keras.Model, file: ModelFile, allow: Sequence[str]) -> keras.Model:
    from pipeline.keras_files.keras2 import load_tf_keras, rebuild
    from pipeline.keras_files.keras2_comparison import first_difference

    try:
        original = load_tf_keras(file.path, lambdas=_lambdas(file, allow))
        difference = first_difference(original, model)
    except Exception as error:  # Keras 3 opened the file, so the comparison is not required
        log.warning("%s is not compared with Keras 2: %s", file.path.name, error)
        return model
    if difference is None:
        return model
    log.warning(
        "Keras 3 reads %s differently from Keras 2 (%s); the model is rebuilt from Keras 2",
        file.path.name,
        difference,
    )
    rebuilt = rebuild(original)
    check_tensors(rebuilt, str(file.path))  # before it runs for the first time
    difference = first_difference(original, rebuilt)
    if difference is not None:
        raise ModelError(
            f"Expected the same predictions from Keras 2 and Keras 3. Received: {file.path}, written by "
            f"{file.written_by}, {difference}. Save it as a SavedModel with model.export('folder') in Keras 2, and "
            "name that folder."
        )
    return rebuilt
