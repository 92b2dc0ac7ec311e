"""Run by the interpreter that the bindings are for: prints their names as JSON.

    python read_bindings.py ROOT MODULE [FOLDER ...]

ROOT holds `export/`, MODULE is imported, FOLDERs go in front of `sys.path`. Standard library only, Python 3.8 syntax.
"""

import importlib
import json
import re
import sys

# What pybind11 calls some classes whose Python names it did not know yet.
ALIASES = {"IParserError": "ParserError"}


def returned(doc):
    """Name what a method or property gives, by the signatures that pybind11 writes in front of its docstring."""
    found = re.findall(r"^(?:\d+\. )?\w*\(.*?\) -> (.+)$", doc or "", re.MULTILINE)
    names = {re.split(r"[.:]+", one.strip())[-1] for one in found}
    return sorted(ALIASES.get(name, name) for name in names)


def read_class(cls, name, api):
    """Note what a class has, and the classes within it."""
    own = api[name] = {}
    for attribute in dir(cls):
        if attribute.startswith("_"):
            continue
        value = getattr(cls, attribute)
        if isinstance(value, type):
            read_class(value, name + "." + attribute, api)
        doc = value.fget.__doc__ if isinstance(value, property) else getattr(value, "__doc__", None)
        own[attribute] = returned(doc) if isinstance(value, property) or callable(value) else []


def read_module(module):
    """Give class name to attribute to what it returns, of TensorRT's classes alone."""
    api = {}
    for name in dir(module):
        value = getattr(module, name)
        if not name.startswith("_") and isinstance(value, type) and value.__module__.startswith("tensorrt"):
            read_class(value, name, api)
    for attributes in api.values():
        for attribute, types in attributes.items():
            attributes[attribute] = [one for one in types if one in api]
    return api


def main():
    """Print version, names, and what our own code makes of this library."""
    root, name = sys.argv[1:3]
    sys.path[:0] = [*sys.argv[3:], root]
    module = importlib.import_module(name)
    from export.capabilities import TensorRT

    trt = TensorRT(module, "rtx" if "rtx" in name else "tensorrt", module.__version__)
    capabilities = {name: getattr(trt, name) for name, value in vars(TensorRT).items() if isinstance(value, property)}
    print(json.dumps({"version": module.__version__, "api": read_module(module), "capabilities": capabilities}))


if __name__ == "__main__":
    main()
