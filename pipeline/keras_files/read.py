"""Reading of model files: architecture, weights and facts, without building or running the model."""

import shlex
import zipfile
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from export.errors import ModelError
from export.records import parse_json
from export.words import listed
from pipeline.artifacts.archives import open_zip, read_member
from pipeline.keras_files.archive_checks import (
    CONFIG_LIMIT,
    GRAPH_LIMIT,
    HDF5_SIGNATURE,
    HEAD,
    check_archive,
    check_hdf5,
    describe_file,
    describe_zip,
    extract_weights,
    hdf5_datasets,
    is_tar,
)
from pipeline.keras_files.code_scan import scan_config
from pipeline.keras_files.declared_sizes import check_declared_sizes
from pipeline.keras_files.model_file import ARCHIVE, HDF5, ModelFile, Weight, layers_of


def read_model_file(path: Path) -> ModelFile:
    """Read the architecture, the weights' shapes and the facts of a model file.

    Args:
        path: a ``.keras`` archive, an HDF5 file, or a SavedModel folder.

    Raises:
        ModelError: nothing there, damaged, not a model, links to other files, or a decompression bomb.
    """
    if (path / "saved_model.pb").is_file():
        from pipeline.keras_files.saved_model import read_saved_model

        return read_saved_model(path)
    if (path / "config.json").is_file() and (path / "model.weights.h5").is_file():
        raise ModelError(
            f"model.path: expected a .keras archive. Received: {path}, the unpacked content of one. Zip it again: "
            f"cd {shlex.quote(str(path))} && zip -0 -r ../model.keras ."
        )
    if not path.is_file():
        raise ModelError(
            f"model.path: expected a .keras or .h5 file, or a SavedModel folder. Received: {path} "
            f"({'a folder without saved_model.pb' if path.is_dir() else 'nothing there'})."
        )
    with path.open("rb") as file:
        head = file.read(HEAD)
    try:
        archive = zipfile.is_zipfile(path)
        if archive and not is_tar(head) and not head.startswith(b"PK\x03\x04"):
            # A zip archive may follow other data: Keras would then read another format than is checked here.
            raise ModelError(f"Expected one format. Received: {path}, a zip archive after other data ({head[:32]!r}).")
        if is_tar(head):  # a bundle, which may end with the bytes of a model's zip archive
            raise ModelError(f"Expected a Keras model. Received: {path}, {describe_file(path, head)}.")
        if archive and (other := describe_zip(path)):
            raise ModelError(f"Expected a Keras model (.keras archive). Received: {path}, {other}.")
        if archive:
            return _read_archive(path)
        if head.startswith(HDF5_SIGNATURE):
            return _read_hdf5(path)
    except (ModelError, ModuleNotFoundError):  # a missing h5py does not mean a damaged file
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ModelError(f"Expected a whole Keras file. Received: {path}, damaged: {error}") from error
    if path.name == "saved_model.pb":
        raise ModelError(
            f"model.path: expected a SavedModel's folder. Received: {path}. Name the folder: {path.parent}."
        )
    raise ModelError(
        f"Expected a Keras model (.keras archive, HDF5 or SavedModel folder). Received: {path}, "
        f"{describe_file(path, head) or f'which is none; it starts with {head[:8]!r}'}."
    )


def _read_archive(path: Path) -> ModelFile:
    import h5py

    with open_zip(path) as archive:
        check_archive(archive, path)
        config = _parse(read_member(archive, "config.json", GRAPH_LIMIT), path)
        known = "metadata.json" in archive.namelist()
        metadata = _parse(read_member(archive, "metadata.json", CONFIG_LIMIT), path) if known else {}
        weights: tuple[Weight, ...] = ()
        held, extracted = 0, extract_weights(archive)
        if extracted is not None:
            with extracted, h5py.File(extracted, "r") as file:
                held = check_hdf5(file, extracted.seek(0, 2), f"{path}: model.weights.h5")
                weights = tuple(_keras3_weights(file, config))
    _check_config(config, held, path)
    version = metadata.get("keras_version", "3 (it does not say which)")
    facts = {"saved": metadata["date_saved"]} if "date_saved" in metadata else {}
    return ModelFile(path, ARCHIVE, f"Keras {version}", config, weights, tuple(scan_config(config)), facts, held)


def _read_hdf5(path: Path) -> ModelFile:
    import h5py

    with h5py.File(path, "r") as file:
        held = check_hdf5(file, path.stat().st_size, str(path))
        text = file.attrs.get("model_config")
        if text is None:
            if "layers" in file or "model_weights" in file or "layer_names" in file.attrs:
                raise ModelError(
                    f"Expected a whole model. Received: {path}, which holds weights only. Save it with "
                    "model.save(...), or name it as model.weights of a recipe with the right model.backbone."
                )
            content = listed(file) or "it is empty"
            raise ModelError(f"Expected a Keras model. Received: {path}, an HDF5 file without a model ({content}).")
        version = _text(file.attrs.get("keras_version", "1 (it does not say which)"))
        facts = {"backend": _text(file.attrs["backend"])} if "backend" in file.attrs else {}
        weights = tuple(_legacy_weights(file))
    config = _parse(text, path)
    _check_config(config, held, path)
    return ModelFile(path, HDF5, f"Keras {version}", config, weights, tuple(scan_config(config)), facts, held)


def _parse(text: str | bytes, path: Path) -> Any:
    graph = b"FrozenGraph" in text if isinstance(text, bytes) else "FrozenGraph" in text
    return parse_json(text, str(path), finite=False, most=GRAPH_LIMIT if graph else CONFIG_LIMIT)


def _check_config(config: Any, held: int, path: Path) -> None:
    if not isinstance(config, dict) or "class_name" not in config or "config" not in config:
        raise ModelError(f"Expected a model's architecture in {path}. Received: {str(config)[:80]!r}.")
    check_declared_sizes(config, held, str(path))


def read_names(attributes: Any, key: str) -> list[Any]:
    """Return a list of names, which Keras splits if it is too long for an attribute of HDF5."""
    parts = takewhile(lambda part: part in attributes, (f"{key}{number}" for number in count()))
    return [name for part in (key, *parts) for name in attributes.get(part, ())]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _keras3_weights(file: Any, config: Any) -> Iterator[Weight]:
    wrappers = {name for name, kind, _ in layers_of(config) if kind == "SpectralNormalization"}
    for name, dataset in hdf5_datasets(file, "weights"):
        parts = name.split("/")  # /layers/conv2d/vars/0; the layer's own name is an attribute of vars
        # Archives of Keras 2 that were saved after a training also hold metrics.
        if {"optimizer", "metrics"} & set(parts) or "vars" not in parts or "seed_generator" in name:
            continue
        group = "/".join(parts[: parts.index("vars") + 1])
        layer = _text(file[group].attrs.get("name", parts[-3]))
        # Beside its own vector, a SpectralNormalization repeats the kernel of the layer that it wraps.
        if layer not in wrappers or dataset.shape[:-1] == (1,):
            yield Weight(layer, parts[-1], dataset.shape)


def _legacy_weights(file: Any) -> Iterator[Weight]:
    root = file.get("model_weights", file)
    for layer in read_names(root.attrs, "layer_names") or list(root):
        group = _text(layer)  # block/conv is a group in a group
        for item in read_names(root[group].attrs, "weight_names") if group in root else ():
            name = _text(item)
            if name in root[group]:
                parts = name.split("/")
                yield Weight(parts[-2] if len(parts) > 1 else group, parts[-1].split(":")[0], root[group][name].shape)
