"""Batch inference: images in, one row per image out."""

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import DataError, ImageError, add_note
from export.files import add_path, commit_file, sync
from export.words import count, listed
from pipeline.data.decode import DecodeSpec
from pipeline.data.folders import kinds_in_words, other_files
from pipeline.models.model_card import ModelCard
from pipeline.recipe.messages import EXTENSIONS
from pipeline.runners.base import Runner
from pipeline.terminal.console import progress_bar

log = logging.getLogger(__name__)


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """List the files among the inputs, and every image below the folders among them, sorted; each path once.

    What is left out of a folder is a warning: files with other suffixes, folders without an image, links to folders
    (they are not followed, as they may form a cycle), broken links, pipes and devices.

    Args:
        inputs: images and folders.

    Raises:
        DataError: a path that does not exist, or no image at all.
    """
    images: list[Path] = []
    others: list[str] = []
    for path in _unique(inputs):
        if path.is_dir():
            below = sorted(path.rglob("*"))
            inside = [p for p in below if _has_image_suffix(p) and p.is_file()]
            _warn_of_left_out(path, below, inside)
            if left := kinds_in_words(other_files(path, set(inside))):
                others.append(left)
                if inside:
                    log.warning("left out below %s: %s", path, left)
            images += inside
        elif path.exists():
            images.append(path)
        else:
            raise DataError(f"Expected an image or a folder of images. Received: {path}, which does not exist.")
    if not images:
        only = f", but {', '.join(others)}. Convert those that are images" if others else ""
        raise DataError(f"Expected images ({', '.join(sorted(EXTENSIONS))}). Received: none in {listed(inputs)}{only}.")
    return _unique(images)


def _unique(paths: Sequence[Path]) -> list[Path]:
    """Return the paths in their order, each file or folder once; a link is a file of its own."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(os.path.abspath(path), path)
    return list(first.values())


def _has_image_suffix(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith("._")


def _warn_of_left_out(folder: Path, below: Sequence[Path], images: Sequence[Path]) -> None:
    filled = {parent for image in images for parent in image.parents}
    groups = {
        ("folder without an image", "folders without an image"): [
            p for p in below if p.is_dir() and not p.is_symlink() and p not in filled
        ],
        ("link to a folder, which is not followed", "links to folders, which are not followed"): [
            p for p in below if p.is_dir() and p.is_symlink()
        ],
        ("link that leads nowhere", "links that lead nowhere"): [
            p for p in below if _has_image_suffix(p) and p.is_symlink() and not p.exists()
        ],
        ("pipe or device", "pipes and devices"): [
            p for p in below if _has_image_suffix(p) and p.exists() and not (p.is_file() or p.is_dir())
        ],
    }
    for nouns, paths in groups.items():
        if paths:
            names = listed((p.relative_to(folder).as_posix() for p in paths), most=3)
            log.warning("left out below %s: %s (%s)", folder, count(len(paths), *nouns), names)


def classify(
    paths: Sequence[Path], runner: Runner, card: ModelCard, batch_size: int, top_k: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per image, in their order; threads decode ahead, within bounded memory.

    An unreadable image gives a row with status "error" and the reason; the others go on.

    Args:
        paths: the images.
        runner: an open runner of the model.
        card: the model's card: classes, and how images are decoded.
        batch_size: images per call, at most the runner's maximum.
        top_k: classes per row, at most all.

    Yields:
        dict[str, Any]: the columns of `row_columns`; probabilities are float, empty columns "".
    """
    card.check_runner(runner, "the model")
    size = min(batch_size, runner.max_batch)
    k = min(top_k, len(card.classes))
    columns = row_columns(k)
    with ThreadPoolExecutor() as pool:
        decoded = _decode_ahead(pool, paths, card.decode, 4 * size)
        while group := list(islice(decoded, size)):
            images = [image for _, image in group if isinstance(image, np.ndarray)]
            best = zip(*runner.top(np.stack(images), k)) if images else iter(())
            for path, image in group:
                row: dict[str, Any] = dict.fromkeys(columns, "") | {"path": str(path)}
                if isinstance(image, ImageError):
                    yield row | {"status": "error", "error": str(image)}
                    continue
                row["status"] = "ok"
                for rank, (probability, index) in enumerate(zip(*next(best)), 1):
                    suffix = f"_{rank}" if rank > 1 else ""
                    row |= {f"class{suffix}": card.classes[index], f"probability{suffix}": float(probability)}
                yield row


def row_columns(top_k: int) -> list[str]:
    """Return ``path, status, class, probability, class_2, probability_2, ..., error``."""
    further = [name for rank in range(2, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    return ["path", "status", "class", "probability", *further, "error"]


def write_rows(
    rows: Iterable[dict[str, object]], total: int, columns: Sequence[str], output: Path, keep: bool = True
) -> dict[str, int]:
    """Write rows as CSV (or JSON lines, for ``.jsonl``) with a progress bar.

    Rows go to ``<output>.partial``, which is renamed to the output when all are written, so that a file of that name is
    always complete.

    Args:
        rows: what to write.
        total: number of rows, for the progress bar.
        columns: of CSV, see `row_columns`.
        output: the file; JSON lines if it ends in ``.jsonl``.
        keep: whether finished rows stay in ``<output>.partial`` after an error, whose note says how many. Defaults to
            True.

    Returns:
        dict[str, int]: the number of "images", and how many of them "failed".
    """
    is_jsonl = output.suffix.lower() == ".jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    images = failed = whole = 0
    try:
        with (
            partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
            progress_bar(total=total, desc="  infer", unit="img") as bar,
        ):
            table = csv.DictWriter(file, columns)
            if not is_jsonl:
                table.writeheader()
            for row in rows:
                if is_jsonl:
                    filled = {key: value for key, value in row.items() if value != ""}
                    file.write(json.dumps(filled, ensure_ascii=False) + "\n")
                else:
                    table.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})
                file.flush()  # a row counts once it has left this process
                whole, images = os.fstat(file.fileno()).st_size, images + 1
                failed += row["status"] != "ok"
                bar.update()
        commit_file(partial, output)
    except BaseException as error:
        if isinstance(error, OSError):
            add_path(error, output)
        if not (keep and images):
            partial.unlink(missing_ok=True)
        elif not _cut(partial, whole) or (images == total and isinstance(error, OSError)):
            written = f"{images:,} of {count(total, 'row')}"
            add_note(error, f"The disk did not confirm the {written} in {partial}: check them.")
        else:
            add_note(error, f"{images:,} of {count(total, 'row')} are in {partial}.")
        raise
    return {"images": images, "failed": failed}


def _cut(path: Path, size: int) -> bool:
    """Cut a file to its whole rows, ``size`` bytes; return False where the disk refuses."""
    try:
        with path.open("rb+") as file:
            file.truncate(size)
        sync(path)
    except OSError:
        return False
    return True


def _decode_ahead(
    pool: ThreadPoolExecutor, paths: Sequence[Path], decode: DecodeSpec, window: int
) -> Iterator[tuple[Path, np.ndarray | ImageError]]:
    def attempt(path: Path) -> np.ndarray | ImageError:
        try:
            return decode.pixels(path)
        except ImageError as error:
            return ImageError(str(error))  # without its traceback, which refers to the file's bytes

    pending = [(path, pool.submit(attempt, path)) for path in paths[:window]]
    for path in paths[window:]:
        first, future = pending.pop(0)
        pending.append((path, pool.submit(attempt, path)))
        yield first, future.result()
    for first, future in pending:
        yield first, future.result()
