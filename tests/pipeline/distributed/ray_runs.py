"""Runs on Ray with the small classifier; as a command too, which a test ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.errors import ProjectError, notes
from export.files import write_atomic
from pipeline.distributed.ray_engine import RayOptions, infer_on_ray
from pipeline.inference.deployment import BatchClassifier, Deployment
from pipeline.inference.infer import Inference
from pipeline.inference.inputs.reader import PathReader
from pipeline.inference.items import Item, ItemReader
from pipeline.inference.request import Request
from pipeline.inference.rows import Row
from tests.pipeline.inference.deployments import CARD, make_deployment

BATCH = 4


def request(inputs: Sequence[Path | str], output: Path, **changes: Any) -> Request:
    """A request of `infer`, for two classes a row."""
    plain = Request(
        inputs=tuple(map(str, inputs)),
        lists=(),
        column=None,
        output=output,
        format="parquet",
        batch_size=BATCH,
        top_k=2,
        threshold=0.0,
        embeddings=None,
        sort_into=None,
        csv_safe=False,
        keep_damaged=False,
        decode_threads=0,
        largest_file=2**29,
        shard_rows=10_000,
        gpus=None,
        restart=False,
    )
    return replace(plain, **changes)


@dataclass(frozen=True)
class SlowDeployment(Deployment):
    """A deployment that takes its time, and notes the rows of each call in a file."""

    calls: Path = Path()
    seconds: float = 0.0

    def open(self) -> BatchClassifier:
        return SlowClassifier(self)


class SlowClassifier(BatchClassifier):
    def items(self, items: Sequence[Item], reader: ItemReader | None = None) -> list[Row]:
        assert isinstance(self.deployment, SlowDeployment)
        rows = super().items(items, reader or PathReader())
        time.sleep(self.deployment.seconds)
        with self.deployment.calls.open("a") as file:
            file.write("".join(f"{item.row} {os.getpid()}\n" for item in items))
        return rows


def slow(deployment: Deployment, calls: Path, seconds: float) -> SlowDeployment:
    return SlowDeployment(**vars(deployment), calls=calls, seconds=seconds)


def card_file(folder: Path) -> Path:
    """A file whose bytes stand for the model card."""
    path = folder / "card.json"
    write_atomic(path, repr(CARD))
    return path


def run(
    folder: Path, asked: Request, deploy: Callable[[int], Deployment], address: str | None = None, workers: int = 2
) -> Inference:
    return infer_on_ray(asked, card_file(folder), deploy, RayOptions(address, workers), quiet=True)


def main(folder: Path, photos: Path, output: Path, seconds: float) -> int:
    deployment = slow(make_deployment(folder, batch_size=BATCH), folder / "calls", seconds)
    try:
        result = run(folder, request([photos], output), lambda size: deployment)
    except KeyboardInterrupt as error:
        print(*notes(error))
        return 130
    except ProjectError as error:
        print(error, *notes(error))
        return 2
    print(result.images, result.continued)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*map(Path, sys.argv[1:4]), float(sys.argv[4])))  # type: ignore[arg-type]
