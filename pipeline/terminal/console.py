"""Progress bars, and TensorFlow without its start-up messages.

Progress bars on standard error, where a person watches; none in a log file.

Imports TensorFlow without its page of start-up messages, which would hide ours.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tqdm import tqdm

# disable=None: no bar where standard error is not a terminal
progress_bar = partial(tqdm, disable=None, dynamic_ncols=True)
_passing_bar = partial(progress_bar, leave=False, delay=1)  # for what is mostly done at once and never a result

AT_ONCE = 64  # calls that wait for a thread; Ctrl-C waits for no more than these
T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Sequence[T], description: str, unit: str = "img") -> Iterator[R]:
    """What the function gives for each item, in their order, with a progress bar."""
    with ThreadPoolExecutor() as pool, _passing_bar(total=len(items), desc=description, unit=unit) as bar:
        for start in range(0, len(items), AT_ONCE):
            for result in pool.map(function, items[start : start + AT_ONCE]):
                bar.update()
                yield result


def start_tensorflow() -> None:
    """Import TensorFlow and Keras; what they write to standard error while they do is shown only if they fail.

    TensorFlow's C++ part writes before any of its own log settings take effect, so its file descriptor is diverted.
    Call it before the first ``import keras`` of a command; later calls do nothing.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        failed = True
        try:
            import keras  # noqa: F401
            import tensorflow as tf

            # The CPU's features are announced at the first operation; GPUs must stay untouched for set-up options.
            with tf.device("/CPU:0"):
                tf.constant(0)
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            if failed:
                captured.seek(0)
                sys.stderr.write(captured.read().decode(errors="replace"))
    tf.get_logger().setLevel("ERROR")
