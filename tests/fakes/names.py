"""The names of a TensorRT version laid over fakes that have those of all: what it lacks is an AttributeError.

So it is with the real bindings: a name that is used without asking fails where the version lacks it. Python 3.10,
the standard library alone: `tests/orin` takes it too.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping
from typing import Any

from tests.contract.names import read_table


def names_of(name: str, fake: Any) -> Iterator[str]:
    """List what a fake class or enumeration has, by full names: what begins with "_" is the fake's own affair."""
    yield name
    for attribute in fake.__members__ if isinstance(fake, enum.EnumMeta) else dir(fake):
        if not attribute.startswith("_"):
            value = getattr(fake, attribute)
            yield from names_of(f"{name}.{attribute}", value if isinstance(value, enum.EnumMeta) else None)


class Lacking:
    """An attribute that a version does not have."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __get__(self, instance: Any, owner: Any) -> Any:
        raise AttributeError(self.words)

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(self.words)


class Module(types.SimpleNamespace):
    """The module of a version: the fakes that it has, as it has them.

    Args:
        version: a column of ``names.txt``.
        fakes: class or enumeration by its name in TensorRT.
        state: attributes of every class, with "_" in front.
    """

    def __init__(self, version: str, fakes: Mapping[str, Any], **state: Any) -> None:
        self._version = version
        for name, fake in fakes.items():
            if self.has(name):
                setattr(self, name, self._of(name, fake, state))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._lacks(name))

    def has(self, name: str) -> bool:
        """Whether the version has a name of the fakes."""
        table = read_table()
        if name not in table[self._version]:
            raise LookupError(f"{name} of the fakes is not in tests/contract/names.txt: run `make contract`")
        answer = table[self._version][name]
        return bool(table["8.6.1"][name] if answer is None else answer)  # of 8.6.0, which is a large download

    def _lacks(self, name: str) -> str:
        return f"TensorRT {self._version} has no {name}, or its fake does not: tests/contract/names.txt tells which"

    def _of(self, name: str, fake: Any, state: Mapping[str, Any]) -> Any:
        if isinstance(fake, enum.EnumMeta):
            return enum.IntEnum(name, {one.name: one.value for one in fake if self.has(f"{name}.{one.name}")})
        changed: dict[str, Any] = {}
        for attribute in dir(fake):
            full, value = f"{name}.{attribute}", getattr(fake, attribute)
            if attribute.startswith("_"):
                continue
            if not self.has(full):
                changed[attribute] = Lacking(self._lacks(full))
            elif isinstance(value, enum.EnumMeta):
                changed[attribute] = self._of(full, value, state)
        made: Any = None

        def __init__(one: Any, *given: Any, **more: Any) -> None:
            fake.__init__(one, *given, **more)
            vars(one)["_made"] = True

        def __setattr__(one: Any, attribute: str, value: Any) -> None:
            """Refuse what the class does not declare, as the bindings do; classes of ours that derive from it may."""
            own = attribute.startswith("_") or attribute in vars(one) or type(one) is not made
            if "_made" in vars(one) and not own and not any(attribute in vars(cls) for cls in made.__mro__):
                raise AttributeError(self._lacks(f"{name}.{attribute}"))
            object.__setattr__(one, attribute, value)

        made = type(name, (fake,), {**changed, **state, "__init__": __init__, "__setattr__": __setattr__})
        return made
