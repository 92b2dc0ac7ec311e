"""Keeps the kernels that TensorRT-RTX compiled, so that an engine starts quickly the second time.

They are code, so they lie in a folder of the user's own, one file a plan, and never beside a plan that came from
elsewhere. TensorRT-RTX itself refuses those of another GPU, driver or version. Standard library only.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from export.files import write_atomic

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/keras-resnet-to-tensorrt/rtx``, below ``~/.cache`` where that is not set."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "keras-resnet-to-tensorrt" / "rtx"


class KernelCache:
    """The compiled kernels of one engine. Without a readable or writable folder they are compiled every time.

    Args:
        config: a runtime configuration of the engine, which makes the cache; kept with it.
        plan_sha256: names the file.

    Attributes:
        cache: what execution contexts are given; None where TensorRT made none.
    """

    def __init__(self, config: Any, plan_sha256: str) -> None:
        self._config = config
        self.cache: Any = config.create_runtime_cache()
        self._path = cache_folder() / f"{plan_sha256}.bin"
        self._loaded = b""
        try:
            kept = self._path.read_bytes()
        except OSError:
            return
        if self.cache is not None and self.cache.deserialize(kept):
            self._loaded = kept

    def keep(self) -> None:
        """Write what was compiled since, in one step; what cannot be written is compiled again another time."""
        compiled = bytes(self.cache.serialize() or b"") if self.cache is not None else b""
        if not compiled or compiled == self._loaded:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path, compiled)
            self._loaded = compiled
        except OSError as error:
            log.debug("compiled kernels are not kept: %s", error)
