"""Batch inference on a cluster of Ray: its actors hold the file that serves, Ray Data moves the rows and resumes."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from export.errors import ProjectError, cause
from export.words import count
from pipeline.artifacts.files import sha256_file
from pipeline.distributed.cluster import Cluster, open_cluster, require_ray
from pipeline.distributed.follow import Follower
from pipeline.distributed.output_folder import PartsFolder
from pipeline.distributed.parts import ROW
from pipeline.distributed.ray_actor import Classifier, Work
from pipeline.distributed.remotely import call_remotely
from pipeline.inference.deployment import Deployment
from pipeline.inference.identity import THREADS, identity_of
from pipeline.inference.infer import Inference
from pipeline.inference.inputs.make_plan import make_plan
from pipeline.inference.inputs.plan import Plan
from pipeline.inference.output.record import RunRecord
from pipeline.inference.output.spec import require_parquet
from pipeline.inference.refusals import refuse_inputs_as_outputs
from pipeline.inference.request import Request
from pipeline.inference.row_log import SHOWN
from pipeline.serving.candidates import ON_GPU

log = logging.getLogger(__name__)

_PARTS_OF_A_WORKER: Final = 8  # at least, so that a faster one takes more of them
_TRIES: Final = 3  # of a part whose worker dies: one that kills each worker ends the run
_FILTER_BYTES: Final = 64 * 2**20  # of memory that Ray counts for leaving out rows; more where they need more


@dataclass(frozen=True)
class RayOptions:
    """Where the workers are.

    Attributes:
        address: of a cluster that is there. None: one is started on this machine, for the run alone.
        workers: their number. None: one for each GPU, or for every two CPUs.
    """

    address: str | None = None
    workers: int | None = None


def infer_on_ray(
    request: Request,
    card_path: Path,
    deploy: Callable[[int], Deployment],
    options: RayOptions,
    *,
    quiet: bool = False,
) -> Inference:
    """Classify what a request names on a cluster, and write a folder of Parquet parts with a row for each.

    Args:
        request: what is classified, and how; its output is a folder.
        card_path: file of the model's card.
        deploy: gives what answers, for a batch of so many images at most; it is pickled, and called where there is
            a machine like those that answer.
        options: where the workers are.
        quiet: show no progress bar. Defaults to False.

    Returns:
        Inference: the numbers for a person and for other programs.

    Raises:
        ProjectError: nothing to classify, an output in use, no cluster, or workers that fail; rows that are there stay.
    """
    began = time.perf_counter()
    require_parquet()
    require_ray()
    output = request.output
    assert output is not None
    refuse_inputs_as_outputs(request, (*request.inputs, *request.lists))
    with PartsFolder.take(output) as folder:
        plan = make_plan(
            request.inputs,
            request.lists,
            folder.inputs.absolute() / "plan",
            column=request.column,
            largest_file=request.largest_file,
        )
        for line in plan.lines():
            log.warning("%s", line)
        refuse_inputs_as_outputs(request, plan.archives)
        size = min(request.batch_size, len(plan))
        here = deploy(size) if options.address is None else None  # what it refuses is said before a cluster starts
        with open_cluster(options.address, options.workers) as cluster:
            workers = cluster.workers(options.workers)
            deployment = here or call_remotely(deploy, size, gpu=cluster.gpus > 0)
            result = _Run(request, folder, plan, cluster, workers, quiet).result(deployment, sha256_file(card_path))
        return replace(result, seconds=time.perf_counter() - began)


class _Run:
    """A request whose inputs are listed, on a cluster that is there."""

    def __init__(
        self, request: Request, folder: PartsFolder, plan: Plan, cluster: Cluster, workers: int, quiet: bool
    ) -> None:
        self.request, self.folder, self.plan, self.quiet = request, folder, plan, quiet
        self.cluster, self.workers = cluster, workers

    def result(self, deployment: Deployment, card_digest: str) -> Inference:
        """Classify the rows that are not there yet, and make the parts the output."""
        folder = self.folder
        deployment, record = self._begin(deployment, card_digest)
        continued, began = folder.written.done, time.perf_counter()
        with Follower(folder.written, len(self.plan), quiet=self.quiet):
            if folder.written.missing:
                self._classify(deployment, record)
        seconds = time.perf_counter() - began
        folder.finish()
        images = folder.written.done - continued
        speed = {"images_per_second": round(images / seconds, 3), "classify_seconds": round(seconds, 3)}
        return Inference(
            choice=deployment.choice,
            statuses=dict(folder.written.counts),
            continued=continued,
            left_out=self.plan.left_out,
            seconds=0.0,
            pace={**speed, "workers": self.workers},
            sentence=f"on {count(self.workers, 'worker')} of Ray, their start included",
        )

    def _begin(self, deployment: Deployment, card_digest: str) -> tuple[Deployment, RunRecord]:
        """Begin or continue the rows; return what answers as a worker opens it."""
        request, total = self.request, len(self.plan)
        threads = max(1, self.cluster.cpus // self.workers)
        settings = deployment.settings
        if not settings.decode_threads:
            settings = replace(settings, decode_threads=threads)
        rows = min(request.shard_rows, math.ceil(total / (_PARTS_OF_A_WORKER * self.workers)))
        record = self.folder.begin(
            identity_of(self.plan.digest, card_digest, deployment.choice, settings, threads),
            total,
            math.ceil(rows / settings.batch_size) * settings.batch_size,
            min(settings.top_k, len(deployment.card.classes)),
            kept=THREADS,
            fresh=request.restart,
            shows_all=total <= SHOWN,
        )
        former = record.identity[THREADS]
        choice = deployment.choice
        if choice.backend in ON_GPU:  # Ray shows a worker its GPU alone
            choice = replace(choice, runtime=replace(choice.runtime, device=0))
        return replace(deployment, choice=choice, settings=settings, threads=int(former or threads)), record

    def _classify(self, deployment: Deployment, record: RunRecord) -> None:
        import ray.data
        from ray.data.checkpoint import CheckpointConfig

        from pipeline.distributed.row_ranges import RowRanges

        folder = self.folder
        checkpoint = CheckpointConfig(
            id_column=ROW, checkpoint_path=str(folder.checkpoint.absolute()), delete_checkpoint_on_success=False
        )
        checkpoint.checkpoint_actor_memory_bytes = _FILTER_BYTES
        checkpoint.checkpoint_actor_pool_max_size = 1
        context = ray.data.DataContext.get_current()
        context.checkpoint_config = checkpoint
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        work = Work(deployment, self.plan.file, Path.cwd(), self._probes(), record.top_k)
        resources: dict[str, Any] = {"num_gpus": 1} if deployment.choice.backend in ON_GPU else {"num_cpus": 1}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Ray has no other way yet to bound the retries
                warnings.filterwarnings("ignore", module=r"ray\.")
                rows = ray.data.read_datasource(
                    RowRanges(record.total, record.shard_rows), num_cpus=0, compute=ray.data.TaskPoolStrategy(1)
                ).map_batches(
                    Classifier,
                    fn_constructor_args=(work,),
                    batch_size=record.shard_rows,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=self.workers),
                    max_restarts=-1,
                    max_task_retries=_TRIES,
                    **resources,
                )
                rows.write_parquet(
                    str(folder.parts.absolute()), ray_remote_args={"num_cpus": 0}, concurrency=self.workers
                )
        except (ray.exceptions.RayError, ProjectError, OSError) as error:
            raise explained(error, folder.path) from error

    def _probes(self) -> tuple[Path, ...]:
        """Return an input that is there, which every worker has to see."""
        for item in self.plan.items():
            if item.kind != "problem" and os.path.exists(item.place):
                return (Path(item.place).absolute(),)
        return ()


def explained(error: Exception, folder: Path) -> Exception:
    """Return what is to be said of an error of Ray: what a worker raised, or why there is none any more.

    Args:
        error: as Ray raises it.
        folder: that workers write to; an error of the system that names no file is taken as one of it.
    """
    from ray.exceptions import RayTaskError

    log.debug("%s", error)  # with the worker's traceback
    chain: list[BaseException] = [error]
    while (inner := getattr(chain[-1], "cause", None) or chain[-1].__cause__) is not None:
        chain.append(inner)
    for each in chain:
        if isinstance(each, ProjectError):
            return ProjectError(*each.args)
        if isinstance(each, OSError) and not isinstance(each, RayTaskError):  # Ray's is both, its text a traceback
            if each.errno is None or os.path.isabs(os.fsdecode(each.filename or "")):
                return each  # Ray puts its advice where the name of a file is
            return OSError(each.errno, os.strerror(each.errno), str(folder))
    for each, inner in pairwise(chain):
        if isinstance(each, RayTaskError):
            return ProjectError(f"Expected workers that classify. Received: {_in_words(inner)} --verbose shows where.")
    return ProjectError(
        f"Expected workers that stay. Received: {_in_words(error)} One that was killed {_TRIES + 1} times needs more "
        "memory: fewer --workers, or a smaller --batch-size. Ray's logs have the rest (/tmp/ray/session_latest/logs)."
    )


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {cause(error).rstrip('.')}."
