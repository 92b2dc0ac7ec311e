"""Calls functions in a child process that has 64 MiB of memory to itself, and says what they refused and read."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.files import ROOT

MEMORY = 64 * 2**20  # what the child may allocate beyond its imports
_CHILD = """
import importlib, json, resource, sys, time
from pathlib import Path

def status(path, key):
    return int(next(line.split()[1] for line in open(path) if line.startswith(key)))

def attempt(function, arguments):
    read, start = status("/proc/self/io", "rchar"), time.process_time()
    try:
        result = function(*arguments)
        if hasattr(result, "__enter__"):
            with result as result:
                pass
        error, message = "", repr(result)[:200]
    except BaseException as caught:
        error, message = type(caught).__name__, str(caught)[:2000]
    return [error, message, time.process_time() - start, status("/proc/self/io", "rchar") - read]

task = json.load(sys.stdin)
for module in task["imports"]:
    importlib.import_module(module)
calls = []
for name, path, more in task["calls"]:
    module, _, function = name.partition(":")
    calls.append((getattr(importlib.import_module(module), function), [Path(path), *more]))
limit = status("/proc/self/status", "VmSize") * 1024 + task["memory"]
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = [attempt(*call) for call in calls]
print(json.dumps([found, sorted({"tensorflow", "keras"} & set(sys.modules))]))
"""


@dataclass(frozen=True)
class Attempt:
    """What came of a call.

    Attributes:
        error: name of the exception's class, empty where there was none.
        message: of the exception, or the result.
        seconds: it took of the processor, whatever else the machine does.
        bytes_read: from files.
    """

    error: str
    message: str
    seconds: float
    bytes_read: int


def attempts(
    calls: Sequence[tuple[str, Path, Sequence[Any]]], imports: Sequence[str] = (), memory: int = MEMORY
) -> list[Attempt]:
    """Call ``module:function`` with a path and more arguments, one after the other, in one child without TensorFlow.

    Args:
        calls: what to call.
        imports: modules that the calls import themselves, whose size is not at stake.
        memory: bytes that all calls together may hold at a time.
    """
    task = {"calls": [(n, str(p), list(more)) for n, p, more in calls], "imports": list(imports), "memory": memory}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=json.dumps(task), capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == [], "what the file alone tells was looked for with TensorFlow"
    return [Attempt(*one) for one in found]


def write_bomb(path: Path, name: str, size: int, head: bytes = b"", said: int | None = None) -> Path:
    """A zip archive with a member that starts with ``head`` and unpacks to ``size`` bytes, a thousandth packed.

    Args:
        path: of the archive; what it holds already stays.
        name: of the member.
        size: of the member, without its head.
        head: its first bytes.
        said: the size that the archive says it has; None says what is true.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # blocks of this kind may be repeated
    packed = start + block * (size >> 20) + packer.compress(bytes(size % 2**20)) + packer.flush()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, packed)
        info = archive.getinfo(name)  # written at the end of the archive
        info.compress_type = zipfile.ZIP_DEFLATED
        info.file_size = len(head) + size if said is None else said
        if said is not None:  # what zipfile would compare, having cut off the rest
            info.CRC = zlib.crc32((head + bytes(said))[:said])
    return path
