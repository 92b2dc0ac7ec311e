"""Follows TensorRT's objects through our own source: which of their names it uses, where, and under which condition.

All functions are looked at together and again, until nothing new turns up: assignments, arguments, returns and
attributes pass on what an expression may be, and what a method of TensorRT gives is known from the signatures in the
real bindings. Nothing of the source is imported or run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.contract.expressions import Expressions
from tests.contract.values import NOTHING, Guard, Known, Result, Values, each, many


def analyse(sources: Mapping[str, str], returns: Mapping[str, Sequence[str]]) -> Result:
    """Follow TensorRT through source files.

    Args:
        sources: path from the repository's root to text.
        returns: "Class.attribute" to the classes that it may give, for the names of the bindings.
    """
    known = Known(returns)
    # Where the library comes from: no annotation can say so.
    known.values["export.capabilities._import", "return"] = frozenset({("module",)})
    trees = {path: ast.parse(text, path) for path, text in sources.items()}
    known.scopes = {path.removesuffix(".py").replace("/", ".") for path in trees}
    while known.changed:
        known.changed, known.result, known.callers = False, Result(), {}
        for path, tree in trees.items():
            _Statements(known, path, path.removesuffix(".py").replace("/", "."), "").block(tree.body)
    known.result.uses = known.uses()
    return known.result


def read_sources(root: Path) -> dict[str, str]:
    """The files that may hold an object of TensorRT: those that import what finds it, and those that run engines."""
    found = {}
    for folder in ("export", "pipeline", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "export.capabilities" in text or path.name == "capabilities.py" or path.parent.name == "runners":
                found[path.relative_to(root).as_posix()] = text
    return found


class _Statements(Expressions):
    """The statements of one scope."""

    owner = ""  # the class whose body this is

    def block(self, body: Sequence[ast.stmt], guards: frozenset[Guard] = frozenset()) -> None:
        before, self.guards = self.guards, self.guards | guards
        for statement in body:
            self.statement(statement)
            if isinstance(statement, ast.If) and isinstance(
                statement.body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break
            ):
                self.guards |= self.holding(statement.test, False)
        self.guards = before

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.define(node)
            case ast.ClassDef():
                self.define_class(node)
            case ast.Import() | ast.ImportFrom():
                self.bring_in(node)
            case ast.If() | ast.While():
                self.values(node.test)
                self.block(node.body, self.holding(node.test, True))
                self.block(node.orelse, self.holding(node.test, False))
            case ast.For() | ast.AsyncFor():
                self.assign(node.target, each(self.values(node.iter)))
                self.block(node.body)
                self.block(node.orelse)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    values = self.values(item.context_expr)
                    if item.optional_vars is not None:
                        self.assign(item.optional_vars, values)
                self.block(node.body)
            case ast.Try():
                for body in (node.body, *(one.body for one in node.handlers), node.orelse, node.finalbody):
                    self.block(body)
            case ast.Match():
                self.values(node.subject)
                for one in node.cases:
                    self.block(one.body)
            case ast.Assign():
                values = self.values(node.value)
                for target in node.targets:
                    self.assign(target, values)
            case ast.AnnAssign():
                values = self.values(node.value) if node.value is not None else NOTHING
                self.assign(node.target, values | self.annotated(node.annotation))
            case ast.AugAssign():
                self.assign(node.target, self.values(node.value))
            case ast.Return(value=ast.expr() as value):
                self.known.add(self.function, "return", self.values(value))
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.values(child)

    def bring_in(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                self.known.add(self.scope, alias.asname or alias.name, frozenset({("import", node.module, alias.name)}))
            elif alias.asname:
                self.known.add(self.scope, alias.asname, frozenset({("source", alias.name)}))

    def define(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        key = f"{self.scope}.{node.name}"
        decorators = {ast.unparse(one).split("(")[0].rpartition(".")[2] for one in node.decorator_list}
        kind = "property" if decorators & {"property", "cached_property"} else "function"
        self.known.functions[key] = node
        self.known.add(self.scope, node.name, frozenset({(kind, key)}))
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if self.owner and arguments and "staticmethod" not in decorators:
            self.known.add(key, arguments[0].arg, frozenset({("own", self.owner)}))
        for one in arguments:
            self.known.add(key, one.arg, self.annotated(one.annotation))
        self.known.add(key, "return", self.annotated(node.returns))
        _Statements(self.known, self.path, key, key).block(node.body)

    def define_class(self, node: ast.ClassDef) -> None:
        key = f"{self.scope}.{node.name}"
        self.known.add(self.scope, node.name, frozenset({("own class", key)}))
        self.known.bases[key] = frozenset().union(*map(self.values, node.bases))
        self.known.fields[key] = [
            one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        ]
        body = _Statements(self.known, self.path, key, self.function)
        body.owner = key
        body.block(node.body)

    def annotated(self, annotation: ast.expr | None) -> Values:
        """The classes of ours that an annotation names; to the type checker TensorRT's own are Any."""
        if annotation is None:
            return NOTHING
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        found = frozenset(
            ("own", value[1])
            for node in ast.walk(annotation)
            if isinstance(node, ast.Name)
            for value in self.known.get(self.scope, node.id)
            if value[0] == "own class"
        )
        return many(found) if isinstance(annotation, ast.Subscript) else found
