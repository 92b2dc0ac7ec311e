"""ONNX files: written atomically, and checked when they are read."""

import os
from pathlib import Path

import onnx

from export.errors import ProjectError
from export.files import write_atomic
from export.ort_session import with_weights_as_inputs
from export.wire_format import refuse_external_data


def check_model(model: onnx.ModelProto) -> None:
    """Run the ONNX checker with shape inference.

    Raises:
        ProjectError: If the model is not valid ONNX.
    """
    try:
        for tensor in model.graph.initializer:
            onnx.checker.check_tensor(tensor)
        # The checker copies its model several times, so it gets one without weights.
        onnx.checker.check_model(with_weights_as_inputs(model), full_check=True)
    except Exception as error:  # ValidationError, InferenceError, ValueError
        raise ProjectError(f"Expected a valid ONNX model. Received: {error} (please report this graph).") from error


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> Path:
    """Write a model atomically.

    Returns:
        The path written.
    """
    target = Path(path)
    write_atomic(target, model.SerializeToString(deterministic=True))
    return target


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Load an ONNX file of unknown origin.

    Raises:
        ProjectError: If the file is missing, empty, truncated, not ONNX, or keeps weights in other files.
    """
    file = Path(path)
    if not file.is_file():
        raise ProjectError(f"Expected an ONNX file. Received: no file at {str(file)!r} (run the export first).")
    if file.stat().st_size == 0:
        raise ProjectError(f"Expected an ONNX file. Received: the empty file {str(file)!r} (export again).")
    refuse_external_data(file)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError
        raise ProjectError(
            f"Expected an ONNX file. Received: {str(file)!r}, which does not parse: truncated or of another "
            f"format ({error}) (export or copy it again)."
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ProjectError(
            f"Expected an ONNX model with nodes and an opset. Received: {str(file)!r} has none: truncated or of "
            "another format (export or copy it again)."
        )
    return model
