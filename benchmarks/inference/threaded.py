"""A good script of a stranger: threads decode with Pillow while ONNX Runtime computes batches; a CSV file comes out.

It knows the model's size, its classes and how its images are resized, and nothing else of this project. Everything in
it is a default of the libraries but the thread pool, the batches, and one conversion and one copy of a picture that are
left out where they change nothing.
"""

import argparse
import csv
import json
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

RESIZES = ("stretch", "imagenet")
AHEAD = 3  # batches that are decoded or wait


def decode(path: Path, height: int, width: int, resize: str) -> np.ndarray:
    """Decode an image, upright, as uint8 of shape (height, width, 3).

    Args:
        path: of the image.
        height: in pixels.
        width: in pixels.
        resize: "stretch" to the size, or "imagenet": the short side to 8/7 of it, then the centre.
    """
    with Image.open(path) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        image = opened if opened.mode == "RGB" else opened.convert("RGB")
        if resize == "stretch":
            return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        scale = max(width / image.width, height / image.height) * 8 / 7
        whole = round(image.width * scale), round(image.height * scale)
        left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
        resized = image.resize(whole, Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + width, top + height)))


def main(argv: Sequence[str] | None = None) -> int:
    """Classify a folder, print the seconds from the first file to the written CSV, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference.threaded", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--model", type=Path, required=True, help="ONNX file that takes uint8 pixels")
    parser.add_argument("--classes", type=Path, required=True, help="JSON list of the classes' names")
    parser.add_argument("--resize", choices=RESIZES, required=True, help="how an image gets the model's size")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(argv)
    classes = json.loads(args.classes.read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(args.model), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    height, width = source.shape[1:3]

    start = time.perf_counter()
    paths = sorted(args.folder.iterdir())
    batches = iter([paths[at : at + args.batch_size] for at in range(0, len(paths), args.batch_size)])
    with ThreadPoolExecutor(os.cpu_count()) as pool, args.output.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "class", "probability"))

        def submit(batch: Sequence[Path]) -> tuple[Sequence[Path], list[Future[np.ndarray]]]:
            return batch, [pool.submit(decode, path, height, width, args.resize) for path in batch]

        waiting = deque(submit(batch) for batch in islice(batches, AHEAD))
        while waiting:
            batch, futures = waiting.popleft()
            pixels = np.stack([future.result() for future in futures])
            if (following := next(batches, None)) is not None:
                waiting.append(submit(following))
            probabilities = session.run(["probabilities"], {source.name: pixels})[0]
            for path, row, best in zip(batch, probabilities, probabilities.argmax(axis=1)):
                table.writerow((path, classes[best], f"{row[best]:.6f}"))
    print(json.dumps({"images": len(paths), "seconds": time.perf_counter() - start}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
