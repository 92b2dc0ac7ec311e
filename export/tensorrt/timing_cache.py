"""The timing cache: what TensorRT timed while it built, kept in a file so that the next build need not time it again.

One file serves all precisions and variants. It is a help and nothing more: one that does not fit is replaced, and a
disk that refuses it costs time, not the engine. Python 3.10 syntax, the standard library and TensorRT.
"""

import functools
import logging
import os
from pathlib import Path
from typing import Any

from export.files import write_atomic
from export.tensorrt.library import TensorRT

log = logging.getLogger(__name__)


def attach(trt: TensorRT, config: Any, path: str | os.PathLike[str], logger: Any) -> tuple[Any, str]:
    """Read a timing cache and give it to a build.

    Args:
        trt: the library.
        config: the builder's configuration.
        path: the file; it need not exist.
        logger: the library's logger.

    Returns:
        tuple: the cache, for `save` after the build, or None where there is none; and what became of it, for the
        sidecar: "used", "new", "replaced: why" or "left out: why".
    """
    if not trt.timing_cache:
        why = f"{trt.flavour} {trt.version} does not time layers while it builds"
        _say_left_out(why)
        return None, f"left out: {why}"
    file, data, why = Path(path), b"", ""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        why = str(error.strerror or error)
    if data:
        logger.clear()
        cache = config.create_timing_cache(data)
        # Some versions give an empty cache for bytes that they cannot read, and only log that.
        if cache is not None and not logger.heard() and config.set_timing_cache(cache, False):
            return cache, "used"
        why = logger.lines()
    if why:
        log.warning("the timing cache %s does not fit %s %s and is replaced: %s", file, trt.flavour, trt.version, why)
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, False):
        log.warning("timing_cache is left out: %s", logger.lines())
        return None, f"left out: {logger.lines()}"
    return cache, f"replaced: {why}" if why else "new"


@functools.cache
def _say_left_out(why: str) -> None:
    """Warn once, not for every engine of a build."""
    log.warning("timing_cache is left out: %s", why)


def save(cache: Any, path: str | os.PathLike[str]) -> None:
    """Write a timing cache back, whole or not at all; a refusal is a warning."""
    file = Path(path)
    timed = cache.serialize()
    if timed is None:
        log.warning("the timing cache %s is not kept: TensorRT gave nothing to keep", file)
        return
    try:
        write_atomic(file, memoryview(timed))
    except OSError as error:
        log.warning("the timing cache %s is not kept: %s", file, error.strerror or error)
