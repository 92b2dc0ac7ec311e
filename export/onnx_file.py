"""ONNX files: written atomically, read with suspicion."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from onnx import TensorProto

from export.errors import ExportError
from export.temporaries import temporary_path


def check_model(model: onnx.ModelProto) -> None:
    """Runs the ONNX checker with shape inference.

    Raises:
        ExportError: If the model is not valid ONNX.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, ValueError
        raise ExportError(f"Expected a valid ONNX model. Received: {error} (please report this graph).") from error


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> Path:
    """Writes a model atomically: a temporary file in the same folder, fsync, rename.

    Returns:
        The path written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    try:
        with temporary.open("wb") as file:
            file.write(model.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _external_location(tensor: onnx.TensorProto, folder: Path) -> Path:
    """Returns where a tensor's external data is.

    Raises:
        ExportError: If that is outside of the model's own folder.
    """
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder.resolve()):
        raise ExportError(
            f"Expected external data inside {str(folder)!r}. Received: {location!r} for tensor {tensor.name!r} "
            "(do not load a model from a source you do not trust)."
        )
    return path


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Loads an ONNX file of which nothing is known.

    Args:
        path: The file. External data is followed only inside its own folder.

    Raises:
        ExportError: If the file is missing, empty, truncated, not ONNX, or points outside its folder.
    """
    file = Path(path)
    if not file.is_file():
        raise ExportError(f"Expected an ONNX file. Received: no file at {str(file)!r} (run the export first).")
    if file.stat().st_size == 0:
        raise ExportError(f"Expected an ONNX file. Received: the empty file {str(file)!r} (export again).")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError
        raise ExportError(
            f"Expected an ONNX file. Received: {str(file)!r}, which does not parse: truncated or of another "
            f"format ({error}) (export or copy it again)."
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ExportError(
            f"Expected an ONNX model with nodes and an opset. Received: {str(file)!r} has none: truncated or of "
            "another format (export or copy it again)."
        )
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    external = [t for t in tensors if t.data_location == TensorProto.EXTERNAL]
    missing = [p for p in (_external_location(t, file.parent) for t in external) if not p.is_file()]
    if missing:
        raise ExportError(
            f"Expected the external data of {str(file)!r}. Received: no file {str(missing[0])!r} (copy it too)."
        )
    try:
        if external:
            onnx.load_external_data_for_model(model, str(file.parent))
        for tensor in external:
            onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # ValidationError of links, ValueError of a wrong length
        raise ExportError(
            f"Expected the external data of {str(file)!r}. Received: {error} (copy the whole folder again)."
        ) from error
    return model
