"""What any number of processes answer with: the file that serves, its card, and how images are classified.

A `Deployment` is small and pickled, so that each process of Ray, Spark or a server opens the same bytes: the file's
digest goes with it and is compared before the file is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from export.errors import ProjectError
from pipeline.inference.classify import Settings, batch_size_of, classify
from pipeline.inference.infer import open_choice
from pipeline.inference.inputs.reader import PathReader
from pipeline.inference.items import Item, ItemReader
from pipeline.inference.pace import Pace
from pipeline.inference.rows import Row
from pipeline.models.model_card import ModelCard
from pipeline.runners.base import Runner
from pipeline.serving.select_model import Selection


@dataclass(frozen=True)
class Deployment:
    """What a process needs to answer as `infer` does.

    Attributes:
        name: of the recipe.
        choice: the file that answers, and its verdict.
        card: of the model.
        settings: how images are classified.
        digest: of the file's bytes (`Selection.digest`).
        threads: of ONNX Runtime on the CPU. Defaults to 0: one for each core.
    """

    name: str
    choice: Selection
    card: ModelCard
    settings: Settings
    digest: str
    threads: int = 0

    def open(self) -> BatchClassifier:
        """Return what classifies in this process; the file is compared and loaded when its with block begins."""
        return BatchClassifier(self)


class BatchClassifier:
    """A context manager that classifies images as `infer` does: a row for each, whatever the image.

    Args:
        deployment: the file that answers, and how.

    Raises:
        ProjectError: on entering, where the file is missing or its bytes are others than those that were selected.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.runner: Runner  # of the block
        self._block = ExitStack()

    def __enter__(self) -> BatchClassifier:
        deployment = self.deployment
        if (digest := deployment.choice.digest()) != deployment.digest:
            raise ProjectError(
                f"Expected {deployment.choice.path} as it was when it was selected, sha256 {deployment.digest[:12]}. "
                f"Received: {digest[:12]}. Every machine needs the artifacts of the same run."
            )
        self.runner = self._block.enter_context(open_choice(deployment.choice, deployment.settings, deployment.threads))
        return self

    def __exit__(self, *exc: object) -> None:
        self._block.close()

    @property
    def batch_size(self) -> int:
        """Images that are computed at once."""
        return batch_size_of(self.runner, self.deployment.settings)

    def items(self, items: Sequence[Item], reader: ItemReader | None = None) -> list[Row]:
        """Classify items.

        Args:
            items: with ascending numbers.
            reader: gives their content. Defaults to None: every item is a file.

        Returns:
            list[Row]: one for each item, in their order.
        """
        card, settings = self.deployment.card, self.deployment.settings
        batches = classify(items, reader or PathReader(), self.runner, card, settings, Pace())
        return [row for rows in batches for row in rows.rows]

    def files(self, paths: Sequence[str | Path | None]) -> list[Row]:
        """Classify files, by their paths on this machine; None is an image that is not there, called by its number."""
        return self.items(
            [
                _missing(row, str(row)) if path is None else Item(row, str(path), "file", str(path))
                for row, path in enumerate(paths)
            ]
        )

    def contents(self, contents: Sequence[bytes | None], names: Sequence[str] | None = None) -> list[Row]:
        """Classify encoded images.

        Args:
            contents: the bytes of image files; None is an image that is not there.
            names: what their rows are called. Defaults to None: "0", "1" and so on.
        """
        names = [str(row) for row in range(len(contents))] if names is None else names
        items = [
            _missing(row, name) if content is None else Item(row, name, "file", name, size=len(content))
            for row, (name, content) in enumerate(zip(names, contents, strict=True))
        ]
        return self.items(items, _Contents(contents))


def _missing(row: int, name: str) -> Item:
    return Item(row, name, "problem", "nothing is there", status="missing")


class _Contents:
    """Reads items from memory, by their row."""

    def __init__(self, contents: Sequence[bytes | None]) -> None:
        self._contents = contents

    def content(self, item: Item, largest: int) -> bytes:
        return self._contents[item.row] or b""
