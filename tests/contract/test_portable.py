"""What runs on a GPU machine with CPython 3.10, numpy and TensorRT has to import there and use no newer Python."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from export.files import ROOT
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.sidecar import read_sidecar
from tests.contract.bindings import Unavailable, find_python
from tests.contract.python310 import library_names, newer_names, path_of, source_of, syntax_errors
from tests.tiny_onnx import classifier

# What is started there; the modules of ours that these import count with them.
STARTS = (
    "export.tensorrt.build",
    "export.tensorrt.layers",
    "export.tensorrt.part",
    "pipeline.runners.base",
    "pipeline.runners.cuda.api",
    "pipeline.runners.tensorrt.runner",
    "pipeline.runners.tensorrt.part",
    "benchmarks.timing",
    "benchmarks.gpu_evidence",
    "benchmarks.gpu.command",
)
# Nothing is imported but the standard library, numpy and TensorRT. Where there is no numpy, as in a bare 3.10,
# something stands in for it.
REFUSER = """
import importlib, importlib.util, json, sys, types
OURS = ("export", "pipeline", "benchmarks")
class Refuser:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", *OURS) and not top.startswith("tensorrt"):
            raise ModuleNotFoundError(f"refused: {name}", name=name)
if importlib.util.find_spec("numpy") is None:
    numpy = sys.modules["numpy"] = types.ModuleType("numpy")
    numpy.__getattr__ = lambda name: type(name, (), {})
sys.meta_path.insert(0, Refuser())
sys.path.insert(0, sys.argv[1])
"""
# Imports modules, then prints which of ours are loaded and which names of the standard library do not exist.
IMPORTER = """
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
absent = []
for module, name in json.loads(sys.argv[3]):
    try:
        found = hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}")
    except ModuleNotFoundError:
        found = None
    if not found:
        absent.append(f"{module}.{name}")
print(json.dumps([sorted(name for name in sys.modules if name.split(".")[0] in OURS), absent]))
"""
BUILDER = """
from export.tensorrt.library import find_tensorrt
from export.tensorrt.build import build_engine
from export.tensorrt.sidecar import BatchProfile
trt = find_tensorrt("rtx")
for source in sys.argv[2:]:
    build_engine(source, source + ".plan", precision="int8", profile=BatchProfile(1, 2, 4), trt=trt)
"""


def import_in(python: str, modules: tuple[str, ...], names: list[list[str]]) -> tuple[list[str], list[str]]:
    """Import modules in another interpreter; give what of ours it loaded, and which ``names`` it does not have."""
    command = [python, "-I", "-c", REFUSER + IMPORTER, str(ROOT), json.dumps(modules), json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded, absent = json.loads(done.stdout)
    return loaded, absent


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    return import_in(sys.executable, STARTS, [])[0]


def test_they_import_with_numpy_alone(loaded: list[str]) -> None:
    assert {
        "export.tensorrt.library",
        "export.tensorrt.driver",
        "export.tensorrt.sidecar",
        "export.tensorrt.network",
    } <= set(loaded)


def test_anything_else_is_refused() -> None:
    with pytest.raises(AssertionError, match="refused: yaml"):
        import_in(sys.executable, ("pipeline.recipe.load",), [])


def test_an_engine_is_built_with_numpy_alone(tmp_path: Path) -> None:
    if find_tensorrt("rtx") is None:
        pytest.skip(why_missing()["rtx"])
    onnx.save(classifier("int8"), tmp_path / "int8.onnx")
    command = [sys.executable, "-I", "-c", REFUSER + BUILDER, str(ROOT), str(tmp_path / "int8.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_sidecar(tmp_path / "int8.onnx.plan").plan_bytes > 0


def test_their_syntax_is_that_of_python_3_10(loaded: list[str], tmp_path: Path) -> None:
    assert syntax_errors(*map(path_of, loaded)) == ""
    newer = tmp_path / "newer.py"
    newer.write_text("d = {}\nprint(f'{d['a']}')\ntry:\n    pass\nexcept* OSError:\n    pass\n")
    found = syntax_errors(newer)
    assert "f-strings on Python 3.10" in found
    assert "except*" in found


def test_they_use_nothing_of_a_newer_standard_library(loaded: list[str]) -> None:
    for module in loaded:
        names = newer_names(source_of(module))
        assert not names, f"{module} uses {', '.join(sorted(names))}, newer than Python 3.10"


def test_python_3_10_imports_them_and_has_every_name(loaded: list[str]) -> None:
    try:
        python = str(find_python((3, 10)))
    except Unavailable as error:
        pytest.skip(str(error))
    names = {pair for module in loaded for pair in library_names(source_of(module))}
    assert len(names) > 50
    there, absent = import_in(python, STARTS, sorted(map(list, names)))
    assert there == loaded
    assert absent == []
    assert import_in(python, (), [["enum", "StrEnum"], ["tomllib", "load"]])[1] == ["enum.StrEnum", "tomllib.load"]
