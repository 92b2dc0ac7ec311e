"""What a training needs to go on after an interrupt: one file, whole or not there, for one recipe state only."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.files import replacing_file

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training got.

    Attributes:
        phase: ``head`` or ``fine_tune``.
        epochs: finished ones of that phase.
        history: a row for each finished epoch.
        score: of the best epoch so far; None before there is one.
        waited: epochs since then, in this phase.
        arrays: weights of the model, of the best epoch, of the optimizer, states of random layers.
    """

    phase: str = ""
    epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    score: tuple[float, float] | None = None
    waited: int = 0
    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict)


class Checkpoint:
    """A file that is named after everything that decides the training, so a changed recipe never resumes from it.

    Args:
        folder: outside the stage's folder, which is replaced as a whole.
        key: digest of the stage's inputs, recipe and code.
        seconds: at least so much lies between two writes.
    """

    def __init__(self, folder: Path, key: str, seconds: float) -> None:
        self._folder, self._path, self._seconds = folder, folder / f"{key}.npz", seconds
        self._last = time.monotonic()
        self._unwritten: Progress | None = None
        self._kept = 0  # finished epochs of both phases, in the file

    def read(self) -> Progress | None:
        """The last state of this very training; None if there is none."""
        if not self._path.is_file():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as file:
                meta = json.loads(file["meta"].tobytes())
                arrays = {
                    group: [file[f"{group}/{i}"] for i in range(count)] for group, count in meta["groups"].items()
                }
            score = None if meta["score"] is None else (meta["score"][0], meta["score"][1])
            self._kept = len(meta["history"])
            return Progress(meta["phase"], meta["epochs"], meta["history"], score, meta["waited"], arrays)
        except Exception as error:  # a damaged zip fails in many ways; then the training starts anew
            log.warning("%s is damaged, the training starts anew: %s", self._path, error)
            return None

    def put(self, progress: Progress) -> None:
        """Remember the state after an epoch, and write it if enough time has passed since the last write."""
        self._unwritten = progress
        if time.monotonic() - self._last >= self._seconds:
            self._write()

    def keep(self) -> str:
        """Write the last state if it is not yet, because the training stops; returns what that is good for.

        Returns:
            A sentence: from where the same command goes on.
        """
        self._write()
        if not self._kept:
            self.read()  # an earlier training may have left one, and this one was stopped before it looked
        if not self._kept:
            return "No finished epoch was kept: the training starts anew."
        return f"Run it again: the training resumes after epoch {self._kept:,}."

    def _write(self) -> None:
        """Write the last state if it is not yet; atomic. A full disk costs the checkpoint, not the training."""
        progress = self._unwritten
        if progress is None:
            return
        meta = {
            "phase": progress.phase,
            "epochs": progress.epochs,
            "history": progress.history,
            "score": progress.score,
            "waited": progress.waited,
            "groups": {group: len(arrays) for group, arrays in progress.arrays.items()},
        }
        flat = {f"{group}/{i}": a for group, arrays in progress.arrays.items() for i, a in enumerate(arrays)}
        try:
            with replacing_file(self._path) as part, part.open("wb") as file:
                for other in self._folder.iterdir():
                    if other not in (self._path, part):  # of another recipe state, or cut short
                        other.unlink(missing_ok=True)
                np.savez(file, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **flat)  # type: ignore[arg-type]
            self._kept, self._unwritten = len(progress.history), None
        except OSError as error:
            log.warning("no checkpoint was written: %s", error)
        finally:
            self._last = time.monotonic()

    def remove(self) -> None:
        """The training is done."""
        self._unwritten = None
        shutil.rmtree(self._folder, ignore_errors=True)
