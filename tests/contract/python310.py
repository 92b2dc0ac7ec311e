"""What of our modules is newer than Python 3.10: their syntax, and the names that they take from its library."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from export.files import ROOT

# Where there is no 3.10 to ask, at least what one is tempted to use.
NEWER = {
    "asyncio.TaskGroup", "asyncio.timeout", "contextlib.chdir", "datetime.UTC", "enum.StrEnum", "hashlib.file_digest",
    "itertools.batched", "math.cbrt", "operator.call", "re._parser", "typing.Never", "typing.NotRequired",
    "typing.Self", "typing.assert_never", "typing.override", "tomllib.load", "tomllib.loads", "warnings.deprecated",
    "builtins.ExceptionGroup", "builtins.BaseExceptionGroup",
}  # fmt: skip
NEWER_METHODS = {"add_note"}


def path_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def source_of(module: str) -> str:
    return path_of(module).read_text(encoding="utf-8")


def library_names(source: str) -> set[tuple[str, str]]:
    """The names that a file takes from modules of the standard library and from the builtins.

    What stands behind a question for a newer version is left out.
    """
    tree = ast.parse(source)
    modules, found = {}, set()
    nodes = list(_for_310(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
            found |= {tuple(alias.name.rsplit(".", 1)) for alias in node.names if "." in alias.name}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add((modules[node.value.id], node.attr))
        elif isinstance(node, ast.Name) and hasattr(builtins, node.id):
            found.add(("builtins", node.id))
    return {(module, name) for module, name in found if module.split(".")[0] in sys.stdlib_module_names}


def newer_names(source: str) -> set[str]:
    """Those of them that Python 3.10 does not have, as far as they are listed here."""
    methods = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return {".".join(pair) for pair in library_names(source)} & NEWER | methods & NEWER_METHODS


def _for_310(node: ast.AST) -> Iterable[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).startswith("sys.version_info >= (3, 11"):
            for other in child.orelse:
                yield from _for_310(other)
        else:
            yield from _for_310(child)


def syntax_errors(*files: Path) -> str:
    """What is no Python 3.10; ruff knows more of that than `ast` does, such as quotes within an f-string."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--select=F",
        "--target-version=py310",
    ]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode else ""
