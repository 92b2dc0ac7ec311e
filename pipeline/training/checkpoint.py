"""Records of a training: the history of its epochs, and the checkpoint from which an interrupted training resumes."""

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from export.errors import ProjectError
from export.files import replacing_file
from export.records import read_record, to_json, without_none
from pipeline.terminal.command_line import COMMAND, CommandNeededError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """Metrics of an epoch.

    Attributes:
        phase: ``head`` or ``fine_tune``.
        epoch: number of the epoch, counted from 1 over both phases.
        loss: on the train images.
        accuracy: on the train images.
        val_loss: on the validation images; None where there are none.
        val_accuracy: on the validation images; None where there are none.
        learning_rate: None where Keras does not report it.
    """

    phase: str
    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    learning_rate: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return what there is."""
        return without_none(self)


@dataclass(frozen=True)
class History:
    """``train/history.json``: the epochs of both phases in order, and the schema of the file."""

    epochs: tuple[Epoch, ...]
    schema: int = 1


def read_history(path: Path) -> tuple[Epoch, ...]:
    """Read the epochs of ``train/history.json``.

    A file of earlier versions, a list without a schema number, is refused like one of another schema: the training
    code has changed since, so its stage has to run again in any case.

    Raises:
        CommandNeededError: missing, damaged, or of another schema; with the file, the key and the command.
    """
    try:
        return read_record(History, path, remedy=f"Run {COMMAND} again.", what="training history").epochs
    except ProjectError as error:
        raise CommandNeededError(str(error), "train") from error


@dataclass
class Progress:
    """State of a training after an epoch.

    Attributes:
        phase: ``head`` or ``fine_tune``.
        epochs: number of finished epochs in this phase.
        history: the finished epochs of both phases.
        score: validation accuracy and negative loss of the best epoch; None before there is one.
        waited: epochs since the best one, in this phase.
        arrays: weights of the model and of its best epoch, state of the optimizer and of random layers.
    """

    phase: str = ""
    epochs: int = 0
    history: list[Epoch] = field(default_factory=list)
    score: tuple[float, float] | None = None
    waited: int = 0
    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict)


class Checkpoint:
    """A file with the state of a training, written atomically. Its name is the key: a changed recipe never resumes.

    Args:
        folder: outside the stage's folder, which is replaced as a whole.
        key: digest of the stage's inputs, recipe and code.
        seconds: minimum time between two writes.
    """

    def __init__(self, folder: Path, key: str, seconds: float) -> None:
        self._folder, self._path, self._seconds = folder, folder / f"{key}.npz", seconds
        self._last = time.monotonic()
        self._unwritten: Progress | None = None
        self._saved = 0  # finished epochs of both phases, in the file

    def read(self) -> Progress | None:
        """Read the last state of the training with this key; None if there is none."""
        if not self._path.is_file():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as file:
                meta = json.loads(file["meta"].tobytes())
                arrays = {
                    group: [file[f"{group}/{i}"] for i in range(count)] for group, count in meta["groups"].items()
                }
            score = None if meta["score"] is None else (meta["score"][0], meta["score"][1])
            history = [Epoch(**row) for row in meta["history"]]
            self._saved = len(history)
            return Progress(meta["phase"], meta["epochs"], history, score, meta["waited"], arrays)
        except Exception as error:  # a damaged zip fails in many ways; then the training starts from the beginning
            log.warning("%s is damaged, the training starts from the beginning: %s", self._path, error)
            return None

    def put(self, progress: Progress) -> None:
        """Store the state after an epoch, and write it if enough time has passed since the last write."""
        self._unwritten = progress
        if time.monotonic() - self._last >= self._seconds:
            self._write()

    def keep(self) -> str:
        """Write the last state, if it is not written yet, because the training stops.

        Returns:
            A sentence that says where the same command resumes.
        """
        self._write()
        if not self._saved:
            self.read()  # an earlier run may have left a file, and this one was stopped before it read it
        if not self._saved:
            return "No finished epoch was saved: the training starts from the beginning."
        return f"Run it again: the training resumes after epoch {self._saved:,}."

    def _write(self) -> None:
        """Write the last state if it is not written yet. A full disk costs the checkpoint, not the training."""
        progress = self._unwritten
        if progress is None:
            return
        meta = {
            "phase": progress.phase,
            "epochs": progress.epochs,
            "history": [to_json(epoch) for epoch in progress.history],
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
            self._saved, self._unwritten = len(progress.history), None
        except OSError as error:
            log.warning("no checkpoint was written: %s", error)
        finally:
            self._last = time.monotonic()

    def remove(self) -> None:
        """Delete the checkpoint, because the training is finished."""
        self._unwritten = None
        shutil.rmtree(self._folder, ignore_errors=True)
