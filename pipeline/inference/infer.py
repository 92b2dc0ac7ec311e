"""Batch inference from what was asked for to the finished file."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from export.errors import ProjectError
from export.files import temporary_folder
from export.tensorrt.driver import driver_status
from pipeline.artifacts.files import sha256_file
from pipeline.inference.classify import Settings, classify
from pipeline.inference.embeddings import open_embeddings
from pipeline.inference.gpu_worker import Work
from pipeline.inference.gpus import parse_gpus, run_on_gpus
from pipeline.inference.identity import THREADS, identity_of
from pipeline.inference.inputs.make_plan import make_plan
from pipeline.inference.inputs.plan import Plan, read_plan
from pipeline.inference.inputs.reader import open_reader
from pipeline.inference.items import Item
from pipeline.inference.output.run import RunFolder, open_worker
from pipeline.inference.output.sort import Sorted, refuse_members, sort_into
from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.output.stream import StreamWriter
from pipeline.inference.pace import Pace
from pipeline.inference.progress import Progress
from pipeline.inference.refusals import check_links_folder, refuse_inputs_as_outputs, refuse_outputs_within
from pipeline.inference.request import Request
from pipeline.inference.row_log import RowLog
from pipeline.inference.rows import OK, Row, Rows
from pipeline.models.model_card import ModelCard
from pipeline.runners.base import Runner
from pipeline.runners.cpus import usable_cores
from pipeline.runners.open import open_runner
from pipeline.serving.candidates import ON_GPU
from pipeline.serving.select_model import Selection

log = logging.getLogger(__name__)

_SHARDS_OF_A_GPU = 4  # at least, so that a faster one takes more of them


@dataclass(frozen=True)
class Inference:
    """What became of a run.

    Attributes:
        choice: the file that answered, and how.
        statuses: number of rows by status, those of an earlier run that was continued included.
        continued: rows of an earlier run.
        left_out: number of files that were not taken, by ending.
        seconds: from the listing of the inputs to the finished file.
        pace: the numbers of `Pace.summary`.
        sentence: which stage bounds the run.
        links: what ``--sort-into`` made. None: it was not asked for.
    """

    choice: Selection
    statuses: Mapping[str, int]
    continued: int
    left_out: Mapping[str, int]
    seconds: float
    pace: Mapping[str, object]
    sentence: str
    links: Sorted | None = None

    @property
    def images(self) -> int:
        """Number of rows."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Number of rows whose status is not "ok"."""
        return self.images - self.statuses.get(OK, 0)


class _Writer(Protocol):
    def write(self, rows: Rows) -> object: ...


def infer(
    request: Request,
    card_path: Path,
    card: ModelCard,
    select: Callable[[int], Selection],
    *,
    quiet: bool = False,
) -> Inference:
    """Classify what a request names, and write a row for each.

    Args:
        request: what is classified, how, and where the rows go.
        card_path: file of the model's card.
        card: the model's card.
        select: gives the file that answers, for a batch of so many images at most.
        quiet: show no progress bar. Defaults to False.

    Returns:
        Inference: the numbers for a person and for other programs.

    Raises:
        ProjectError: nothing to classify, an output in use, or a backend that fails; rows that are there stay.
    """
    began = time.perf_counter()
    refuse_inputs_as_outputs(request, (*request.inputs, *request.lists))
    if request.sort_into is not None:
        check_links_folder(request.sort_into, request.inputs)
        refuse_outputs_within(request.sort_into, {"-o": request.output, "--embeddings": request.embeddings})
    if request.output is None:
        with temporary_folder(Path(tempfile.gettempdir()) / "pipeline-infer", mode=0o700) as folder:
            run = _Run(request, card, _plan(request, folder), select, quiet)
            result = run.to_stream()
            return replace(result, seconds=time.perf_counter() - began)
    others = {"--embeddings": request.embeddings, "--sort-into": request.sort_into}
    with RunFolder.take(request.output, {o: path for o, path in others.items() if path is not None}) as folder_of_run:
        run = _Run(request, card, _plan(request, folder_of_run.inputs), select, quiet)
        result = run.to_file(folder_of_run, sha256_file(card_path))
        return replace(result, seconds=time.perf_counter() - began)


def _plan(request: Request, folder: Path) -> Plan:
    plan = make_plan(
        request.inputs, request.lists, folder / "plan", column=request.column, largest_file=request.largest_file
    )
    for line in plan.lines():
        log.warning("%s", line)
    refuse_inputs_as_outputs(request, plan.archives)
    if request.sort_into is not None:
        refuse_members(plan.items())
    return plan


