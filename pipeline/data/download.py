"""Downloads files that Keras and TensorFlow publish, and checks their hashes.

URLs and hashes are those in the sources of Keras 3.15 (``applications/imagenet_utils.py``, ``datasets/mnist.py``; for
weights see ``published_weights``) and of tensorflow-datasets 4.9 (``datasets/tf_flowers/checksums.tsv``). Files go into
Keras' own cache, so that files which Keras downloaded before are used.
"""

import io
import logging
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

from export.errors import DataError
from export.files import commit_folder, temporary_folder
from pipeline.data.sample import DataMissingError
from pipeline.recipe.published_weights import Published
from pipeline.terminal.console import progress_bar

log = logging.getLogger(__name__)

BLOCK = 2**18
MOST_BYTES = 2**30  # the largest of these files has 242 MB; an endless response would fill the disk


class DownloadError(DataMissingError):
    """A file could not be downloaded, or is not the published one."""


IMAGENET_CLASSES = Published(
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json",
    "md5:c2c37ea517e94d9795004a39431a14cb",
    "models",
)
DATASETS = {
    "flowers": Published(
        "http://download.tensorflow.org/example_images/flower_photos.tgz",
        "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
        "datasets",
    ),
    "mnist": Published(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        "sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        "datasets",
    ),
}


def keras_home() -> Path:
    """Return Keras' own folder: ``$KERAS_HOME`` or ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def fetch(published: Published, instead: str) -> Path:
    """Return the local copy of a published file; download it if it is missing.

    Args:
        published: URL, hash and folder.
        instead: advice where there is no network, such as ``--set model.weights=/path/to/file.h5``.

    Returns:
        Path of a file with the published hash.

    Raises:
        DownloadError: no network, the server refuses, or the bytes are not the published ones.
    """
    target = keras_home() / published.folder / published.name
    try:
        import pooch

        pooch.get_logger().setLevel(logging.WARNING)  # this module logs the same in the project's form
        pooch.retrieve(
            published.url, published.digest, target.name, target.parent, downloader=partial(_download, target)
        )
    except (ImportError, OSError, ValueError) as error:  # ValueError: the hash is another
        raise DownloadError(
            f"Expected to download {published.url}. Received: {error}. Without a network, bring the file: {instead}"
        ) from error
    return target


def fetch_dataset(name: str) -> Path:
    """Return the local copy of a data set: a folder with a subfolder for each class, or an .npz file.

    Args:
        name: key of ``DATASETS``.

    Raises:
        DownloadError: see `fetch`.
        DataError: the archive cannot be unpacked.
    """
    published = DATASETS[name]
    if not published.name.endswith(".tgz"):
        return fetch(published, "--set data.path=/path/to/" + published.name)
    folder = keras_home() / published.folder / published.name.removesuffix(".tgz")
    if folder.is_dir():  # it is put in place only when it is complete
        return folder
    archive = fetch(published, "--set data.path=/path/to/folder, with a subfolder for each class")
    log.info("unpacking %s", archive)
    try:
        with temporary_folder(folder) as temporary:
            with tarfile.open(archive) as packed:
                packed.extractall(temporary, filter="data")
            folders = [p for p in temporary.iterdir() if p.is_dir()]
            commit_folder(
                folders[0] if len(folders) == 1 else temporary, folder
            )  # without the archive's own top folder
    except tarfile.TarError as error:
        raise DataError(f"Expected a tar archive. Received: {archive}: {error}. Delete it and try again.") from error
    return folder


def _download(target: Path, url: str, part: str, _: object) -> None:
    """Write the server's response into a temporary file of pooch, which checks it and moves it into place."""
    from pooch import HTTPDownloader

    if target.exists():
        log.warning("%s is damaged (its hash is not the published one) and is downloaded again", target)
    log.info("downloading %s", url)
    os.remove(part)  # only its owner could read the file that pooch creates, and Keras' folder may be shared
    with (
        progress_bar(total=MOST_BYTES, desc=f"  {target.name}", unit="B", unit_scale=True) as bar,
        _BoundedFile(part, "w") as file,
    ):
        # Uncompressed, as the hash is that of the file itself; the downloader waits 30 s for a byte.
        HTTPDownloader(bar, BLOCK, headers={"Accept-Encoding": "identity"})(url, file, None)


class _BoundedFile(io.FileIO):
    """A file that refuses to grow beyond `MOST_BYTES`."""

    def write(self, block: Any) -> int:
        if self.tell() + len(block) > MOST_BYTES:
            raise OSError(f"more than {MOST_BYTES:,} bytes, which no published file has")
        return super().write(block)
