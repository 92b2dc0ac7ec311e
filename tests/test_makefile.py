"""Targets whose work is done by make itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.files import ROOT
from tests.readme import make_checkout


def test_clean_takes_what_can_be_made_again_of_one_recipe(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    for name in ("digits", "mine"):
        for stage in ("train", "export", "quantize", "build", "verify", "benchmark", "infer", "report"):
            (checkout / "artifacts" / name / stage).mkdir(parents=True)
    evidence = checkout / "artifacts/mine/evidence/h200.json"  # of another machine: nothing here makes it again
    evidence.parent.mkdir()
    evidence.touch()
    done = subprocess.run(["make", "clean", "RECIPE=configs/mine.yaml"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kept: artifacts/mine/train, other recipes" in done.stdout
    assert sorted(path.name for path in (checkout / "artifacts/mine").iterdir()) == ["evidence", "train"]
    assert evidence.is_file()
    assert len(list((checkout / "artifacts/digits").iterdir())) == 8


def made(checkout: Path, *words: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """A call of make, with variables in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = kept | {"PATH": path or os.environ["PATH"]} | variables
    return subprocess.run(["make", *words], cwd=checkout, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose Python writes down what it is started with; the verdict is fail."""
    folder = make_checkout(tmp_path_factory.mktemp("make") / "checkout")
    python = folder / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "$3" >> calls\ncase "$3" in verify|run) exit 1;; esac\n')
    return folder


@pytest.fixture
def calls(checkout: Path) -> Path:
    (checkout / "calls").unlink(missing_ok=True)
    return checkout / "calls"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "mine"], "Received: mine. If it is a recipe, write: RECIPE=mine make run"),
        (["mine"], "Received: mine. If it is a recipe, write: RECIPE=mine make run"),
        (["export", "recipe=mine"], "Received: recipe. Write for instance: RECIPE=mine make run"),
        (
            ["export", "RECEPE=mine"],
            "Expected the variables RECIPE ARGS GPU PYTHON VENV, in capitals. Received: RECEPE",
        ),
        (["run", "args=--force", "gpu=1"], "Received: args gpu."),
    ],
)
def test_words_that_would_be_passed_over_are_refused_before_anything_runs(
    words: list[str], said: str, checkout: Path, calls: Path
) -> None:
    done = made(checkout, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not calls.exists()


def test_a_lower_case_variable_of_the_environment_is_refused_too(checkout: Path, calls: Path) -> None:
    done = made(checkout, "export", recipe="mine")
    assert (done.returncode, calls.exists()) == (2, False)
    assert "Received: recipe." in done.stderr


def test_an_empty_recipe_is_the_default(checkout: Path) -> None:
    assert '-m pipeline train -c "digits"' in made(checkout, "-n", "train", RECIPE="").stdout


@pytest.mark.parametrize("recipe", ["../..", "..", ".", "artifacts/", "x y", "a'b", "$$(touch bad)", "-rf", ".venv"])
def test_clean_never_leaves_the_artifacts(recipe: str, checkout: Path) -> None:
    for words in (["clean"], ["-n", "clean"]):
        done = made(checkout, *words, f"RECIPE={recipe}")
        assert done.returncode == 2
        assert "Expected RECIPE with a name of letters" in done.stderr
        assert "rm " not in done.stdout
    assert (checkout / "export").is_dir()
    assert not (checkout / "bad").exists()


def test_clean_says_where_there_is_nothing(checkout: Path) -> None:
    (checkout / "artifacts/mine/export").mkdir(parents=True, exist_ok=True)
    done = made(checkout, "clean", "RECIPE=typo")
    assert done.returncode == 0
    assert done.stdout == "artifacts/typo: nothing there to remove. Recipes with artifacts: mine\n"


@pytest.mark.parametrize("goal", ["infer", "accuracy", "report"])
def test_what_follows_a_failed_verdict_is_made_and_the_status_tells(goal: str, checkout: Path, calls: Path) -> None:
    done = made(checkout, goal)
    assert done.returncode == 2, "make's own, of a command that ended with 1"
    last = {"infer": "infer", "accuracy": "-c", "report": "run"}[
        goal
    ]  # accuracy is a module of its own, without a verb
    assert calls.read_text().split()[-1] == last


def test_a_verify_that_is_refused_ends_there(checkout: Path, calls: Path) -> None:
    python = checkout / ".venv/bin/python"
    before = python.read_text()
    python.write_text(before.replace("verify|run) exit 1", "verify) exit 2"))
    try:
        assert made(checkout, "infer").returncode == 2
    finally:
        python.write_text(before)
    assert calls.read_text().split()[-1] == "verify"


def tools_without_nvidia(folder: Path) -> str:
    """A PATH of the few programs that the check starts, with an ldconfig that knows no driver."""
    folder.mkdir()
    for name in ("sh", "make", "ls", "grep", "uname"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    script(folder / "ldconfig", "exit 0")
    return str(folder)


def script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("sign", [None, "device", "tool", "library"])
def test_an_environment_for_a_gpu_is_installed_where_one_shows(sign: str | None, tmp_path: Path) -> None:
    """The check alone: its target asks before there is a folder."""
    for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
        shutil.copy2(path, tmp_path)
    path = tools_without_nvidia(tmp_path / "bin")
    signs = str(tmp_path / "dev") + "/nvidia*"
    if sign == "device":
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/nvidiactl").touch()
    elif sign == "tool":
        script(tmp_path / "bin/nvidia-smi", "exit 0")
    elif sign == "library":
        script(tmp_path / "bin/ldconfig", "echo '	libcuda.so.1 (libc6,x86-64) => /usr/lib/libcuda.so.1'")
    makefile = (tmp_path / "Makefile").read_text()
    replaced = re.sub(r"^GPU_SIGNS := .*$", f"GPU_SIGNS := {signs} {tmp_path}/none", makefile, flags=re.MULTILINE)
    (tmp_path / "Makefile").write_text(replaced)
    done = made(tmp_path, "gpu-or-said", GPU="1", path=path)
    assert done.returncode == (2 if sign is None else 0), done.stdout + done.stderr
    assert ("make install-gpu" in done.stdout) == (sign is None)
    assert made(tmp_path, "gpu-or-said", GPU="0", path=path).returncode == 0
    tests = made(tmp_path, "gpu-or-said", "test-gpu", path=path)  # its own Python is asked where one shows
    assert ("Expected an NVIDIA GPU and its driver for test-gpu" in tests.stdout) == (sign is None)
    assert ("Expected Python" in tests.stdout) == (sign is not None), "the environment comes second"


def test_pip_that_fails_ends_in_a_sentence(tmp_path: Path) -> None:
    for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
        shutil.copy2(path, tmp_path)
    (tmp_path / ".venv-gpu/bin").mkdir(parents=True)
    script(tmp_path / ".venv-gpu/bin/python", "echo 'no such wheel' >&2; exit 1")
    done = made(tmp_path, "install-gpu")
    assert done.returncode == 2
    assert "Expected pip to install the packages of requirements-gpu.txt. Received: its failure" in done.stdout
    assert "NVIDIA's own package index, which this machine has to reach." in done.stdout
    assert not (tmp_path / ".venv-gpu/.installed").exists()


def gpu_tests() -> list[str]:
    (line,) = re.findall(r"^GPU_TESTS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    return str(line).split()


def test_test_gpu_names_every_file_that_has_such_tests() -> None:
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^(?:pytestmark = |@)pytest\.mark\.gpu$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert sorted(gpu_tests()) == sorted(marked)
    assert "-m pytest -m gpu $(GPU_TESTS)" in (ROOT / "Makefile").read_text()


def test_tests_of_clusters_are_in_the_folder_that_their_target_names_and_in_no_other_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    marked = [
        path.relative_to(ROOT).parent.as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.distributed" in path.read_text(encoding="utf-8") and path != Path(__file__)
    ]
    assert set(marked) == {"tests/pipeline/distributed"}
    assert "-m pytest -m distributed tests/pipeline/distributed\n" in makefile
    others = [line for line in makefile.splitlines() if "-m pytest -m" in line and "pytest -m distributed" not in line]
    assert len(others) == 3  # quick, slow, gpu; those for a GPU name their files
    assert all("not distributed" in line or "$(GPU_TESTS)" in line for line in others)


@pytest.mark.parametrize(
    ("goal", "file"),
    [("install-serve", "requirements-serve.txt"), ("install-distributed", "requirements-distributed.txt")],
)
def test_what_few_need_is_installed_on_top_and_once(goal: str, file: str, tmp_path: Path) -> None:
    installed = bare_environment(tmp_path, "exit 0")
    assert made(tmp_path, goal).returncode == 0
    calls = installed.read_text().splitlines()
    assert f"-r {file}" in calls[-1]
    assert "-r requirements.txt" in installed.read_text()
    assert made(tmp_path, goal).returncode == 0
    assert installed.read_text().splitlines() == calls


# What a GPU machine may well lack; pytest imports every file that it is given.
WITHOUT = """
import sys
class Refuser:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "onnx", "onnxruntime", "tf2onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuser())
import pytest
sys.exit(pytest.main(["-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_the_tests_for_a_gpu_are_collected_without_tensorflow_and_onnx() -> None:
    command = [sys.executable, "-c", WITHOUT, *gpu_tests()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/pipeline/runners/test_cuda.py::" in done.stdout


def bare_environment(folder: Path, python: str, name: str = ".venv") -> Path:
    """A Makefile beside an environment that was made by hand; returns what its pip is told to install."""
    for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
        shutil.copy2(path, folder)
    (folder / name / "bin").mkdir(parents=True)
    script(folder / name / "bin/python", f'case "$1" in -c) {python};; *) echo "$@" >> {folder}/installed;; esac')
    return folder / "installed"


@pytest.mark.parametrize(
    ("goal", "instead"),
    [
        ("doctor", "pipeline doctor"),
        ("run", "pipeline doctor"),
        ("build", "pipeline build -c artifacts/mine/recipe.yaml"),
        ("bundle", "pipeline bundle -c artifacts/mine/recipe.yaml"),
        ("gpu-evidence", "benchmarks.gpu_evidence artifacts/mine"),
    ],
)
def test_an_environment_for_bundles_alone_is_left_as_it_is(goal: str, instead: str, tmp_path: Path) -> None:
    installed = bare_environment(tmp_path, "echo 3.10")
    done = made(tmp_path, goal, RECIPE="artifacts/mine/recipe.yaml")
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        "Expected Python 3.11, 3.12 or 3.13 in .venv. Received: 3.10, which runs bundles alone; nothing was installed.",
        f"Write instead: .venv/bin/python -m {instead}",
    ]
    assert not installed.exists()


def test_an_environment_of_a_python_that_runs_nothing_is_left_too(tmp_path: Path) -> None:
    installed = bare_environment(tmp_path, "echo 3.9")
    done = made(tmp_path, "run")
    assert (done.returncode, installed.exists()) == (2, False)
    assert done.stdout.endswith("Make another environment: make install VENV=.venv-new\n")


@pytest.mark.parametrize(
    ("goal", "name", "size"),
    [("install", ".venv", "about a minute, 2 GB; once"), ("install-gpu", ".venv-gpu", "several GB; once")],
)
def test_what_an_environment_takes_is_said_of_each(goal: str, name: str, size: str, tmp_path: Path) -> None:
    installed = bare_environment(tmp_path, "exit 0", name)
    done = made(tmp_path, goal)
    assert done.returncode == 0, done.stderr
    assert f"into {name} ({size})" in done.stdout
    assert "-r requirements" in installed.read_text()


@pytest.mark.parametrize(
    "recipe", ["artifacts/mine/recipe.yaml", "/a/b/artifacts/mine/recipe.yaml", "configs/mine.yaml"]
)
def test_the_recipe_of_an_unpacked_archive_is_named_by_its_folder(recipe: str, checkout: Path) -> None:
    assert '"artifacts/mine" ' in made(checkout, "-n", "gpu-evidence", RECIPE=recipe).stdout
    assert 'rm -rf "artifacts/mine/export"' in made(checkout, "-n", "clean", RECIPE=recipe).stdout


def test_a_recipe_that_is_so_called_keeps_its_name(checkout: Path) -> None:
    assert '"artifacts/recipe" ' in made(checkout, "-n", "gpu-evidence", RECIPE="configs/recipe.yaml").stdout
