"""Imports TensorFlow without its page of start-up messages, which would hide ours."""

from __future__ import annotations

import os
import sys
import tempfile


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
