"""While a model is loaded, Keras may import its own modules and no others, whatever the file names.

An architecture names a module for each of its classes, and Keras 2 imports it: any file of that name in the working
directory would run. ``model_safety`` refuses such files before; this holds even where it overlooks one.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

from pipeline.errors import ModelError

_READERS = ("keras.src.saving.serialization_lib", "tf_keras.src.saving.serialization_lib")
# Activation functions that Keras 2 takes from TensorFlow, and then imports from where they are; nothing beside them.
_ACTIVATIONS = {
    "tensorflow.python.ops.nn_ops": ("leaky_relu", "log_softmax_v2", "relu6"),
    "tensorflow.python.ops.nn_impl": ("swish",),
}
_OWN = re.compile(r"((tf_)?keras|tensorflow\.(python\.)?keras)(\.\w+)*|tensorflow\.python\.ops\.init_ops(_v2)?")


class _OwnModules:
    """What stands for ``importlib`` in the modules of Keras that read architectures."""

    @staticmethod
    def import_module(name: str) -> ModuleType | SimpleNamespace:
        """Import a module of Keras.

        Raises:
            ModelError: of anybody else.
        """
        if name in _ACTIVATIONS:
            module = importlib.import_module(name)
            return SimpleNamespace(**{function: getattr(module, function) for function in _ACTIVATIONS[name]})
        if _OWN.fullmatch(name) is None:
            raise ModelError(
                f"Expected a model of Keras' own modules. Received: one that imports {name[:80]!r}. Don't use the file."
            )
        return importlib.import_module(name)


@contextmanager
def only_kerass_modules() -> Iterator[None]:
    """Within it, reading an architecture imports nothing but modules of Keras."""
    readers = [vars(sys.modules[name]) for name in _READERS if name in sys.modules]
    former = [reader["importlib"] for reader in readers]  # a Keras without it would import by other ways: not opened
    for reader in readers:
        reader["importlib"] = _OwnModules
    try:
        yield
    finally:
        for reader, module in zip(readers, former):
            reader["importlib"] = module
