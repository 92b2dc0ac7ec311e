"""The cluster of Ray that a run works on: one that is there, or one of this machine for the run alone."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from export.errors import ProjectError, cause
from export.files import ROOT
from export.tensorrt.driver import driver_status
from pipeline.distributed.head import HeadWatch
from pipeline.runners.cpus import usable_cores

log = logging.getLogger(__name__)

_STORE_BYTES: Final = 256 * 2**20  # for numbers and rows; pictures are read where they are decoded
_CPUS_OF_A_WORKER: Final = 2
_SPARE: Final = 2  # Ray counts one for what leaves out rows that are written
_REACH: Final = 10.0  # seconds to connect to a cluster that is there
_PATIENCE: Final = 40.0  # seconds for the head of a cluster to come back; Ray ends this process after 60
_PATIENCE_HERE: Final = 3.0  # nobody starts that of this machine again
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
_LOCAL: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # of Linux too: it listens on the loopback address alone
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray makes one in the home folder
}


@dataclass(frozen=True)
class Cluster:
    """What is there to work with.

    Attributes:
        cpus: in all machines.
        gpus: likewise.
        is_local: whether it is of this machine, for this run alone.
    """

    cpus: int
    gpus: int
    is_local: bool

    def workers(self, asked: int | None) -> int:
        """Return the number of workers: as asked for, else one for each GPU, or for every two CPUs.

        Raises:
            ProjectError: more than the cluster can hold.
        """
        most = self.gpus or (max(1, self.cpus - 1) if not self.is_local else None)
        if asked is not None and most is not None and asked > most:
            there = f"{self.gpus} GPUs" if self.gpus else f"{self.cpus} CPUs, one of which Ray needs itself"
            raise ProjectError(f"Expected at most {most} after --workers. Received: {asked}; the cluster has {there}.")
        return asked or self.gpus or max(1, min(self.cpus // _CPUS_OF_A_WORKER, most or self.cpus))


@contextlib.contextmanager
def open_cluster(address: str | None, workers: int | None) -> Iterator[Cluster]:
    """Connect to a cluster, or start one of this machine, and leave or stop it when the block ends.

    Args:
        address: of a cluster that is there, "auto" for one that this machine is part of. None: start one.
        workers: that were asked for.

    Raises:
        ProjectError: Ray is not installed, or there is no cluster at the address.
    """
    # Ray reads these while it is imported, and prints what its processes say.
    with (
        _set(_ENVIRONMENT if address is not None else _ENVIRONMENT | _LOCAL),
        contextlib.redirect_stdout(_DebugLines()),
    ):
        ray = _import_ray()
        with _handlers_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with _silent():
                    _connect(ray, address, workers)
            except (ray.exceptions.RayError, RuntimeError, ValueError, OverflowError, OSError) as error:
                where = f"at {address}" if address else "of this machine"
                raise ProjectError(
                    f"Expected a cluster of Ray {where}. Received: {cause(error)}. Start one with `ray start --head`; "
                    "where it wants a token, set RAY_AUTH_MODE=token; or leave out --ray-address."
                ) from error
        try:
            resources = ray.cluster_resources()
            gpus = int(resources.get("GPU", 0))
            cpus = usable_cores() if address is None else int(resources.get("CPU", 0))
            watch = HeadWatch(ray.get_runtime_context().gcs_address, _PATIENCE if address else _PATIENCE_HERE)
            try:
                with watch:
                    yield Cluster(cpus, gpus, address is None)
            except BaseException as error:
                if watch.is_gone:
                    raise _no_head(address) from error
                raise
        finally:
            ray.shutdown()


def require_ray() -> None:
    """Refuse to start where Ray is not installed; it is not imported yet.

    Raises:
        ProjectError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise _no_ray("No module named 'ray'")


def _import_ray() -> Any:
    """Return the module of Ray, whose messages are left to its log files."""
    try:
        import ray
        import ray.data.checkpoint
    except ImportError as error:
        raise _no_ray(str(error)) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ray


def _no_ray(reason: str) -> ProjectError:
    return ProjectError(
        f"Expected the package ray for --engine ray. Received: {reason}. Install it: `make install-distributed`."
    )


def _no_head(address: str | None) -> ProjectError:
    where = f"at {address}" if address else "of this machine"
    return ProjectError(
        f"Expected a cluster of Ray {where} that stays. Received: none any more, its head does not answer. Run the "
        "same command again, once it is there: the rows that are written stay."
    )


class _DebugLines(io.TextIOBase):
    """A stream whose lines are debug messages."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                log.debug("Ray: %s", line.strip())
        return len(text)


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is not None:
        _reach(address)
        modules = [str(ROOT / name) for name in ("pipeline", "export")]
        environment = {"py_modules": modules, "excludes": ["__pycache__"]}
        ray.init(address=address, runtime_env=environment, **options)
        return
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    logical = (workers or max(len(driver_status().devices), usable_cores() // _CPUS_OF_A_WORKER, 1)) + _SPARE
    ray.init(
        address="local",
        num_cpus=logical,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
        **options,
    )


def _reach(address: str) -> None:
    """Connect to an address that names a port and leave: Ray waits for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()


@contextlib.contextmanager
def _set(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that Ray and what it starts read; those that a person has set stay."""
    mine = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what goes to standard error: the native library says there that it says nothing else."""
    try:
        former = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(former, 2)
        os.close(former)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back what Ray does with signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
