"""Batch inference: images in, one row an image out."""

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from export.errors import DataError, ImageError, add_note
from export.files import put_file, sync, with_place
from export.words import count, listed
from pipeline.data.decode import DecodeSpec
from pipeline.data.folders import named, other_files
from pipeline.models.model_card import ModelCard
from pipeline.recipe.messages import EXTENSIONS
from pipeline.runners.base import Runner
from pipeline.terminal.console import progress_bar

log = logging.getLogger(__name__)


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Files as they are named, folders with every image below them, sorted; what is named twice is there once.

    What a folder holds and nobody classifies is said: files with other endings, folders without an image, links to
    folders (they are not followed, as they may lead in a circle), links that lead nowhere, pipes and devices.

    Raises:
        DataError: a path that does not exist, or no image at all.
    """
    found: list[Path] = []
    others: list[str] = []
    for path in _once(inputs):
        if path.is_dir():
            below = sorted(path.rglob("*"))
            images = [p for p in below if _named_as_image(p) and p.is_file()]
            _say_left_out(path, below, images)
            if left := named(other_files(path, set(images))):
                others.append(left)
                if images:
                    log.warning("left out below %s: %s", path, left)
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"Expected an image or a folder of images. Received: {path}, which does not exist.")
    if not found:
        held = f", but {', '.join(others)}. Convert what are images" if others else ""
        raise DataError(f"Expected images ({', '.join(sorted(EXTENSIONS))}). Received: none in {listed(inputs)}{held}.")
    return _once(found)


def _once(paths: Sequence[Path]) -> list[Path]:
    """The paths in their order, without those that name a file or folder again; links are other files."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(os.path.abspath(path), path)
    return list(first.values())


def _named_as_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith("._")


def _say_left_out(folder: Path, below: Sequence[Path], images: Sequence[Path]) -> None:
    filled = {parent for image in images for parent in image.parents}
    groups = {
        ("folder without an image", "folders without an image"): [
            p for p in below if p.is_dir() and not p.is_symlink() and p not in filled
        ],
        ("link to a folder, which is not followed", "links to folders, which are not followed"): [
            p for p in below if p.is_dir() and p.is_symlink()
        ],
        ("link that leads nowhere", "links that lead nowhere"): [
            p for p in below if _named_as_image(p) and p.is_symlink() and not p.exists()
        ],
        ("pipe or device", "pipes and devices"): [
            p for p in below if _named_as_image(p) and p.exists() and not (p.is_file() or p.is_dir())
        ],
    }
    for what, paths in groups.items():
        if paths:
            named = listed((p.relative_to(folder).as_posix() for p in paths), most=3)
            log.warning("left out below %s: %s (%s)", folder, count(len(paths), *what), named)


def classify(
    paths: Sequence[Path], runner: Runner, card: ModelCard, batch_size: int, top_k: int
) -> Iterator[dict[str, Any]]:
    """One row an image, in the order given; decoding runs ahead in threads, memory stays bounded.

    An unreadable image gives a row with status "error" and the reason; the others go on.
    """
    card.check_runner(runner, "the model")
    size = min(batch_size, runner.max_batch)
    k = min(top_k, len(card.classes))
    columns = row_columns(k)
    with ThreadPoolExecutor() as pool:
        ahead = _decode_ahead(pool, paths, card.decode, 4 * size)
        for group in _groups(ahead, size):
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
    """``path, status, class, probability, class_2, probability_2, ..., error``."""
    further = [name for rank in range(2, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    return ["path", "status", "class", "probability", *further, "error"]


def write_rows(
    rows: Iterable[dict[str, object]], total: int, columns: Sequence[str], output: Path, keep: bool = True
) -> dict[str, int]:
    """Write rows as CSV (or JSON lines, for ``.jsonl``) with a progress bar.

    Rows go to ``<output>.partial``, which takes the name of the output when all are written, so that a file of that
    name is always complete.

    Args:
        rows: what to write.
        total: how many there will be.
        columns: of CSV.
        output: where to; JSON lines if it ends in ``.jsonl``.
        keep: the rows that were finished, where something ends this early; a note of the error says how many.

    Returns:
        {"images", "failed"}.
    """
    lines = output.suffix.lower() == ".jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    images = failed = whole = 0
    try:
        with (
            partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
            progress_bar(total=total, desc="  infer", unit="img") as bar,
        ):
            write = _jsonl_writer(file) if lines else _csv_writer(file, columns)
            for row in rows:
                write(row)
                file.flush()  # a row counts once it has left this process
                whole, images = os.fstat(file.fileno()).st_size, images + 1
                failed += row["status"] != "ok"
                bar.update()
        put_file(partial, output)
    except BaseException as error:
        if isinstance(error, OSError):
            with_place(error, output)
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
    """Take half a row off the end of a file; False where the disk refuses."""
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


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _csv_writer(file: IO[str], columns: Sequence[str]) -> Any:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    return lambda row: writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})


def _jsonl_writer(file: IO[str]) -> Any:
    return lambda row: file.write(json.dumps({k: v for k, v in row.items() if v != ""}, ensure_ascii=False) + "\n")
