"""The pages for developers name what is there: every module once, rooms in the order of imports, no stale path."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.files import ROOT
from pipeline.artifacts import code_key

ARCHITECTURE = "docs/architecture.md"
PACKAGES = ("pipeline", "export", "benchmarks")
# Modules that import by a text, and what: no other imports a module that lint does not see.
BY_TEXT = {
    "export/tensorrt/library.py": "TensorRT, by the name of its flavour",
    "pipeline/keras_files/load.py": "modules of Keras",
    "pipeline/keras_files/load_guards.py": "modules of Keras",
    "pipeline/runners/cuda/bindings.py": "CUDA, which may be missing",
    "pipeline/runners/cuda/pycuda.py": "CUDA, which may be missing",
    "pipeline/terminal/starting.py": "the command, whose packages may be missing",
}
PAGES = (
    ARCHITECTURE,
    "CONTRIBUTING.md",
    "README.md",
    "docs/recipe.md",
    "docs/infer.md",
    "docs/int8.md",
    "docs/parity.md",
    "benchmarks/peers/README.md",
    "benchmarks/results/README.md",
)
PATH = re.compile(r"(?:pipeline|export|benchmarks|tests|configs|docs)/[\w./-]*\w(?:\.\w+|/)")
MODULE = re.compile(r"(?:pipeline|export|benchmarks|tests)(?:\.\w+)+")
OF_THE_READER = ("configs/mine.yaml", "configs/colleague.yaml", "configs/my-signs.yaml", "configs/m.yaml")
ARTIFACTS = ("export/model.onnx", "export/summary.json")  # a stage and a room have one name


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rooms(text: str) -> dict[str, list[str]]:
    """The modules that have a line in each room's table, by the room's heading."""
    parts = re.split(r"^### `([\w/]+)/`.*$", text, flags=re.MULTILINE)
    return {
        room: re.findall(r"^\| `(\w+)` \| \S+ .+ \|$", part, re.MULTILINE)
        for room, part in zip(parts[1::2], parts[2::2])
    }


def modules_there() -> set[str]:
    paths = (path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {path.with_suffix("").as_posix() for path in paths if path.stem != "__init__"}


def test_every_module_is_in_the_table_once_and_every_named_one_is_there() -> None:
    named = [f"{room}/{module}" for room, modules in rooms(page(ARCHITECTURE)).items() for module in modules]
    assert modules_there() - set(named) == set(), f"add a row of {ARCHITECTURE} in the room of each"
    assert set(named) - modules_there() == set(), f"remove their rows of {ARCHITECTURE}"
    assert len(named) == len(set(named))


def test_every_folder_with_code_is_one_that_lint_and_the_digest_of_code_know() -> None:
    tools = tomllib.loads(page("pyproject.toml"))["tool"]
    known = sorted(PACKAGES)
    assert sorted(tools["importlinter"]["root_packages"]) == sorted(tools["mypy"]["packages"]) == known
    assert sorted(code_key.PACKAGES) == known
    assert {path.relative_to(ROOT).parent.as_posix() for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]} == {
        *known,
        "tests",
    }


def imports_by_text(source: str) -> bool:
    """Whether code imports a module by a text, which neither lint nor the digest of the code that counts follows."""
    return any(
        (isinstance(node, ast.Name) and node.id == "__import__")
        or (isinstance(node, ast.Attribute) and node.attr in ("import_module", "run_module"))
        or (isinstance(node, ast.alias) and node.name in ("import_module", "run_module"))
        for node in ast.walk(ast.parse(source))
    )


def test_no_import_is_hidden_from_lint() -> None:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix() for path in files if imports_by_text(path.read_text(encoding="utf-8"))}
    assert found == set(BY_TEXT), "write a statement of import, inside the function if need be"


@pytest.mark.parametrize(
    ("source", "hidden"),
    [
        ("importlib.import_module('pipeline.cli.options')", True),
        ("from importlib import import_module as load", True),
        ("__import__('pipeline.cli')", True),
        ("runpy.run_module('pipeline')", True),
        ("import importlib.util", False),
    ],
)
def test_a_hidden_import_is_seen(source: str, hidden: bool) -> None:
    assert imports_by_text(source) is hidden


def layers(package: str) -> list[str]:
    contracts = tomllib.loads(page("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (found,) = [one["layers"] for one in contracts if one.get("containers") == [package]]
    return [room for layer in found for room in layer.split(" | ")]  # rooms beside each other import neither


@pytest.mark.parametrize("package", ["pipeline", "export"])
def test_rooms_are_told_in_the_order_in_which_lint_lets_them_import(package: str) -> None:
    told = [room.partition("/")[2] for room in rooms(page(ARCHITECTURE)) if room.startswith(f"{package}/")]
    outer = [room for room in told if "/" not in room]
    assert outer == [layer for layer in layers(package) if (ROOT / package / layer).is_dir()]
    beside = rooms(page(ARCHITECTURE))[package]
    assert beside == [layer for layer in layers(package) if layer in beside]


def named_paths(text: str) -> Iterator[str]:
    """Paths and modules in a page's code: spans in backticks, and indented or fenced blocks."""
    for line in re.sub(r"^```\w*$", "", text, flags=re.MULTILINE).splitlines():
        for span in re.findall(r"`([^`]+)`", line) or [line]:
            yield from PATH.findall(span)
            yield from (module for module in MODULE.findall(span) if not module.endswith((".py", ".md")))


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_of_the_code_exists(name: str) -> None:
    missing = [one for one in dict.fromkeys(named_paths(page(name))) if not exists(one)]
    assert missing == [], f"{name} names what is not there"


def test_tests_that_contributing_names_exist() -> None:
    names = set(re.findall(r"`(test_\w+)`", page("CONTRIBUTING.md")))
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert names
    assert [name for name in names if f"def {name}(" not in written] == []


def test_names_that_contributing_places_in_a_file_are_there() -> None:
    placed = re.findall(r"`(\w+)`\s+of\s+`([\w/]+\.py)`", page("CONTRIBUTING.md"))
    assert len(placed) > 5
    defined = r"^ *(?:(?:def|class) {0}\b|{0}(?:: [^=]+)? =)"
    missing = [(name, file) for name, file in placed if not re.search(defined.format(name), page(file), re.MULTILINE)]
    assert missing == [], "CONTRIBUTING.md names what is not in that file"


def exists(name: str) -> bool:
    if "/" in name:
        return name in (*OF_THE_READER, *ARTIFACTS) or (ROOT / name).exists()
    return any(is_module(name.split(".")[:parts]) for parts in (name.count(".") + 1, name.count(".")))


def is_module(parts: list[str]) -> bool:
    path = Path(ROOT, *parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_a_path_and_a_module_that_are_not_there_are_found() -> None:
    text = "see `pipeline/stages/none.py`, `benchmarks.peers.none.x` and\n```sh\npython -m pipeline.none.x\n```\n"
    assert [one for one in named_paths(text) if not exists(one)] == [
        "pipeline/stages/none.py",
        "benchmarks.peers.none.x",
        "pipeline.none.x",
    ]
    assert exists("export.words.listed")
