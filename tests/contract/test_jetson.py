"""The verbs of a bundle on a machine like a Jetson Orin: Python 3.10, TensorRT 10.3, and a handful of packages.

`tests/orin` makes any Python look like that machine. Nothing here was ever run on a Jetson.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.files import ROOT
from export.tensorrt.driver import DriverStatus
from pipeline.cli import commands
from pipeline.runners import onnxruntime
from pipeline.runners.tensorrt import runner
from pipeline.serving import candidates, select_model
from pipeline.stages import verify
from tests.conftest import Chain, copy_chain
from tests.contract.bindings import Unavailable, find_python
from tests.contract.python310 import NEWER, newer_names, path_of, source_of, syntax_errors
from tests.contract.test_portable import import_in

REQUIREMENTS = ROOT / "requirements-jetson.txt"
PACKAGES = ("numpy", "pillow", "simplejpeg", "pyarrow", "PyYAML", "packaging", "filelock", "tqdm")
ABSENT = {"tensorflow", "keras", "onnx", "onnxruntime", "h5py", "sklearn", "matplotlib", "pynvml", "pytest"}
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Orin:
    """A machine that looks like a Jetson Orin.

    Attributes:
        python: its interpreter.
        folder: of its files; the bundle's images are not there.
        bundle: an archive of the tiny recipe, made elsewhere.
        photos: some of its test images.
        classes: what answered there said of each, by file name.
        without: a package that it lacks besides. Defaults to None: none.
    """

    python: str
    folder: Path
    bundle: Path
    photos: tuple[Path, ...]
    classes: dict[str, str]
    without: str | None = None

    @property
    def root(self) -> Path:
        return self.folder / "artifacts" / "tiny"

    def call(self, *words: object) -> tuple[int, dict[str, Any], str]:
        """Run ``python -m pipeline``; its exit status, its line of JSON, and what it wrote to standard error."""
        done = self.start("-m", "pipeline", *words, "--json")
        last = done.stdout.strip().splitlines()[-1:]
        return done.returncode, json.loads(last[0]) if last else {}, done.stderr

    def verb(self, name: str, *more: object) -> tuple[int, dict[str, Any], str]:
        return self.call(name, "-c", self.root / "recipe.yaml", "--artifacts", self.root.parent, *more)

    def start(self, *words: object) -> subprocess.CompletedProcess[str]:
        without = {} if self.without is None else {"ORIN_WITHOUT": self.without}
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "orin"), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ORIN_REFERENCE": str(self.root / "verify" / "reference.npz"),
            "ORIN_LOADED": str(self.folder / "loaded"),
            **without,
        }
        command = [self.python, *map(str, words)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def loaded(self) -> set[str]:
        """The modules that any of its processes loaded."""
        files = (self.folder / "loaded").iterdir()
        return {name for file in files for name in file.read_text(encoding="utf-8").splitlines()}


def make_orin(python: str, finished: Chain, folder: Path) -> Orin:
    chain = copy_chain(finished, folder / "elsewhere")
    assert chain.run("bundle", "-o", str(folder / "tiny.tar")) == 0
    images = chain.images.rename(folder / "photos")  # the recipe's folder is not on this machine
    with (finished.root / "infer" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    photos = tuple(images / Path(row["path"]).parent.name / Path(row["path"]).name for row in rows)
    names = {f"{photo.parent.name}/{photo.name}": row["class"] for photo, row in zip(photos, rows)}
    (folder / "loaded").mkdir()
    return Orin(python, folder, folder / "tiny.tar", photos, names)


def walk(orin: Orin) -> None:
    """All that a bundle is for, one verb after the other."""
    status, said, errors = orin.call("unpack", orin.bundle, "--artifacts", orin.root.parent)
    assert status == 0, errors
    assert said["recipe"] == "tiny"
    assert "code: train/model.keras was not checked: h5py is not installed" in errors
    assert "damaged" not in errors

    status, said, errors = orin.verb("build")
    assert status == 0, errors
    for precision in PRECISIONS:
        sidecar = json.loads((orin.root / "build" / "tensorrt" / f"{precision}.json").read_text())
        assert (sidecar["tensorrt_version"], sidecar["compute_capability"]) == ("10.3.0", "8.7")
        assert sidecar["classes"] == ["blue", "green", "red", "yellow"]
        assert sidecar["preprocessing"]["mode"] == "caffe"
        assert sidecar["found"]["convolutions"] == {precision: 1}

    # The ONNX files passed where the bundle was made, and cannot run here; nobody judged the new engines yet.
    output = orin.folder / "out.csv"
    status, said, errors = orin.verb("infer", *orin.photos, "-o", output)
    assert (status, "build/tensorrt/int8.plan was never verified" in said["error"]) == (2, True), errors
    assert "ONNX Runtime" not in said["error"]

    logits = logits_of(orin)
    status, said, errors = orin.verb("verify")
    assert (status, said["verdict"]) == (0, "pass"), errors
    check_parity(json.loads((orin.root / "verify" / "parity.json").read_text()))
    assert logits_of(orin) == logits, "Keras' answers are those that came with the bundle"

    status, said, errors = orin.verb("benchmark", "--set", "benchmark.batches=[4]")
    assert (status, said["rows"]) == (0, 3), errors
    assert "failed" not in said
    for library, file in (("Keras", "train/model.keras"), ("ONNX Runtime", "export/model.onnx")):
        assert f"not timed, as {library} is not installed here: {file}" in errors
    rows = json.loads((orin.root / "benchmark" / "benchmark.json").read_text())["results"]
    assert {row["backend"] for row in rows} == {"tensorrt"}
    assert all(row["p50_ms"] > 0 for row in rows)

    status, said, errors = orin.verb("infer", *orin.photos, "-o", output)
    assert (status, said["failed"], said["verdict"]) == (0, 0, "pass"), errors
    assert said["model"].startswith("build/tensorrt/")
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {f"{Path(row['path']).parent.name}/{Path(row['path']).name}": row["class"] for row in rows} == orin.classes

    plan = orin.root / "build" / "tensorrt" / "fp16.plan"
    assert orin.call("engine", "check", plan)[0] == 0
    status, said, errors = orin.call("engine", "inspect", plan)
    assert (status, said["verdict"]) == (0, "pass"), errors
    status, said, errors = orin.call("doctor")
    assert said["driver"]["devices"][0]["compute_capability"] == "8.7", errors

    assert not {name.split(".")[0] for name in orin.loaded()} & ABSENT


def logits_of(orin: Orin) -> bytes:
    with np.load(orin.root / "verify" / "reference.npz") as file:
        return file["logits"].tobytes()


def check_parity(parity: dict[str, Any]) -> None:
    """Engines are held against Keras' logits; of the ONNX files it is said why they are not."""
    engines = [hop for hop in parity["hops"] if hop["candidate"].startswith("build/tensorrt/")]
    assert {(hop["precision"], hop["verdict"]) for hop in engines if hop["kind"] == "from_keras"} == {
        (precision, "pass") for precision in PRECISIONS
    }
    why = "ONNX Runtime is not installed"
    files = [hop for hop in parity["hops"] if hop["backend"] == "onnxruntime"]
    assert {hop["candidate"] for hop in files} >= {"export/model.onnx", "quantize/model.int8.onnx"}
    for hop in [*files, *(hop for hop in engines if hop["kind"] == "step")]:
        assert (hop["verdict"], hop["why"].endswith(why)) == ("not run", True), hop
    names = {"train/model.keras", "verify/reference.npz", "train/model.json", *(hop["candidate"] for hop in files)}
    assert names <= parity["subjects"].keys(), "what was not run is bound by its sha256 all the same"


