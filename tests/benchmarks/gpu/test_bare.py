"""The evidence command on a machine that holds next to nothing: it ends at the missing driver, and quickly."""

import ast
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from export.files import ROOT
from export.tensorrt.driver import driver_status
from tests.benchmarks.visits import make_artifacts
from tests.conftest import Chain
from tests.contract.test_portable import REFUSER

pytestmark = pytest.mark.skipif(bool(driver_status()), reason="there is a GPU here")
SAID = "Expected an NVIDIA GPU and TensorRT. Received: no NVIDIA driver"
RUN = """
from benchmarks.gpu_evidence import main
sys.exit(main(sys.argv[2:]))
"""


def assert_ends_at_the_driver(command: list[str], limit: float, **more: str) -> None:
    environment = {**os.environ, **more}
    began = sum(os.times()[2:4])  # what children took of the processor, whatever else the machine does
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    took = sum(os.times()[2:4]) - began
    assert done.returncode == 3, done.stderr
    assert SAID in done.stderr
    told = json.loads(done.stdout)
    assert (told["output"], told["exit"]) == (None, 3)
    assert SAID in told["error"]
    assert took < limit


def test_with_numpy_alone(tmp_path: Path) -> None:
    artifacts = make_artifacts(tmp_path / "model")
    command = [sys.executable, "-I", "-c", REFUSER + RUN, str(ROOT), str(artifacts), "--minutes", "8", "--level", "2"]
    assert_ends_at_the_driver(command, 20.0)  # five on a machine that does nothing else
    assert not (artifacts / "evidence").exists()


def interpreter(version: str) -> str:
    """A Python of this version, from the PATH or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*sorted(pyenv.glob(f"{version}.*/bin/python")), Path(f"python{version}")]
    for python in found:
        try:
            subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return str(python)
    pytest.skip(f"no Python {version} with venv here")


START = ROOT / "benchmarks" / "gpu_evidence.py"


def start_with(before: str) -> tuple[int, dict[str, object], str]:
    """Start the command's help after a few lines of Python; the status, the last line and what was said."""
    code = f"import runpy, sys\n{before}\nsys.argv[1:] = ['--help']\n"
    code += "runpy.run_module('benchmarks.gpu_evidence', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.modules['numpy'] = None", "Received: no numpy in "),
        ("sys.modules['pipeline.recipe.schema'] = None", "Received: no pipeline.recipe.schema. Copy them again."),
        ("sys.version_info = (3, 8, 1)", "Expected Python 3.10 or later. Received: Python 3.8, "),
    ],
)
def test_where_it_cannot_start_it_says_why(before: str, said: str) -> None:
    status, told, errors = start_with(before)
    assert (status, told["output"], told["exit"]) == (2, None, 2)
    assert said in str(told["error"])
    assert errors == f"{told['error']}\n"


def test_an_old_python_can_read_the_start() -> None:
    ast.parse(START.read_text(), feature_version=(3, 6))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_from_a_bundle_with_numpy_and_cuda_bindings(version: str, finished_chain: Chain, tmp_path: Path) -> None:
    subprocess.run([interpreter(version), "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "numpy", "cuda-bindings"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the packages cannot be installed here: {done.stderr[-300:]}")
    assert finished_chain.run("bundle", "-o", str(tmp_path / "tiny.tar")) == 0
    with tarfile.open(tmp_path / "tiny.tar") as archive:
        archive.extractall(tmp_path / "tiny", filter="data")
    command = [python, "-m", "benchmarks.gpu_evidence", str(tmp_path / "tiny"), "--minutes", "8"]
    assert_ends_at_the_driver(command, 5.0, PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "  files: as the bundle recorded them\n" in done.stdout
    assert "  thresholds: of the recipe\n" in done.stdout
