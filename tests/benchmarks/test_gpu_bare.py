"""The evidence command on a machine that holds next to nothing: it ends at the missing driver, and quickly."""

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from export.driver import driver_status
from tests.benchmarks.visits import make_artifacts
from tests.conftest import Chain
from tests.contract.test_portable import REFUSER
from tests.readme import ROOT

pytestmark = pytest.mark.skipif(bool(driver_status()), reason="there is a GPU here")
SAID = "Expected an NVIDIA GPU and TensorRT. Received: no NVIDIA driver"
RUN = """
from benchmarks.gpu_evidence import main
sys.exit(main(sys.argv[2:]))
"""


def assert_ends_at_the_driver(command: list[str], limit: float, **more: str) -> None:
    began = time.monotonic()
    environment = {**os.environ, **more}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    assert done.returncode == 3, done.stderr
    assert SAID in done.stderr
    assert done.stdout.count("not measured") == 10
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
