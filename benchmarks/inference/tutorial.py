"""The loop of the tutorials: Pillow opens and resizes an image, Keras predicts it, and then comes the next one."""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("caffe", "tf", "torch")


def main(argv: Sequence[str] | None = None) -> int:
    """Classify a folder, print the seconds from the first file to the written CSV, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference.tutorial", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of images")
    parser.add_argument("--model", type=Path, required=True, help=".keras file")
    parser.add_argument("--classes", type=Path, required=True, help="JSON list of the classes' names")
    parser.add_argument("--preprocessing", choices=MODES, required=True, help="the mode of Keras' preprocess_input")
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(argv)
    import keras
    from keras.applications import imagenet_utils

    classes = json.loads(args.classes.read_text(encoding="utf-8"))
    model = keras.models.load_model(args.model)
    height, width = model.input_shape[1:3]

    start = time.perf_counter()
    paths = sorted(args.folder.iterdir())
    with args.output.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "class", "probability"))
        for path in paths:
            image = Image.open(path).convert("RGB").resize((width, height))
            pixels = np.expand_dims(np.asarray(image, dtype="float32"), axis=0)
            answers = model.predict(imagenet_utils.preprocess_input(pixels, mode=args.preprocessing), verbose=0)[0]
            best = int(np.argmax(answers))
            table.writerow((path, classes[best], f"{answers[best]:.6f}"))
    print(json.dumps({"images": len(paths), "seconds": time.perf_counter() - start}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
