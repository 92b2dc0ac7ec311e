"""Show progress bars on a terminal, and import TensorFlow without its start-up messages."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tqdm import tqdm

# disable=None: no bar if standard error is not a terminal
progress_bar = partial(tqdm, disable=None, dynamic_ncols=True)

AT_ONCE = 64  # calls queued at a time; Ctrl-C has to wait for these
T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(function: Callable[[T], R], items: Sequence[T], description: str, unit: str = "img") -> Iterator[R]:
    """Yield the function's result for each item, in order, with a progress bar.

    Args:
        function: Function of one item; it is called in several threads.
        items: The items.
        description: Text before the bar.
        unit: Unit of the items. Defaults to "img".
    """
    bar = progress_bar(total=len(items), desc=description, unit=unit, leave=False, delay=1)
    with ThreadPoolExecutor() as pool, bar:
        for start in range(0, len(items), AT_ONCE):
            for result in pool.map(function, items[start : start + AT_ONCE]):
                bar.update()
                yield result


def start_tensorflow() -> None:
    """Import TensorFlow and Keras, and show what they write to standard error only if the import fails.

    TensorFlow's C++ code writes before its log settings take effect, so the file descriptor is redirected. Call it
    before the first ``import keras`` of a command; later calls do nothing.
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

            # The first operation logs the CPU's features. It must not initialise the GPUs, whose options are set later.
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
