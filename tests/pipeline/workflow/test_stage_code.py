"""The code that counts for a stage: its module and all that it imports, up to the borders."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.command import STAGE as BENCHMARK
from export.files import ROOT
from pipeline.artifacts import code_key
from pipeline.artifacts.code_key import BORDERS, PACKAGES, closure, code_digest
from pipeline.stages import STAGES
from pipeline.workflow.stage import Stage

ALL = (*STAGES, BENCHMARK)


def module_of(stage: Stage) -> str:
    return stage.module or stage.run.__module__


class Sources:
    """A copy of the packages, to plant changes in."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))

    def hashes(self) -> dict[str, str]:
        return {stage.name: code_digest(module_of(stage), self.root) for stage in ALL}

    def plant(self, name: str, old: str, new: str) -> set[str]:
        """The stages that run again after a change, which is taken back."""
        path, before = self.root / name, self.hashes()
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        after = self.hashes()
        path.write_text(text, encoding="utf-8")
        assert self.hashes() == before
        return {stage for stage, digest in after.items() if digest != before[stage]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("export/onnx_passes/folding.py", '"""', '"""Plainly: '),
        ("pipeline/stages/train.py", '    """Train the model,', '    """Fit the model,'),
        ("export/calibration.py", "    # ", "    # Well, "),
        ("pipeline/reporting/report.css", "\n", "\r\n"),
    ],
)
def test_a_word_in_a_docstring_or_a_comment_reruns_nothing(sources: Sources, name: str, old: str, new: str) -> None:
    assert sources.plant(name, old, new) == set()


@pytest.mark.parametrize(
    ("name", "reruns"),
    [
        ("pipeline/stages/train.py", {"train"}),
        ("pipeline/training/loop.py", {"train"}),
        ("export/from_keras/convert.py", {"export"}),  # which the stage imports inside a function
        ("export/onnx_passes/shape_folding.py", {"export", "quantize", "verify"}),
        ("export/int8/qdq.py", {"quantize"}),
        ("export/tensorrt/build.py", {"build"}),
        ("pipeline/verification/evaluate.py", {"verify"}),
        ("pipeline/serving/select_model.py", {"infer"}),
        ("pipeline/reporting/headline.py", {"report"}),
        ("benchmarks/timing.py", {"benchmark"}),
        ("pipeline/runners/cuda/api.py", {"verify", "infer", "benchmark"}),
        ("pipeline/models/model_card.py", {"train", "export", "quantize", "verify", "infer", "report", "benchmark"}),
        (
            "pipeline/artifacts/engines.py",
            {"build", "verify", "infer", "report", "benchmark"},
        ),  # what engines are built from
        ("pipeline/serving/candidates.py", {"verify", "infer", "report", "benchmark"}),
        ("pipeline/artifacts/files.py", set()),  # a border
        ("pipeline/cli/bundle.py", set()),  # of no stage
    ],
)
def test_a_statement_reruns_the_stages_that_import_it(sources: Sources, name: str, reruns: set[str]) -> None:
    assert sources.plant(name, "", "print()\n") == reruns


@pytest.mark.parametrize(
    ("name", "was"), [("pipeline/reporting/report.css", "{"), ("pipeline/reporting/templates/parity.html.j2", "<p>")]
)
def test_what_is_read_by_its_name_counts_by_its_bytes(sources: Sources, name: str, was: str) -> None:
    assert sources.plant(name, was, f"{was} ") == {"report"}


def test_a_new_key_of_a_recipe_reruns_nothing(sources: Sources) -> None:
    """Its value enters the keys of the stages that declare its section."""
    line = "    samples: "
    assert sources.plant("pipeline/recipe/schema.py", line, f"    planted: bool = False\n{line}") == set()


def test_imports_are_found_wherever_they_stand_and_files_beside(tmp_path: Path) -> None:
    package = tmp_path / "pipeline"
    (package / "templates" / "deep").mkdir(parents=True)
    (package / "artifacts").mkdir()
    for name in "abcdefghijk":
        (package / f"{name}.py").write_text("")
    (package / "c.py").write_text("def g():\n    import pipeline.f\n")
    (package / "f.py").write_text("from export import errors\nSTYLE, FOLDER, NONE = 'a.css', 'templates', 'b.css'\n")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "errors.py").write_text("")  # a border
    for name in ("a.css", "d.css", "templates/x.html", "templates/deep/y.html", "templates/z.py"):
        (package / name).write_text("")
    (package / "x.py").write_text(
        "import os, pipeline.a\nfrom typing import TYPE_CHECKING\nfrom pipeline import b\n"
        "if TYPE_CHECKING:\n    from pipeline.d import z\nelse:\n    import pipeline.e as e\n"
        "def f():\n    from pipeline.c import y\n"
        "try:\n    import pipeline.h\nexcept ImportError:\n    import pipeline.i\nfinally:\n    import pipeline.j\n"
        "match 1:\n    case 1:\n        import pipeline.k\n"
    )
    found = closure("pipeline.x", tmp_path)
    names = {f"{name}.py" for name in "abcefhijkx"} | {"a.css", "templates/x.html", "templates/deep/y.html"}
    assert found.keys() == {f"pipeline/{name}" for name in names}


# --- the borders ---


@pytest.fixture(scope="module")
def reached() -> dict[str, set[str]]:
    """The files that count, by stage."""
    return {stage.name: set(closure(module_of(stage), ROOT)) for stage in ALL}


def test_the_report_does_not_depend_on_the_options_of_runners(reached: dict[str, set[str]]) -> None:
    assert "pipeline/recipe/runtime.py" in reached["verify"]
    assert "pipeline/recipe/runtime.py" not in reached["report"]


def test_each_border_exists_and_is_reached_by_a_stage(reached: dict[str, set[str]]) -> None:
    code = {path for paths in reached.values() for path in paths if path.endswith(".py")}
    imported = {name for path in code for name in code_key._python_source((ROOT / path).read_bytes()).imports}
    assert [name for name in BORDERS if not (ROOT / name).is_file()] == []
    assert [name for name in BORDERS if name.removesuffix(".py").replace("/", ".") not in imported] == []


def test_packages_hold_no_code_of_their_own() -> None:
    """The walk does not look into them.

    ``pipeline.stages`` holds the chain; ``pipeline.verification`` what other projects import, and none of ours may.
    """
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            if path.relative_to(ROOT).parent.as_posix() in ("pipeline/stages", "pipeline/verification"):
                continue
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                assert isinstance(statement, ast.Expr) or ast.unparse(statement).startswith("__version__ ="), path
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"from pipeline\.verification import \(?\s*(assert_parity|ParityError)", text), path


def test_modules_that_count_import_by_full_names_and_read_no_docstrings(reached: dict[str, set[str]]) -> None:
    for name in set().union(*reached.values()):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "__doc__" not in text, name
        assert "getsource" not in text, name
        assert "\nfrom ." not in text, name
