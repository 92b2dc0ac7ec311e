"""Keep TensorRT's timings of a build in a file, the timing cache, so that the next build does not repeat them.

One file serves all precisions and variants. It is optional: a cache that does not fit is replaced, and one that cannot
be written costs time, not the engine. The module needs Python 3.10, the standard library and TensorRT alone.
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
    """Read a timing cache and attach it to a build.

    Args:
        trt: the library.
        config: the builder's configuration.
        path: the file; it need not exist.
        logger: the library's logger.

    Returns:
        tuple: the cache, for `save` after the build, or None where there is none; and its state for the sidecar:
        "used", "new", "replaced: why" or "left out: why".
    """
    if not trt.timing_cache:
        why = f"{trt.flavour} {trt.version} does not time layers while it builds"
        _warn_left_out(why)
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
        # Some versions return an empty cache for bytes that they cannot read, and only log that.
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
def _warn_left_out(why: str) -> None:
    """Warn once, not for every engine of a build."""
    log.warning("timing_cache is left out: %s", why)


def save(cache: Any, path: str | os.PathLike[str]) -> None:
    """Write a timing cache back, whole or not at all; warn where it cannot be written."""
    timings = cache.serialize()
    if timings is None:
        log.warning("the timing cache %s is not kept: TensorRT returned no timings", path)
        return
    try:
        write_atomic(Path(path), memoryview(timings))
    except OSError as error:
        log.warning("the timing cache %s is not kept: %s", path, error.strerror or error)
