"""What expressions of our source may be, and which names of TensorRT they use on the way."""

from __future__ import annotations

import ast
from typing import Any

from tests.contract.values import NOTHING, WRAPPER, Guard, Known, Site, Use, Value, Values, each, joined, many, named

Arguments = dict[Any, Values]  # by position and by name


class Expressions:
    """Expressions in one scope: a module, a class or a function. ``guards`` is what holds where they stand."""

    def __init__(self, known: Known, path: str, scope: str, function: str) -> None:
        self.known, self.path, self.scope, self.function = known, path, scope, function
        self.guards: frozenset[Guard] = frozenset()

    def site(self, node: ast.expr) -> Site:
        site = Site(self.path, node.lineno, node.col_offset, self.function)
        self.known.guards[site] = self.guards
        return site

    def use(self, name: str, node: ast.expr, text: Value | None = None) -> None:
        """Note a use; one by a literal that stands elsewhere is a use there."""
        site, guards = self.site(node), self.guards
        if text is not None:
            site, guards = text[2], guards | self.known.guards[text[2]]
        self.known.result.uses.add(Use(name, site, guards))

    def wraps(self, node: ast.expr) -> bool:
        """Whether this is our object that holds the library."""
        return any(one[0] == "own" and one[1].endswith(f".{WRAPPER}") for one in self.values(node))

    # --- conditions ---

    def holding(self, test: ast.expr, holds: bool) -> frozenset[Guard]:
        """What is known of this TensorRT where ``test`` is true (``holds``) or false."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.holding(test.operand, not holds)
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And if holds else ast.Or):
            return joined(self.holding(one, holds) for one in test.values)
        if isinstance(test, ast.Attribute) and self.wraps(test.value):
            return frozenset({("capability", test.attr, holds)})
        if isinstance(test, ast.Call):
            return frozenset(("name", name, holds) for name in self.asked(test))
        return NOTHING

    def asked(self, node: ast.Call) -> list[str]:
        """The names that a call asks for: `hasattr`, `getattr` with a default, `TensorRT.has`."""
        function, arguments = node.func, node.args
        if isinstance(function, ast.Name) and (function.id, len(arguments)) in (("hasattr", 2), ("getattr", 3)):
            names = self.texts(arguments[1])
            return [full for base in self.values(arguments[0]) for name in names for full in named(base, name)]
        if isinstance(function, ast.Attribute) and function.attr == "has" and self.wraps(function.value):
            return [f"{enum}.{name}" for enum in self.texts(arguments[0]) for name in self.texts(arguments[1])]
        return []

    def texts(self, node: ast.expr) -> list[str]:
        return [one[1] for one in self.values(node) if one[0] == "text"]

    # --- expressions ---

    def values(self, node: ast.expr) -> Values:
        """What an expression may be."""
        match node:
            case ast.Name():
                return self.known.get(self.scope, node.id)
            case ast.Constant(value=str()):
                return frozenset({("text", node.value, self.site(node))})
            case ast.Attribute():
                return self.attribute(node)
            case ast.Call():
                return self.call(node)
            case ast.IfExp():
                self.values(node.test)
                yes = self.under(self.holding(node.test, True), node.body)
                return yes | self.under(self.holding(node.test, False), node.orelse)
            case ast.BoolOp():
                return self.either(node)
            case ast.Tuple():
                return frozenset({("tuple", *map(self.values, node.elts))})
            case ast.List() | ast.Set():
                return many(joined(map(self.values, node.elts)))
            case ast.Dict():
                joined(self.values(key) for key in node.keys if key is not None)
                return many(joined(map(self.values, node.values)))
            case ast.Starred():
                return each(self.values(node.value))
            case ast.Subscript():
                self.values(node.slice)
                return each(self.values(node.value))
            case ast.NamedExpr():
                self.assign(node.target, self.values(node.value))
                return self.values(node.target)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self.comprehension(node)
            case ast.BinOp():  # lists are joined so
                return self.values(node.left) | self.values(node.right)
            case ast.Lambda():
                return self.values(node.body)
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.values(child)
                return NOTHING

    def under(self, guards: frozenset[Guard], node: ast.expr) -> Values:
        before, self.guards = self.guards, self.guards | guards
        found = self.values(node)
        self.guards = before
        return found

    def either(self, node: ast.BoolOp) -> Values:
        found, before = NOTHING, self.guards
        for one in node.values:
            found |= self.values(one)
            self.guards |= self.holding(one, isinstance(node.op, ast.And))
        self.guards = before
        return found

    def comprehension(self, node: Any) -> Values:
        before = self.guards
        for one in node.generators:
            self.assign(one.target, each(self.values(one.iter)))
            for test in one.ifs:
                self.values(test)
                self.guards |= self.holding(test, True)
        if isinstance(node, ast.DictComp):
            self.values(node.key)
        found = many(self.values(node.value if isinstance(node, ast.DictComp) else node.elt))
        self.guards = before
        return found

    def attribute(self, node: ast.Attribute) -> Values:
        bases = self.values(node.value)
        ours = [one for one in bases if one[0] in ("own", "source") and self.member(one, node.attr)]
        if self.wraps(node.value):
            self.known.result.consulted.setdefault(node.attr, set()).add(self.site(node))
        if not bases and node.attr in self.known.telling:
            self.use(f"*.{node.attr}", node)
        # In a container of mixed things it is ours that is meant, where ours has the attribute.
        return joined(self.member(one, node.attr) or self.theirs(one, node.attr, node) for one in ours or bases)

    def member(self, base: Value, name: str) -> Values:
        """An attribute of our own class, instance or module."""
        if base[0] == "source":
            return self.known.exactly(base[1], name)
        if base[0] not in ("own", "own class"):
            return NOTHING
        if base[1].endswith(f".{WRAPPER}") and name == "module":
            return frozenset({("module",)})
        found = self.known.member(base[1], name)
        computed = frozenset(one for one in found if one[0] == "property" and base[0] == "own")
        return (found - computed) | joined(self.known.exactly(one[1], "return") for one in computed)

    def theirs(self, base: Value, name: str, node: ast.expr, text: Value | None = None) -> Values:
        """An attribute of the library, of one of its classes or objects."""
        found: set[Value] = set()
        for full in named(base, name):
            self.use(full, node, text)
            if base[0] == "module" or full in self.known.classes:
                found.add(("class", full))
            found |= {("object", one) for one in self.known.returns.get(full, ())}
        return frozenset(found)

    # --- calls ---

    def call(self, node: ast.Call) -> Values:
        arguments: Arguments = dict(enumerate(map(self.values, node.args)))
        arguments |= {one.arg: self.values(one.value) for one in node.keywords}
        for name in self.asked(node):
            self.known.result.asked.setdefault(name, set()).add(self.site(node))
        known = self.builtin(node, arguments) if isinstance(node.func, ast.Name) else self.method(node, arguments)
        if known is not None:
            return known
        found: set[Value] = set()
        for callee in self.values(node.func):
            if callee[0] == "function":
                found |= self.bind(callee[1], node, arguments, isinstance(node.func, ast.Attribute))
            elif callee[0] == "own class":
                found.add(("own", callee[1]))
                self.construct(callee[1], node, arguments)
            elif callee[0] == "class":
                found.add(("object", callee[1]))
            elif callee[0] == "object":  # a method of theirs is what it gives
                found.add(callee)
        return frozenset(found)

    def builtin(self, node: ast.Call, arguments: Arguments) -> Values | None:
        name, first = node.func.id, arguments.get(0, NOTHING)
        if name == "getattr" and len(arguments) == 2:
            texts = [one for one in arguments[1] if one[0] == "text"]
            return joined(
                self.member(base, text[1]) or self.theirs(base, text[1], node, text) for base in first for text in texts
            )
        if name == "getattr":
            return joined(
                frozenset(("object", one) for one in self.known.returns.get(full, ())) for full in self.asked(node)
            )
        if name == "zip":
            return many(frozenset({("tuple", *(each(arguments[at]) for at in range(len(node.args))))}))
        if name == "enumerate":
            return many(frozenset({("tuple", NOTHING, each(first))}))
        if name in ("list", "tuple", "sorted", "set", "frozenset", "reversed", "iter", "deque"):
            return many(each(first))
        return each(first) if name == "next" else None

    def method(self, node: ast.Call, arguments: Arguments) -> Values | None:
        """Methods that are known beforehand: ours of the wrapper, and those of containers."""
        if not isinstance(node.func, ast.Attribute):
            return None
        name, holder, first = node.func.attr, node.func.value, arguments.get(0, NOTHING)
        if name == "has" and self.wraps(holder):
            return NOTHING
        if name == "member" and self.wraps(holder):
            return self.enumerated(node, first, arguments.get(1, NOTHING))
        if name in ("append", "appendleft", "add", "put") and len(arguments) == 1:
            self.fill(holder, first)
        if name in ("extend", "update") and len(arguments) == 1:
            self.fill(holder, each(first))
        if name == "enter_context":
            return first
        held = frozenset(one for one in self.values(holder) if one[0] in ("many", "tuple"))
        if held and name in ("values", "copy"):
            return held
        if held and name == "items":
            return many(frozenset({("tuple", NOTHING, each(held))}))
        return each(held) if held and name in ("get", "pop", "popleft", "setdefault") else None

    def enumerated(self, node: ast.Call, enums: Values, names: Values) -> Values:
        for enum in (one[1] for one in enums if one[0] == "text"):
            texts = [one for one in names if one[0] == "text"]
            for text in texts:
                self.use(f"{enum}.{text[1]}", node, text)
            if not texts:  # put together from parts: the enumeration, at least
                self.use(enum, node)
        return frozenset(("object", one[1]) for one in enums if one[0] == "text")

    def construct(self, owner: str, node: ast.Call, arguments: Arguments) -> None:
        for found in self.known.member(owner, "__init__"):
            if found[0] == "function":
                self.bind(found[1], node, arguments, True)
        fields = self.known.fields[owner]
        for index, name in enumerate(fields):
            self.known.add(owner, name, arguments.get(index, NOTHING) | arguments.get(name, NOTHING))

    def bind(self, key: str, node: ast.Call, arguments: Arguments, bound: bool) -> Values:
        """Pass arguments on to our function; give what it returns."""
        function = self.known.functions[key].args
        self.known.callers.setdefault(key, []).append(self.site(node))
        names = [one.arg for one in (*function.posonlyargs, *function.args)]
        if bound and key.rpartition(".")[0] in self.known.fields:  # a method: the first is the object itself
            names = names[1:]
        for name, values in arguments.items():
            if isinstance(name, str):
                self.known.add(key, name, values)
            elif isinstance(name, int) and name < len(names):
                self.known.add(key, names[name], values)
        return self.known.exactly(key, "return")

    # --- assignments ---

    def assign(self, target: ast.expr, values: Values) -> None:
        """Give values to what stands on the left."""
        match target:
            case ast.Name():
                self.known.add(self.scope, target.id, values)
            case ast.Attribute():
                self.attribute(target)
                for base in self.values(target.value):
                    if base[0] == "own":
                        self.known.add(base[1], target.attr, values)
            case ast.Subscript():
                self.values(target.slice)
                self.fill(target.value, values)
            case ast.Starred():
                self.assign(target.value, many(values))
            case ast.Tuple() | ast.List():
                for index, part in enumerate(target.elts, 1):
                    taken = [one[index] for one in values if one[0] == "tuple" and index < len(one)]
                    self.assign(part, joined([*taken, *({one[1]} for one in values if one[0] == "many")]))

    def fill(self, container: ast.expr, values: Values) -> None:
        """Put values into a container."""
        if isinstance(container, ast.Name | ast.Attribute):
            self.assign(container, many(values))
