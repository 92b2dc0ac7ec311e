"""What a source file does, as a digest: comments, docstrings and layout do not count, nor which Python reads it.

``ast.dump`` would not do, because its text differs between versions of Python, and artifacts travel between machines.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from pipeline.files import sha256_bytes

_OF_NO_EFFECT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})  # said by the rest, or by nobody


def source_digest(path: Path) -> str:
    """sha256 of a Python file's syntax, of any other file's bytes with line endings normalised."""
    data = path.read_bytes().replace(b"\r\n", b"\n")
    return _python_digest(data) if path.suffix == ".py" else sha256_bytes(data)


@functools.lru_cache(maxsize=256)
def _python_digest(data: bytes) -> str:
    return sha256_bytes("".join(_written(ast.parse(data))).encode("utf-8", "surrogatepass"))


def _written(value: object) -> Iterator[str]:
    """A node, a list of nodes or a plain value as text; what is empty is left out, as Pythons differ in it."""
    if isinstance(value, ast.Constant):
        yield f"{type(value.value).__name__} {value.value!r};"
    elif isinstance(value, ast.AST):
        yield type(value).__name__ + "("
        for name in value._fields:
            part = getattr(value, name, None)
            if name not in _OF_NO_EFFECT and part is not None and part != []:
                yield name + "="
                yield from _written(_texts_joined(part) if isinstance(value, ast.JoinedStr) else part)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            if not _is_text_alone(item):
                yield from _written(item)
        yield "]"
    else:
        yield f"{value!r};"


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