class _Run:
    """A request whose inputs are listed and whose model is selected."""

    def __init__(
        self, request: Request, card: ModelCard, plan: Plan, select: Callable[[int], Selection], quiet: bool
    ) -> None:
        self.request, self.card, self.plan, self.quiet = request, card, plan, quiet
        self.choice = select(min(request.batch_size, len(plan)))
        self.gpus = self._gpus()
        self.settings = Settings(
            batch_size=min(request.batch_size, self.choice.most_at_once),
            top_k=request.top_k,
            threshold=request.threshold,
            decode_threads=request.decode_threads,
            keep_damaged=request.keep_damaged,
            largest_file=request.largest_file,
            embeddings=request.embeddings is not None,
        )
        self.spec = OutputSpec(
            request.format, min(request.top_k, len(card.classes)), request.csv_safe, request.embeddings
        )
        self.pace = Pace()
        self.processes = 1

    def to_stream(self) -> Inference:
        """Write the rows to standard output."""
        writer = StreamWriter(sys.stdout.buffer, self.spec)
        with Progress(len(self.plan), quiet=self.quiet) as progress:
            self._classify(self.plan.items(), writer, progress, usable_cores())
        return self._result(writer.counts())

    def to_file(self, run: RunFolder, card_digest: str) -> Inference:
        """Write the rows by way of the run's folder, from where an earlier run was stopped."""
        threads = usable_cores()
        identity = run.begin(
            identity_of(self.plan.digest, card_digest, self.choice, self.settings, threads),
            len(self.plan),
            self._shard_rows(),
            self.spec,
            kept=THREADS,
            fresh=self.request.restart,
        )
        if isinstance(former := identity[THREADS], int) and former:
            threads = former
        before, shards = run.counts(), run.unfinished()
        done = sum(before.values())
        with Progress(len(self.plan), done, done - before.get(OK, 0), quiet=self.quiet) as progress:
            if shards and self.gpus:
                self.choice.announce()
                opener = _Opener(self.choice, self.plan.file, run.path, self.card, self.settings)
                shown = RowLog(len(self.plan))
                self.processes = run_on_gpus(
                    self.gpus, shards, opener, self.settings.threads, self.pace, partial(_show, shown, progress)
                )
                shown.close()
            elif shards:
                items = (item for shard in shards for item in self.plan.items(shard.next, shard.stop))
                self._classify(items, run, progress, threads)
        links: list[Sorted] = []
        folder = self.request.sort_into
        statuses = run.finish(None if folder is None else lambda: links.append(self._sort(folder)))
        return replace(self._result(statuses), continued=done, links=links[0] if links else None)

    def _classify(self, items: Iterable[Item], writer: _Writer, progress: Progress, threads: int) -> None:
        self.choice.announce()
        shown = RowLog(len(self.plan))
        with open_choice(self.choice, self.settings, threads) as runner, open_reader(self.plan) as reader:
            batches = classify(items, reader, runner, self.card, self.settings, self.pace)
            with contextlib.closing(batches):
                for rows in batches:
                    writer.write(rows)
                    _show(shown, progress, rows.rows)
        shown.close()

    def _sort(self, folder: Path) -> Sorted:
        assert self.request.output is not None
        return sort_into(folder, self.request.output, self.spec, self.card.classes)

    def _result(self, statuses: Mapping[str, int]) -> Inference:
        threads = self.settings.threads
        return Inference(
            choice=self.choice,
            statuses=statuses,
            continued=0,
            left_out=self.plan.left_out,
            seconds=0.0,
            pace=self.pace.summary(threads, self.processes),
            sentence=self.pace.sentence(threads, self.processes, gpu=self.choice.backend in ON_GPU),
        )

    def _gpus(self) -> tuple[int, ...]:
        text = self.request.gpus
        if text is None:
            return ()
        gpus = parse_gpus(text, len(driver_status().devices))
        if self.choice.backend not in ON_GPU:
            raise ProjectError(
                f"Expected a file that runs on a GPU for --gpus {text}. Received: {self.choice.run_name}. "
                "Leave out --gpus, or name a --backend of a GPU."
            )
        return gpus

    def _shard_rows(self) -> int:
        """Return the rows of a shard, whole batches; few enough that every GPU gets some."""
        rows, size = self.request.shard_rows, self.settings.batch_size
        if self.gpus:
            rows = min(rows, math.ceil(len(self.plan) / (_SHARDS_OF_A_GPU * len(self.gpus))))
        return math.ceil(rows / size) * size


def _show(shown: RowLog, progress: Progress, rows: Sequence[Row]) -> None:
    shown.add(rows)
    progress.update(len(rows), sum(row.status != OK for row in rows))


def open_choice(choice: Selection, settings: Settings, threads: int) -> Runner:
    """Make the runner of a file that was selected; it is loaded when its with block begins.

    Args:
        choice: the file.
        settings: of the run; where they ask for embeddings, the runner gives them.
        threads: of ONNX Runtime on the CPU.
    """
    # Idle threads of ONNX Runtime that wait in a loop would take the cores from those that decode.
    if settings.embeddings:
        return open_embeddings(
            choice.path, choice.backend, choice.precision, choice.runtime, threads=threads, spinning=False
        )
    return open_runner(choice.path, choice.backend, choice.precision, choice.runtime, threads=threads, spinning=False)


@dataclass(frozen=True)
class _Opener:
    """Opens what a process on one GPU works with; it is pickled."""

    choice: Selection
    plan: Path
    folder: Path
    card: ModelCard
    settings: Settings

    @contextlib.contextmanager
    def __call__(self, gpu: int, threads: int) -> Iterator[Work]:
        runtime = replace(self.choice.runtime, device=gpu)
        choice = replace(self.choice, runtime=runtime)
        plan = read_plan(self.plan)
        with open_choice(choice, self.settings, 0) as runner, open_reader(plan) as reader:
            settings = replace(self.settings, decode_threads=threads)
            yield Work(plan.items, reader, runner, self.card, settings, open_worker(self.folder))
