"""Looks at HDF5 files and .keras archives before anything in them is read: links, bombs, promises they cannot keep."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline.errors import ModelError

if TYPE_CHECKING:
    import h5py

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CONFIG_LIMIT = 64 * 2**20  # bytes of an architecture as JSON; a ResNet-152 takes 0.3 MB
MOST_OBJECTS = 1_000_000
# Weights hardly shrink by compression (a few per cent; four fifths where they were rounded), so what unpacks to far
# more than the file holds no weights. The constant lets small files be.
RATIO, SMALL = 20, 4 * 2**20


def check_hdf5(file: h5py.File, size: int, where: str) -> None:
    """Refuse an HDF5 file that reads other files, or promises far more than it can hold. Reads no data.

    Args:
        file: open for reading.
        size: of the file in bytes.
        where: its name, for the message.

    Raises:
        ModelError: external links, external storage or virtual datasets (CVE-2026-1669), or datasets whose shapes
            ask for far more memory than the file has bytes (CVE-2026-0897).
    """
    promised = 0
    for name, dataset in hdf5_datasets(file, where):
        if dataset.external or dataset.is_virtual:
            raise ModelError(
                f"Expected a model file that stands for itself. Received: {where}, whose dataset {name} keeps its data "
                "in other files. Do not use it; ask its author for a file saved by Keras."
            )
        if dataset.dtype.hasobject and dataset.size > MOST_OBJECTS:
            raise ModelError(f"Expected weights. Received: {where}, whose dataset {name} holds {dataset.size:,} texts.")
        promised += dataset.size * dataset.dtype.itemsize
        _check_size(promised, size, f"{where} (at dataset {name}, shape {dataset.shape})")


def hdf5_datasets(file: h5py.File, where: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset once, with its path; links are checked before they are followed.

    Raises:
        ModelError: a link to another file, or a million objects and more.
    """
    import h5py

    seen: set[int] = set()
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        path, group = waiting.pop()
        for key in group:
            name = f"{path}/{key}"
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ModelError(
                    f"Expected a model file that stands for itself. Received: {where}, in which {name} is a link to "
                    f"another file ({link.filename}). Do not use it; ask its author for a file saved by Keras."
                )
            if isinstance(link, h5py.SoftLink):
                continue  # leads to what is visited anyway, or nowhere
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > MOST_OBJECTS:
                raise ModelError(f"Expected a Keras model. Received: {where} with over {MOST_OBJECTS:,} HDF5 objects.")
            if isinstance(item, h5py.Group):
                waiting.append((name, item))
            elif isinstance(item, h5py.Dataset):
                yield name, item


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a .keras archive that is a bomb, or holds what Keras would read by pickle.

    Raises:
        ModelError: it unpacks to far more than its size, names a member outside of itself, lacks its parts, or has
            weights in .npz.
    """
    members = archive.infolist()
    names = {member.filename for member in members}
    if "config.json" not in names:
        raise ModelError(
            f"Expected a .keras archive, which holds config.json. Received: {path}, a zip of {len(names)} other files "
            f"({', '.join(sorted(names)[:5])})."
        )
    if outside := [n for n in names if n.startswith(("/", "\\")) or ".." in Path(n.replace("\\", "/")).parts]:
        raise ModelError(f"Expected members inside the archive. Received: {path} with {outside[0]!r}. Do not use it.")
    if "model.weights.npz" in names:
        raise ModelError(
            f"Expected weights as model.weights.h5. Received: {path} with model.weights.npz, which Keras reads with "
            "pickle, and pickle runs code. Save the model again with its weights in HDF5."
        )
    if len(members) != len(names):
        raise ModelError(f"Expected each member once. Received: {path}, which holds one name twice. Do not use it.")
    _check_size(sum(member.file_size for member in members), path.stat().st_size, str(path))
    if archive.getinfo("config.json").file_size > CONFIG_LIMIT:
        raise ModelError(f"Expected an architecture of at most {CONFIG_LIMIT >> 20} MB. Received: {path} with more.")


def extract_weights(archive: zipfile.ZipFile) -> IO[bytes] | None:
    """The weights of a checked archive as a temporary file, None where it holds none."""
    if "model.weights.h5" not in archive.namelist():
        return None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with archive.open("model.weights.h5") as member:
        shutil.copyfileobj(member, file, 2**20)
    file.seek(0)
    return file


def _check_size(promised: int, size: int, where: str) -> None:
    if promised > RATIO * size + SMALL:
        raise ModelError(
            f"Expected a file about as large as its weights. Received: {where}: {size:,} bytes that unpack to "
            f"{promised:,} or more. It would fill the memory; do not use it."
        )
