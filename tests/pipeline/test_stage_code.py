"""A stage lists the modules that decide its result; here the lists are held against what the modules import."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from benchmarks.command import STAGE as BENCHMARK
from pipeline.manifest import ROOT
from pipeline.stage import Stage
from pipeline.stages import STAGES

ALL = (*STAGES, BENCHMARK)
PACKAGES = ("pipeline", "export", "benchmarks")
# Where the walk along the imports ends, and why a change there cannot change what a stage writes.
BORDERS = {
    "export/bounded_json.py": "parses JSON, or refuses it",
    "export/errors.py": "an exception",
    "export/records.py": "gives what a JSON file holds as a record, or refuses it",
    "export/wire_format.py": "gives the fields of a protocol buffer, or refuses it",
    "export/temporaries.py": "names files that are not whole yet",
    "pipeline/bounded_yaml.py": "parses YAML, or refuses it",
    "pipeline/npz_files.py": "gives the arrays that a file holds, or refuses it",
    "pipeline/zip_files.py": "gives what an archive holds, or refuses it",
    "pipeline/children.py": "ends a process with its parent",
    "pipeline/errors.py": "exceptions",
    "pipeline/config.py": "reads the recipe, whose values enter the key by the stage's slice",
    "pipeline/recipe.py": "types of the recipe, whose values enter the key by the stage's slice",
    "pipeline/command_line.py": "composes advice",
    "pipeline/disk_space.py": "refuses, or says that a disk is full",
    "pipeline/files.py": "moves and hashes bytes",
    "pipeline/output_files.py": "refuses a path",
    "pipeline/runnable.py": "says why nothing runs, and then nothing is written",
    "pipeline/manifest.py": "records results and compares keys",
    "pipeline/stage.py": "runs stages; what it reads for them is in BY_CONTEXT",
    "pipeline/stages.py": "the lists themselves",
    "pipeline/layout.py": "names of files, which enter the key as names of inputs and outputs",
    "pipeline/progress.py": "draws bars",
    "pipeline/cli.py": "talks",
    "pipeline/commands.py": "talks",
    "pipeline/verbs.py": "names the verbs and their options",
    "pipeline/usage.py": "reads a command line, or refuses it",
    "pipeline/recipe_files.py": "finds the recipe, whose values enter the key by the stage's slice",
    "pipeline/tensorflow_start.py": "silences an import",
    "export/words.py": "puts a number before its noun, and cuts long lists, for people",
    "pipeline/words.py": "puts a number before its noun, for people",
}
# What a stage runs by asking its context.
BY_CONTEXT = {
    "images": ("pipeline/data.py", "pipeline/class_names.py"),
    "card": ("pipeline/card.py",),
}


def path_of(name: str, root: Path) -> str | None:
    """The file of one of our modules, relative to the repository; None if it is none, or holds no statement."""
    if name.split(".")[0] not in PACKAGES:
        return None
    path = name.replace(".", "/")
    return f"{path}.py" if (root / f"{path}.py").is_file() else None


def imports_in(tree: ast.AST, root: Path) -> set[str]:
    """Files of our own modules that are imported anywhere in a tree, except for type checkers only."""
    for_checkers = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not followed"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "context":
            names |= {path.removesuffix(".py").replace("/", ".") for path in BY_CONTEXT.get(node.attr, ())}
    return {path for name in names if (path := path_of(name, root))}


@cache
def text_of(module: str) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


@cache
def imports_of(module: str, root: Path) -> set[str]:
    return imports_in(ast.parse((root / module).read_text(encoding="utf-8")), root)


def starts(stage: Stage) -> set[str]:
    """Where the walk begins: the module of the function that runs, or what it imports if it is in `stages`."""
    if stage.run.__module__ != "pipeline.stages":
        return {stage.run.__module__.replace(".", "/") + ".py"}
    return imports_in(ast.parse(textwrap.dedent(inspect.getsource(stage.run))), ROOT)


def reached(begin: set[str], root: Path = ROOT) -> dict[str, str]:
    """Every module that a stage can run, with the one that imports it."""
    found: dict[str, str] = dict.fromkeys(begin - set(BORDERS), "the stage")
    waiting = list(found)
    while waiting:
        module = waiting.pop()
        for name in imports_of(module, root):
            if name not in BORDERS and name not in found:
                found[name] = module
                waiting.append(name)
    return found


def faults(stage: Stage) -> list[str]:
    """What is wrong with the list of a stage."""
    imported = reached(starts(stage))
    missing = [f"{name} is missing, {who} imports it" for name, who in imported.items() if name not in stage.code]
    idle = [name for name in stage.code if name.endswith(".py") and name not in imported]
    others = [name for name in stage.code if not name.endswith(".py")]
    idle += [name for name in others if not any(f'"{Path(name).name}"' in text_of(module) for module in imported)]
    twice = [f"{name} is there twice" for name in set(stage.code) if stage.code.count(name) > 1]
    return sorted([*missing, *(f"{name} is listed and nothing imports it" for name in idle), *twice])


@pytest.mark.parametrize("stage", ALL, ids=lambda s: s.name)
def test_a_stage_lists_what_it_imports_and_nothing_else(stage: Stage) -> None:
    assert faults(stage) == []


@pytest.mark.parametrize("stage", ALL, ids=lambda s: s.name)
def test_every_module_that_a_list_forgets_is_found(stage: Stage) -> None:
    for name in [n for n in stage.code if n.endswith(".py")]:
        shorter = replace(stage, code=[n for n in stage.code if n != name])
        assert [fault.partition(" is missing")[0] for fault in faults(shorter)] == [name]


def test_a_module_that_nothing_imports_is_found() -> None:
    assert faults(replace(STAGES[0], code=[*STAGES[0].code, "pipeline/verify.py", "pipeline/report.css"])) == [
        "pipeline/report.css is listed and nothing imports it",
        "pipeline/verify.py is listed and nothing imports it",
    ]


def test_the_borders_exist_and_are_in_no_list() -> None:
    assert [name for name in BORDERS if not (ROOT / name).is_file()] == []
    assert [name for stage in ALL for name in stage.code if name in BORDERS] == []


def test_packages_hold_no_code_of_their_own() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                assert isinstance(statement, ast.Expr) or ast.unparse(statement).startswith("__version__ ="), path


@pytest.mark.parametrize("stage", ALL, ids=lambda s: s.name)
def test_no_listed_module_reads_its_docstrings(stage: Stage) -> None:
    assert [name for name in stage.code if "__doc__" in text_of(name) or "getsource" in text_of(name)] == []


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    for name in "abcdef":
        (tmp_path / "pipeline" / f"{name}.py").write_text("")
    (tmp_path / "pipeline" / "c.py").write_text("def g():\n    import pipeline.f\n")
    (tmp_path / "pipeline" / "x.py").write_text(
        "import os, pipeline.a\nfrom typing import TYPE_CHECKING\nfrom pipeline import b\n"
        "if TYPE_CHECKING:\n    from pipeline.d import z\nelse:\n    import pipeline.e as e\n"
        "def f():\n    from pipeline.c import y\n"
    )
    found = reached({"pipeline/x.py"}, tmp_path)
    assert set(found) == {f"pipeline/{name}.py" for name in "abcefx"}
    assert found["pipeline/f.py"] == "pipeline/c.py"