@pytest.fixture(scope="module")
def orin(finished_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Orin:
    """The machine after the walk, on the Python of the tests."""
    made = make_orin(sys.executable, finished_chain, tmp_path_factory.mktemp("orin"))
    walk(made)
    return made


def test_the_verbs_of_a_bundle(orin: Orin) -> None:
    loaded = orin.loaded()
    assert {
        "pipeline.verification.verify",
        "pipeline.stages.build",
        "benchmarks.command",
        "pipeline.runners.tensorrt.runner",
    } <= loaded


def test_other_packages_are_not_there(orin: Orin) -> None:
    for package in ("onnx", "keras", "pytest"):
        ask = f"import importlib.util; print(importlib.util.find_spec('{package}')); import {package}"
        done = orin.start("-c", ask)
        assert done.stdout == "None\n"
        assert f"ModuleNotFoundError: No module named '{package}'" in done.stderr


def test_what_needs_them_says_so(orin: Orin) -> None:
    status, said, errors = orin.verb("infer", *orin.photos, "-o", orin.folder / "y.csv", "--backend", "onnxruntime")
    assert status == 2
    assert "Traceback" not in errors
    status, said, errors = orin.verb("report")
    assert (status, "Expected the package jinja2" in said["error"]) == (2, True)


def test_where_the_environment_sees_no_tensorrt(orin: Orin, tmp_path: Path) -> None:
    """It was made without --system-site-packages: nothing of a bundle that was verified runs there."""
    shutil.copytree(orin.folder, tmp_path / "orin", ignore=shutil.ignore_patterns("elsewhere"))
    blind = replace(orin, folder=tmp_path / "orin", without="tensorrt")
    waiting = f"the 6 engines and 3 ONNX files below {blind.root}"
    lacking = ("no TensorRT (tensorrt is not installed. Install it: ", "--system-site-packages", "; no ONNX Runtime")
    parity = (blind.root / "verify" / "parity.json").read_bytes()
    status, said, errors = blind.verb("infer", *orin.photos, "-o", tmp_path / "x.csv")
    assert status == 2
    assert said["error"].startswith(f"Expected something here that runs {waiting}. Received: no TensorRT"), errors
    assert all(words in said["error"] for words in lacking)

    status, said, errors = blind.verb("verify", "--force")
    assert status == 2
    assert said["error"].startswith(f"Expected something here that runs {waiting}. Received: nothing: no TensorRT")
    assert "a former verdict stands" in said["error"]
    assert (blind.root / "verify" / "parity.json").read_bytes() == parity


def test_a_verdict_of_another_machine_is_called_so(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(candidates, "onnxruntime_is_installed", lambda: False)
    monkeypatch.setattr(onnxruntime, "is_installed", lambda: False)
    monkeypatch.setattr(select_model, "onnxruntime_is_installed", lambda: False)
    for module in (commands, select_model, verify, runner):
        monkeypatch.setattr(module, "driver_status", lambda: DriverStatus(False, "no NVIDIA driver"))
    capsys.readouterr()
    assert chain.run("verify", "--json") == 0
    said = capsys.readouterr().err
    assert "the verdict comes from another machine; none of its files can be run here: no NVIDIA driver; no " in said
    assert said.count("no ONNX Runtime") == 1
    parity = (chain.root / "verify" / "parity.json").read_bytes()

    assert chain.run("run", "--json") == 3
    printed = capsys.readouterr()
    assert "nothing is classified: Expected something here that runs the " in printed.err
    result = json.loads(printed.out.strip().splitlines()[-1])
    assert (result["exit"], result["verdict"]) == (3, "pass")

    assert chain.run("verify", "--force") == 2
    assert "Received: nothing: no " in capsys.readouterr().err
    assert (chain.root / "verify" / "parity.json").read_bytes() == parity
    photo = next((chain.images / "red").iterdir())
    assert chain.run("infer", str(photo), "--backend", "tensorrt") == 2
    assert "Use --backend onnxruntime" not in capsys.readouterr().err


def test_evidence_from_the_gpu_asks_for_numpy_alone(orin: Orin, tmp_path: Path) -> None:
    bare = Orin(orin.python, tmp_path, orin.bundle, (), {})
    (tmp_path / "loaded").mkdir()
    assert bare.start("-m", "benchmarks.gpu_evidence", "--help").returncode == 0
    assert {"numpy", "benchmarks.telemetry"} <= bare.loaded()
    assert not {name.split(".")[0] for name in bare.loaded()} & {
        "PIL",
        "yaml",
        "filelock",
        "packaging",
        "tqdm",
        *ABSENT,
    }


# --- Python 3.10 ---


def closure(orin: Orin) -> list[str]:
    tops = ("export", "pipeline", "benchmarks")
    return sorted(name for name in orin.loaded() if name.split(".")[0] in tops and path_of(name).is_file())


def test_all_that_they_load_is_python_3_10(orin: Orin) -> None:
    modules = closure(orin)
    assert len(modules) > 80
    assert syntax_errors(*map(path_of, modules)) == ""
    assert {name: newer_names(source_of(name)) for name in modules if newer_names(source_of(name))} == {}


@pytest.mark.parametrize(
    "source",
    ["import re._parser", "import datetime\nx = datetime.UTC", "from enum import StrEnum", "error.add_note('x')"],
)
def test_newer_names_are_found(source: str) -> None:
    assert len(newer_names(source)) == 1
    behind = f"import sys\nif sys.version_info >= (3, 11):\n    {source.splitlines()[0]}\nelse:\n    import json\n"
    assert not newer_names(behind) or "add_note" in source


def test_the_newer_names_are_not_in_python_3_10() -> None:
    names = [name.rsplit(".", 1) for name in sorted(NEWER)]
    assert import_in(python310(), (), names)[1] == sorted(NEWER)


def python310() -> str:
    try:
        return str(find_python((3, 10)))
    except Unavailable as error:
        pytest.skip(str(error))


# --- the stand-in ---


def test_the_stand_in_has_the_names_of_tensorrt_10_3(orin: Orin) -> None:
    ask = "import tensorrt as t; print(t.__version__, hasattr(t, 'IProgressMonitor'), hasattr(t, 'IRuntimeConfig'))"
    done = orin.start("-c", ask)
    assert done.stdout.split() == ["10.3.0", "True", "False"], done.stderr


# --- the packages ---


def requirements() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    return {re.split(r"[=<>]", line)[0]: line for line in lines if line}


def test_the_requirements_are_what_the_verbs_need() -> None:
    assert tuple(requirements()) == (*PACKAGES, "cuda-bindings")


def pip(python: str, *words: str) -> str:
    """Run pip; what it wrote. Skips where there is no registry to ask."""
    command = [python, "-m", "pip", *words, "--disable-pip-version-check", "--only-binary=:all:"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    if done.returncode and re.search("from versions: none|Could not connect|NewConnectionError", done.stderr):
        pytest.skip(f"no package registry: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_verbs_of_a_bundle_on_python_3_10(finished_chain: Chain, tmp_path: Path) -> None:
    subprocess.run([python310(), "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    wanted: Sequence[str] = [line for name, line in requirements().items() if name in PACKAGES]
    pip(python, "install", "--quiet", *wanted)  # CUDA and TensorRT are the fakes
    (tmp_path / "orin").mkdir()
    walk(make_orin(python, finished_chain, tmp_path / "orin"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PACKAGES, "cuda-bindings"])
def test_each_package_is_there_for_aarch64(name: str, tmp_path: Path) -> None:
    """Ubuntu 22.04, which JetPack 6 is, has glibc 2.35 and so takes wheels for 2.17 (manylinux2014) and for 2.28."""
    platforms = ("--platform=manylinux2014_aarch64", "--platform=manylinux_2_28_aarch64")
    pip(sys.executable, "download", *platforms, "--python-version=3.10", f"--dest={tmp_path}", requirements()[name])
    wheels = [path.name for path in tmp_path.glob("*.whl")]
    version = requirements()[name].partition("==")[2]
    assert any(f"-{version}-" in wheel for wheel in wheels)
    assert all(wheel.endswith(("-any.whl", "aarch64.whl")) for wheel in wheels)
