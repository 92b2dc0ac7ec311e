"""One base error: who catches it catches whatever a person can fix, wherever it was raised."""

import ast

import pytest

from export.errors import DataError, ModelError, ProjectError, RecipeError, RunnerError
from export.files import ROOT
from export.tensorrt.compatibility import RefusedEngineError

CONTROL_FLOW = {"CheckFailedError", "CheckSkippedError"}  # the results of checks, which their caller records


@pytest.mark.parametrize("kind", [RefusedEngineError, DataError, ModelError, RecipeError, RunnerError])
def test_every_kind_is_a_project_error(kind: type[Exception]) -> None:
    assert issubclass(kind, ProjectError)


def test_there_is_no_second_root() -> None:
    files = [path for name in ("export", "pipeline", "benchmarks") for path in (ROOT / name).rglob("*.py")]
    classes = [
        node for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    roots = {one.name for one in classes for base in one.bases if ast.unparse(base) in ("Exception", "RuntimeError")}
    assert {name for name in roots - CONTROL_FLOW if not name.startswith("_")} == {"ProjectError"}
