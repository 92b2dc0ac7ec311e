"""Where TensorFlow comes in: `make check` skips what imports it, so another place would pass over tests unseen."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from export.files import ROOT

HEAVY = {"tensorflow", "keras", "tf_keras", "tf2onnx"}
# Rooms about Keras models, and elsewhere the modules that import it inside a function.
ROOMS = ("export/from_keras", "pipeline/keras_files", "pipeline/models", "pipeline/training")
IN_FUNCTIONS = {
    "benchmarks/backbones",
    "benchmarks/faults/examine",
    "benchmarks/faults/small_model",
    "benchmarks/inference/tutorial",
    "benchmarks/int8/networks",
    "export/onnx_passes/repairs",
    "pipeline/runners/keras",
    "pipeline/terminal/console",
    "pipeline/verification/outside/classifiers",
    "pipeline/verification/checks/decoding",
    *(f"pipeline/verification/explain/{name}" for name in ("case", "causes", "layers", "part")),
    "pipeline/verification/layers/keras_layers",
    "pipeline/verification/outside/onnx_files",
}
# Modules that load it when they are imported: no test of theirs is part of `make check`.
LOAD_IT = {
    *(f"export/from_keras/{name}" for name in ("check", "convert", "logits", "tf2onnx_adapter")),
    *(f"pipeline/keras_files/{name}" for name in ("frozen_graph", "keras2", "keras2_comparison", "keras2_layers")),
    "pipeline/keras_files/keras2_operations",
    *(f"pipeline/models/{name}" for name in ("canonical_form", "classifier", "import_model", "output_form")),
    *(f"pipeline/models/{name}" for name in ("resnet", "weights")),
    *(f"pipeline/training/{name}" for name in ("inputs", "loop", "train")),
}


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Modules that statements import; ``from a import b`` gives a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def when_loaded(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for node in nodes:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from when_loaded(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from when_loaded(ast.iter_child_nodes(node))


def heavy(names: Iterable[str]) -> bool:
    return not HEAVY.isdisjoint(name.partition(".")[0] for name in names)


def loading(sources: dict[str, str]) -> set[str]:
    """The modules, of a text each by path, that load TensorFlow when imported, by others of them too."""
    imports = {name: set(imported(when_loaded(ast.parse(text).body))) for name, text in sources.items()}
    found = {name for name, modules in imports.items() if heavy(modules)}
    while (
        more := {name for name, modules in imports.items() if modules & {one.replace("/", ".") for one in found}}
        - found
    ):
        found |= more
    return found


def anywhere(sources: dict[str, str]) -> set[str]:
    return {name for name, text in sources.items() if heavy(imported(ast.walk(ast.parse(text))))}


def ours() -> dict[str, str]:
    paths = (path for package in ("export", "pipeline", "benchmarks") for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_no_other_module_loads_tensorflow_when_it_is_imported() -> None:
    assert loading(ours()) == LOAD_IT, "import it inside the function, or `make check` skips the tests of the module"


def test_no_other_room_imports_tensorflow_at_all() -> None:
    found = {name for name in anywhere(ours()) if Path(name).parent.as_posix() not in ROOMS}
    assert found == IN_FUNCTIONS, "`make check` skips each test that comes to such an import"


def test_both_are_seen() -> None:
    sources = {
        "export/a": "try:\n    import keras\nexcept ImportError:\n    pass\n",
        "export/b": "from export import a\n",
        "export/c": "import export.b\n",
        "export/d": "def f():\n    import tensorflow.compat.v1\n    import export.c\n",
        "export/e": "if TYPE_CHECKING:\n    import keras\nelse:\n    x = 1\n",
        "export/f": "class A:\n    from tf2onnx import convert\n",
    }
    assert loading(sources) == {"export/a", "export/b", "export/c", "export/f"}
    assert anywhere(sources) == {"export/a", "export/d", "export/e", "export/f"}
