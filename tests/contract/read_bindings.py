"""Run by the interpreter that the bindings are for: prints their names as JSON.

    python read_bindings.py ROOT MODULE [FOLDER ...]

ROOT holds `export/`, MODULE is imported, FOLDERs go in front of `sys.path`. Standard library only, Python 3.8 syntax.
"""

import importlib
import json
import sys


def names_of(cls, name):
    """List a class and its attributes by full names, with the classes within it."""
    found = [name]
    for attribute in dir(cls):
        if not attribute.startswith("_"):
            value, full = getattr(cls, attribute), name + "." + attribute
            found += names_of(value, full) if isinstance(value, type) else [full]
    return found


def read_module(module):
    """List the names of TensorRT's own classes."""
    found = []
    for name in dir(module):
        value = getattr(module, name)
        if not name.startswith("_") and isinstance(value, type) and value.__module__.startswith("tensorrt"):
            found += names_of(value, name)
    return found


def main():
    """Print version, names, and what our own code makes of this library."""
    root, name = sys.argv[1:3]
    sys.path[:0] = [*sys.argv[3:], root]
    module = importlib.import_module(name)
    from export.tensorrt.library import TensorRT

    trt = TensorRT(module, "rtx" if "rtx" in name else "tensorrt", module.__version__)
    capabilities = {name: getattr(trt, name) for name, value in vars(TensorRT).items() if isinstance(value, property)}
    print(json.dumps({"version": module.__version__, "names": read_module(module), "capabilities": capabilities}))


if __name__ == "__main__":
    main()
