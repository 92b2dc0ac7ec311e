"""One base error: who catches it catches whatever a person can fix, wherever it was raised."""

import ast
import builtins
from collections.abc import Iterator

import pytest

from export.errors import DataError, ModelError, ParityError, ProjectError, RecipeError, RunnerError
from export.files import ROOT
from export.tensorrt.compatibility import RefusedEngineError

CONTROL_FLOW = {"CheckFailedError", "CheckSkippedError"}  # the results of checks, which their caller records
SIGNALS = {"Terminated"}  # ends the process, as Ctrl-C does
OF_TESTS = {"ParityError"}  # raised in a person's own tests, where an AssertionError is a failure and no error
BUGS = {"UndeclaredError"}  # of a stage that reads what it does not declare: nothing that a person mends


@pytest.mark.parametrize("kind", [RefusedEngineError, DataError, ModelError, ParityError, RecipeError, RunnerError])
def test_every_kind_is_a_project_error(kind: type[Exception]) -> None:
    assert issubclass(kind, ProjectError)


def roots(source: str) -> Iterator[str]:
    """Classes that inherit from an exception of Python, whichever it is."""
    for node in ast.walk(ast.parse(source)):
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            kind = getattr(builtins, ast.unparse(base).removeprefix("builtins."), None)
            if isinstance(kind, type) and issubclass(kind, BaseException):
                yield node.name  # type: ignore[attr-defined]


def test_there_is_no_second_root() -> None:
    files = [path for name in ("export", "pipeline", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    found = {name for path in files for name in roots(path.read_text(encoding="utf-8"))}
    others = CONTROL_FLOW | SIGNALS | BUGS | OF_TESTS
    assert {name for name in found - others if not name.startswith("_")} == {"ProjectError"}


@pytest.mark.parametrize("base", ["Exception", "BaseException", "ValueError", "OSError", "builtins.KeyError"])
def test_a_root_is_seen_whatever_it_inherits_from(base: str) -> None:
    assert list(roots(f"class TableError(ModelError, {base}):\n    pass\n")) == ["TableError"]
    assert list(roots("class TableError(ModelError, dict):\n    pass\n")) == []
