"""The code that decides what a stage writes, as a digest: comments, docstrings and layout do not count.

Nor does it matter which Python reads it.

``ast.dump`` would not do, because its text differs between versions of Python, and artifacts travel between machines.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline.artifacts.files import sha256_bytes

PACKAGES = ("pipeline", "export", "benchmarks")
# Where the walk along the imports ends, and why a change there cannot change what a stage writes.
BORDERS = {
    "export/errors.py": "exceptions",
    "export/records.py": "gives what a JSON file holds as a record, or refuses it",
    "export/wire_format.py": "gives the fields of a protocol buffer, or refuses it",
    "export/files.py": "puts whole files in place",
    "export/words.py": "puts a number before its noun, and cuts long lists, for people",
    "pipeline/terminal/command_line.py": "reads command lines, or composes them as advice",
    "pipeline/terminal/console.py": "draws bars, and silences an import",
    "pipeline/terminal/processes.py": "ends a process with its parent",
    "pipeline/recipe/load.py": "reads the recipe, whose values enter the key by the stage's slice",
    "pipeline/recipe/schema.py": "types of the recipe, whose values enter the key by the stage's slice",
    "pipeline/recipe/limits.py": "refuses values of the recipe",
    "pipeline/recipe/messages.py": "parses YAML, or refuses it",
    "pipeline/artifacts/archives.py": "gives what an archive or an array file holds, or refuses it",
    "pipeline/artifacts/files.py": "moves and hashes bytes",
    "pipeline/artifacts/inputs.py": "hands over what was declared, which enters the key by its bytes",
    "pipeline/artifacts/manifest.py": "records results and compares keys",
    "pipeline/artifacts/output.py": "refuses, or says that a disk is full",
    "pipeline/artifacts/paths.py": "names and finds files, which enter the key by their names and bytes",
    "pipeline/workflow/environment.py": "facts of this machine, which enter the key by their values",
    "pipeline/workflow/stage.py": "runs stages",
    "pipeline/cli/options.py": "talks",
}
TEMPLATES = "templates"  # a folder beside a module, all files of which count where the module names it
_FILE_NAME = re.compile(rf"str '(\w[\w.-]{{0,99}}\.\w+|{TEMPLATES})';")  # as `_write` has a text
_OF_NO_EFFECT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})  # said by the rest, or by nobody


def code_digest(module: str, root: Path) -> str:
    """sha256 over the code that a module runs: its own and that of all of ours that it imports, up to the borders.

    Args:
        module: dotted name.
        root: of the repository.
    """
    found = closure(module, root)
    return sha256_bytes("\0".join(found[name] for name in sorted(found)).encode())


def closure(module: str, root: Path) -> dict[str, str]:
    """Digests of the files that decide what a module does, by their paths relative to the repository.

    They are the modules of ours that are imported, inside functions too, but for type checkers only; and what lies
    beside a module and is read by its name: a file, or the folder of templates.

    Args:
        module: dotted name.
        root: of the repository.
    """
    found: dict[str, str] = {}
    waiting = [module.replace(".", "/") + ".py"]
    while waiting:
        name = waiting.pop()
        if name in found or name in BORDERS:
            continue
        source = _python_source(_read(root / name))
        found[name] = source.digest
        waiting += [path for one in source.imports if (path := _path_of(one, root))]
        for file in _files_beside(root / name, source.texts):
            found[file.relative_to(root).as_posix()] = source_digest(file)
    return found


def source_digest(path: Path) -> str:
    """sha256 of a Python file's syntax, of any other file's bytes with line endings normalised."""
    return _python_source(_read(path)).digest if path.suffix == ".py" else sha256_bytes(_read(path))


@dataclass(frozen=True)
class _Source:
    """What a Python file says.

    Attributes:
        digest: of its syntax.
        imports: dotted names; of ``from a import b`` both a and a.b.
        texts: those of its texts that may be the name of a file or a folder.
    """

    digest: str
    imports: frozenset[str]
    texts: frozenset[str]


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
        texts=frozenset(found[1] for part in syntax if (found := _FILE_NAME.fullmatch(part))),
    )


def _imports(statements: Iterable[ast.AST]) -> Iterator[str]:
    """What is imported anywhere in statements, but for type checkers only."""
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
    """The file of a module, relative to the repository; "" where there is none: a package, or a name in a module."""
    path = module.replace(".", "/") + ".py"
    return path if (root / path).is_file() else ""


def _files_beside(module: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        path = module.parent / name
        for file in sorted(path.rglob("*")) if name == TEMPLATES else [path]:
            if file.is_file() and file.suffix != ".py":
                yield file


def _write(value: object, out: list[str]) -> None:
    """A node, a list of nodes or a plain value as text; what is empty is left out, as Pythons differ in it."""
    if isinstance(value, ast.Constant):
        out.append(f"{type(value.value).__name__} {value.value!r};")
    elif isinstance(value, ast.AST):
        out.append(type(value).__name__ + "(")
        for name in value._fields:
            part = getattr(value, name, None)
            if name not in _OF_NO_EFFECT and part is not None and part != []:
                out.append(name + "=")
                _write(_texts_joined(part) if isinstance(value, ast.JoinedStr) else part, out)
        out.append(")")
    elif isinstance(value, list):
        out.append("[")
        for item in value:
            if not _is_text_alone(item):
                _write(item, out)
        out.append("]")
    else:
        out.append(f"{value!r};")


def _is_text_alone(node: object) -> bool:
    """Whether a statement is a text and nothing else: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _texts_joined(parts: Iterable[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, texts side by side as one: versions of Python differ in that."""
    joined: list[ast.expr] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, ast.Constant)):
        if not is_text:
            joined += group
        elif text := "".join(part.value for part in group if isinstance(part, ast.Constant)):  # type: ignore[misc]
            joined.append(ast.Constant(text))
    return joined
