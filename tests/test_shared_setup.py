"""What tests share: folders that one worker makes for all, numbers drawn alike, a run without TensorFlow."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from export.files import ROOT
from tests.conftest import made_once


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The factories of four workers, each with a folder of its own in that of the run."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    return [SimpleNamespace(getbasetemp=lambda n=n: tmp_path / f"popen-gw{n}") for n in range(4)]


def test_one_worker_makes_a_folder_and_the_others_read_it(workers: list[SimpleNamespace], tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda factory: made_once(factory, "x", make), workers))
    assert folders == [tmp_path / "x"] * 4
    assert calls == [tmp_path / "x"]
    assert (tmp_path / "x/file").read_text() == "whole"


def test_who_comes_after_a_maker_that_failed_makes_it_from_the_start(workers: list[SimpleNamespace]) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(workers[0], "x", fail)
    folder = made_once(workers[1], "x", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_a_process_alone_makes_it_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    factory = SimpleNamespace(getbasetemp=lambda: tmp_path)
    assert made_once(factory, "x", lambda folder: None) == tmp_path / "x"


@pytest.fixture(scope="module")
def drawn() -> tuple[float, float]:
    return random.random(), float(np.random.rand())


@pytest.mark.parametrize("before", [0, 3])
def test_fixtures_and_tests_draw_the_same_whatever_was_drawn_before(before: int, drawn: tuple[float, float]) -> None:
    expected = random.Random(0).random(), float(np.random.RandomState(0).rand())
    assert (random.random(), float(np.random.rand())) == drawn == expected
    np.random.rand(before)


DRAWN: list[np.ndarray] = []


@pytest.mark.parametrize("time", [1, 2])
def test_weights_of_keras_follow(time: int) -> None:
    import keras

    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    DRAWN.append(np.asarray(layer.kernel))
    assert np.array_equal(DRAWN[0], DRAWN[-1])


TESTS = """
import subprocess, sys, pytest
@pytest.fixture
def trained():
    import keras
def test_that_takes_it_from_a_fixture(trained): raise AssertionError
def test_that_imports_it():
    try:
        import tensorflow
    except ImportError:
        raise AssertionError
    raise AssertionError
def test_that_starts_a_python():
    subprocess.run([sys.executable, "-c", "import tensorflow"])
    raise AssertionError
def test_that_does_neither():
    subprocess.run(["true"], check=True)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_make_check_skips_what_needs_tensorflow_and_fails_with_the_rest(tmp_path: Path, workers: int) -> None:
    """Of a copy of the suite's own conftest."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests/conftest.py").read_bytes())
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_all_of_it.py").write_text("import keras\ndef test_it(): raise AssertionError")
    (tmp_path / "test_fails.py").write_text("def test_it(): raise AssertionError")
    options = ["-q", "-p", "no:cacheprovider", "--unit", "-n", str(workers)]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert re.search(r"^1 failed, 1 passed, 4 skipped in", done.stdout, re.MULTILINE), done.stdout + done.stderr
