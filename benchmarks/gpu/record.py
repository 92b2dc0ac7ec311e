"""Keeps the record of a visit on disk: whole after every change, with nothing in it that names a machine or a path.

Python 3.10 syntax, standard library alone.
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
from pipeline.artifacts.files import as_json, as_text
from pipeline.artifacts.gpu_evidence import GpuEvidence, StepState

log = logging.getLogger("benchmarks.gpu")

RESNET50_CONVOLUTIONS = 53
CUT_SHORT = 4  # the exit status
MARGIN = 30.0  # seconds beyond the time asked for, after which a step counts as hung
# An absolute path of two names or more; what follows a letter, a dot or a slash is none (images/s, http://a/b).
_PATH = re.compile(r"""(?<![\w./])(?:/[^\s/:,;'"()|]+)+(/[^\s/:,;'"()|]+)""")
_PATIENCE = 10.0  # seconds that the watchdog waits for a change under way


class Record:
    """What is known of a visit. Every change is written at once, as JSON and beside it as Markdown.

    Args:
        path: of the JSON file.
        evidence: what is known at the beginning.

    Raises:
        ProjectError: the disk does not take it: the visit would be for nothing.
    """

    def __init__(self, path: Path, evidence: GpuEvidence) -> None:
        self.path = path
        self.evidence = evidence
        self._lock = threading.RLock()
        self._lost: OSError | None = None
        self.change()
        self._refuse_loss()

    def change(self, **fields: Any) -> None:
        """Replace fields of the evidence, judge the targets anew, and write everything.

        Raises:
            TypeError, ValueError, AttributeError: a value that cannot be written; the record stays what it was.
        """
        with self._lock:
            known = replace(self.evidence, **fields)
            convolutions = {one.network_layers.get("CONVOLUTION") for one in known.engines.values()}
            resnet50 = known.model.size == (224, 224) and RESNET50_CONVOLUTIONS in convolutions
            known = replace(known, targets=judge_targets(known.timings, known.parity, known.gpu.name, resnet50))
            data, page = as_json(tidy(to_json(known))), _without_names(as_markdown(known))
            self.evidence = known
            try:
                write_atomic(self.path, data)
                write_atomic(self.path.with_suffix(".md"), page)
                self._lost = None
            except OSError as error:  # a full disk may have room again; what was known is in the file before
                log.error("%s cannot be written: %s", self.path, error.strerror or error)
                self._lost = error

    def step(self, name: str, state: StepState, **fields: Any) -> None:
        """Replace fields of a step."""
        steps = (replace(one, state=state, **fields) if one.name == name else one for one in self.evidence.steps)
        self.change(steps=tuple(steps))

    def add(self, field: Literal["timings", "checks"], *rows: Any) -> None:
        """Put rows behind those of a field."""
        self.change(**{field: (*getattr(self.evidence, field), *rows)})

    def close(self, state: Literal["finished", "interrupted", "cut short"]) -> None:
        """Write how the visit ended.

        Raises:
            ProjectError: the disk did not take it; then the page is in the log.
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
        """End the process when a step hangs: nothing within can stop a library that does not return.

        Args:
            seconds: the time asked for; `MARGIN` beyond it the record says in which step it was cut short. None: no
                limit.
            leave: ends the process at once. Defaults to ``os._exit``.
        """
        if seconds is None:
            yield
            return
        timer = threading.Timer(seconds + MARGIN, self._cut_short, (leave,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut_short(self, leave: Callable[[int], object]) -> None:
        held = self._lock.acquire(timeout=_PATIENCE)  # who has it may hang as well, in a write
        try:
            if held:
                hung = ", ".join(one.name for one in self.evidence.steps if one.state == "running") or "none"
                self.close("cut short")
                words = "the time is up by %.0f s and the step %s does not end: cut short, what was known is in %s"
                log.error(words, MARGIN, hung, self.path)
                print(last_line(self, CUT_SHORT, words % (MARGIN, hung, self.path)), flush=True)
        finally:
            leave(CUT_SHORT)
            if held:  # where it is not ended at once
                self._lock.release()


def last_line(record: Record | None, status: int, error: str) -> str:
    """What the command prints last, however it ends: one line of JSON.

    Args:
        record: of the visit; None where none began.
        status: the exit status.
        error: what went wrong first; "" where nothing did.
    """
    told: dict[str, object] = {"output": None}
    if record is not None:
        evidence = record.evidence
        verdict = evidence.parity.verdict if evidence.parity else None
        failed = len(evidence.failures)
        told = {"output": str(record.path), "state": evidence.state, "parity": verdict, "failed": failed}
    return json.dumps({**told, "exit": status, "error": error})


def tidy(tree: Any) -> Any:
    """JSON without what names this machine (its name, paths), and without numbers and letters that JSON has not."""
    if isinstance(tree, dict):
        return {key: tidy(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [tidy(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return _without_names(tree) if isinstance(tree, str) else tree


def _without_names(text: str) -> str:
    """The text with the last name of every absolute path alone, and without the name of the machine."""
    text = _PATH.sub(lambda match: match[1][1:], as_text(text))
    host = platform.node().partition(".")[0]
    if host.isalpha() or len(host) < 4:  # a word, which may well mean something else
        return text
    return re.sub(rf"\b{re.escape(host)}\b[\w.-]*", "this machine", text)
