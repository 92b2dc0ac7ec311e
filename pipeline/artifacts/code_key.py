"""Digest of the code that decides what a stage writes; comments, docstrings and layout do not count.

The digest is the same on every version of Python, because artifacts travel between machines. The text of ``ast.dump``
differs between versions, so the syntax tree is written out here.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline.artifacts.files import sha256_bytes

PACKAGES = ("pipeline", "export", "benchmarks")
# Files at which following the imports stops, and why a change there cannot change what a stage writes.
BORDERS = {
    "export/errors.py": "exceptions",
    "export/records.py": "reads a JSON file as a record, or refuses it",
    "export/wire_format.py": "reads the fields of a protocol buffer, or refuses it",
    "export/files.py": "replaces whole files",
    "export/words.py": "formats numbers, lists and tables for messages",
    "pipeline/terminal/command_line.py": "parses command lines, or composes them for advice",
    "pipeline/terminal/console.py": "shows progress bars, and silences an import",
    "pipeline/terminal/processes.py": "ends a process with its parent",
    "pipeline/recipe/load.py": "reads the recipe, whose values enter the key through the stage's slice",
    "pipeline/recipe/schema.py": "types of the recipe, whose values enter the key through the stage's slice",
    "pipeline/recipe/limits.py": "refuses values of the recipe",
    "pipeline/recipe/messages.py": "parses YAML, or refuses it",
    "pipeline/artifacts/archives.py": "reads an archive or an array file, or refuses it",
    "pipeline/artifacts/array_rows.py": "reads rows of an array file, or refuses it",
    "pipeline/artifacts/files.py": "moves and hashes bytes",
    "pipeline/artifacts/inputs.py": "gives stages their declared inputs, which enter the key by their bytes",
    "pipeline/artifacts/manifest.py": "records results and compares keys",
    "pipeline/artifacts/output.py": "refuses a path, or reports a full disk",
    "pipeline/artifacts/results.py": "types of results, whose values the code of each stage gives",
    "pipeline/artifacts/paths.py": "names and finds files, which enter the key by names and bytes",
    "pipeline/workflow/environment.py": "facts of this machine, which enter the key by their values",
    "pipeline/workflow/stage.py": "runs stages",
    "pipeline/cli/options.py": "parses options and prints",
}
TEMPLATES = "templates"  # a folder beside a module; all its files count if the module names it
_FILE_NAME = re.compile(rf"str '(\w[\w.-]{{0,99}}\.\w+|{TEMPLATES})';")  # as `_write` writes a string
_IGNORED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})  # redundant, or without effect


def code_digest(module: str, root: Path) -> str:
    """Return the sha256 of a module's code and of all project modules that it imports, up to `BORDERS`.

    Args:
        module: Dotted name.
        root: Root folder of the repository.
    """
    return sha256_bytes("\0".join(digest for _, digest in sorted(closure(module, root).items())).encode())


def closure(module: str, root: Path, borders: Collection[str] = BORDERS.keys()) -> dict[str, str]:
    """Return the digests of the files that decide what a module does, by path relative to the repository.

    These are the project modules that it imports, also inside functions but not under ``TYPE_CHECKING``; and files
    beside a module that it names, including the folder of templates.

    Args:
        module: Dotted name.
        root: Root folder of the repository.
        borders: Files at which following the imports stops, and which are left out. Defaults to `BORDERS`.
    """
    digests: dict[str, str] = {}
    pending = [module.replace(".", "/") + ".py"]
    while pending:
        name = pending.pop()
        if name in digests or name in borders:
            continue
        source = _python_source(_read(root / name))
        digests[name] = source.digest
        pending += [path for imported in source.imports if (path := _path_of(imported, root))]
        digests |= {
            file.relative_to(root).as_posix(): source_digest(file)
            for file in _files_beside(root / name, source.file_names)
        }
    return digests


def source_digest(path: Path) -> str:
    """Return the sha256 of a Python file's syntax, or of another file's bytes with normalised line endings."""
    return _python_source(_read(path)).digest if path.suffix == ".py" else sha256_bytes(_read(path))


@dataclass(frozen=True)
class _Source:
    """The parts of a Python file that decide the digest.

    Attributes:
        digest: sha256 of its syntax.
        imports: Dotted names; ``from a import b`` gives both a and a.b.
        file_names: Its string constants that may name a file or a folder.
    """

    digest: str
    imports: frozenset[str]
    file_names: frozenset[str]


def _read(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")


@functools.lru_cache(maxsize=1024)
def _python_source(data: bytes) -> _Source:
    tree = ast.parse(data)
    syntax: list[str] = []
    _write(tree, syntax)
    return _Source(
        digest=sha256_bytes("".join(syntax).encode("utf-8", "surrogatepass")),
        imports=frozenset(name for name in _imports(tree.body) if name.partition(".")[0] in PACKAGES),
        file_names=frozenset(match[1] for part in syntax if (match := _FILE_NAME.fullmatch(part))),
    )


def _imports(statements: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names imported anywhere in statements, except under ``TYPE_CHECKING``."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _imports(node.orelse)
        else:
            for block in ("body", "handlers", "cases", "orelse", "finalbody"):
                yield from _imports(getattr(node, block, ()))


@functools.cache
def _path_of(module: str, root: Path) -> str:
    """Return a module's file relative to the repository; "" for a package or a name in a module."""
    path = module.replace(".", "/") + ".py"
    return path if (root / path).is_file() else ""


def _files_beside(module: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        path = module.parent / name
        files = sorted(path.rglob("*")) if name == TEMPLATES else [path]
        yield from (file for file in files if file.is_file() and file.suffix != ".py")


def _write(value: object, out: list[str]) -> None:
    """Write a node, a list of nodes or a plain value as text, without empty fields, in which Pythons differ."""
    if isinstance(value, ast.Constant):
        out.append(f"{type(value.value).__name__} {value.value!r};")
    elif isinstance(value, ast.AST):
        out.append(type(value).__name__ + "(")
        for name in value._fields:
            part = getattr(value, name, None)
            if name not in _IGNORED_FIELDS and part is not None and part != []:
                out.append(name + "=")
                _write(_join_strings(part) if isinstance(value, ast.JoinedStr) else part, out)
        out.append(")")
    elif isinstance(value, list):
        out.append("[")
        for item in value:
            is_string = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
            if not (is_string and isinstance(item.value.value, str)):  # docstrings do not count
                _write(item, out)
        out.append("]")
    else:
        out.append(f"{value!r};")


def _join_strings(parts: Iterable[ast.expr]) -> list[ast.expr]:
    """Merge adjacent strings among the parts of an f-string, because versions of Python differ in splitting them."""
    joined: list[ast.expr] = []
    for is_string, group in groupby(parts, lambda part: isinstance(part, ast.Constant)):
        if not is_string:
            joined += group
        elif text := "".join(part.value for part in group if isinstance(part, ast.Constant)):  # type: ignore[misc]
            joined.append(ast.Constant(text))
    return joined
