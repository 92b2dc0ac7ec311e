"""Write the evidence of a visit to disk after every change, without names of machines and paths.

The module needs Python 3.10 and numpy alone.
"""

import contextlib
import json
import logging
import math
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.markdown import as_markdown, judge_targets
from export.errors import ProjectError
from export.files import write_atomic
from export.records import to_json
from pipeline.artifacts.files import as_json, escape_undecodable
from pipeline.artifacts.gpu_evidence import GpuEvidence, StepState

log = logging.getLogger("benchmarks.gpu")

RESNET50_CONVOLUTIONS = 53
CUT_SHORT = 4  # the exit status
MARGIN = 30.0  # seconds beyond the time limit, after which a step counts as hung
# An absolute path of two names or more, not after a letter, a dot or a slash (images/s, http://a/b).
_PATH = re.compile(r"""(?<![\w./])(?:/[^\s/:,;'"()|]+)+(/[^\s/:,;'"()|]+)""")
_PATIENCE = 10.0  # seconds that the watchdog waits for a change in progress


class Record:
    """The evidence of a visit, written at every change, as JSON and as Markdown beside it.

    Args:
        path: of the JSON file.
        evidence: at the start of the visit.

    Raises:
        ProjectError: the file cannot be written, so that the visit would be useless.
    """

    def __init__(self, path: Path, evidence: GpuEvidence) -> None:
        self.path = path
        self.evidence = evidence
        self._lock = threading.RLock()
        self._lost: OSError | None = None
        self.change()
        self._refuse_loss()

    def change(self, **fields: Any) -> None:
        """Replace fields of the evidence, judge the targets again, and write everything.

        Raises:
            TypeError, ValueError, AttributeError: a value that cannot be written; the record stays unchanged.
        """
        with self._lock:
            evidence = replace(self.evidence, **fields)
            convolutions = {engine.network_layers.get("CONVOLUTION") for engine in evidence.engines.values()}
            resnet50 = evidence.model.size == (224, 224) and RESNET50_CONVOLUTIONS in convolutions
            evidence = replace(
                evidence, targets=judge_targets(evidence.timings, evidence.parity, evidence.gpu.name, resnet50)
            )
            data, page = as_json(tidy(to_json(evidence))), _without_names(as_markdown(evidence))
            self.evidence = evidence
            try:
                write_atomic(self.path, data)
                write_atomic(self.path.with_suffix(".md"), page)
                self._lost = None
            except OSError as error:  # a full disk may have room again; the earlier results are in the old file
                log.error("%s cannot be written: %s", self.path, error.strerror or error)
                self._lost = error

    def step(self, name: str, state: StepState, **fields: Any) -> None:
        """Replace fields of a step."""
        self.change(
            steps=tuple(
                replace(step, state=state, **fields) if step.name == name else step for step in self.evidence.steps
            )
        )

    def add(self, field: Literal["timings", "checks", "contests"], *rows: Any) -> None:
        """Append rows to a field."""
        self.change(**{field: (*getattr(self.evidence, field), *rows)})

    def close(self, state: Literal["finished", "interrupted", "cut short"]) -> None:
        """Write the final state of the visit.

        Raises:
            ProjectError: the file cannot be written; the page is then in the log.
        """
        self.change(state=state)
        if self._lost is not None:
            log.error("%s", _without_names(as_markdown(self.evidence)))
        self._refuse_loss()

    def _refuse_loss(self) -> None:
        if self._lost is not None:
            raise ProjectError(
                f"Expected to write {self.path}. Received: {self._lost.strerror or self._lost}. "
                "Free space there, or name another place with -o."
            ) from self._lost

    @contextlib.contextmanager
    def watched(self, seconds: float | None, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
        """End the process when a step hangs, because a library that does not return cannot be stopped otherwise.

        Args:
            seconds: time limit; after `MARGIN` more the record names the step that hung, and the process ends. None:
                no limit.
            leave: ends the process at once. Defaults to ``os._exit``.
        """
        timer = threading.Timer((seconds or 0.0) + MARGIN, self._cut_short, (leave,))
        timer.daemon = True
        if seconds is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut_short(self, leave: Callable[[int], object]) -> None:
        locked = self._lock.acquire(timeout=_PATIENCE)  # the thread that holds it may hang in a write
        try:
            if locked:
                hung = ", ".join(step.name for step in self.evidence.steps if step.state == "running") or "none"
                self.close("cut short")
                error = (
                    f"the time is up by {MARGIN:.0f} s and the step {hung} does not end: cut short, the results so "
                    f"far are in {self.path}"
                )
                log.error("%s", error)
                print(last_line(self, CUT_SHORT, error), flush=True)
        finally:
            leave(CUT_SHORT)
            if locked:  # only where ``leave`` returns, in tests
                self._lock.release()


def last_line(record: Record | None, status: int, error: str) -> str:
    """Return the last line that the command prints, as JSON.

    Args:
        record: of the visit; None where no visit began.
        status: the exit status.
        error: the first error; "" where there is none.
    """
    head: dict[str, object] = {"output": None}
    if record is not None:
        evidence = record.evidence
        verdict, failed = evidence.parity.verdict if evidence.parity else None, len(evidence.failures)
        head = {"output": str(record.path), "state": evidence.state, "parity": verdict, "failed": failed}
    return json.dumps({**head, "exit": status, "error": error})


def tidy(tree: Any) -> Any:
    """Return a JSON tree without this machine's name, paths, and numbers and characters that JSON does not have."""
    if isinstance(tree, dict):
        return {key: tidy(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [tidy(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return _without_names(tree) if isinstance(tree, str) else tree


def _without_names(text: str) -> str:
    """Return the text with absolute paths cut to their last name, and without the name of the machine."""
    text = _PATH.sub(lambda match: match[1][1:], escape_undecodable(text))
    host = platform.node().partition(".")[0]
    word = host.isalpha() or len(host) < 4  # may have another meaning in the text
    return text if word else re.sub(rf"\b{re.escape(host)}\b[\w.-]*", "this machine", text)
