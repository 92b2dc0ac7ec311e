"""The tiny recipe: synthetic colour images in a folder, run once through the whole chain and shared by the tests."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

# A shell starts what it puts in the background with Ctrl-C ignored, and the commands under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORKER_BYTES = 2 * 2**30  # of a process that has TensorFlow loaded


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """``-n auto``: a process for each core that this one may use, as far as the memory goes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // WORKER_BYTES))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--unit", action="store_true", help="skip what needs TensorFlow or starts a Python (make check)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--unit"):
        sys.meta_path.insert(0, NoTensorFlow())
        if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
            sys.addaudithook(no_python)  # not where the workers themselves are started


class NoTensorFlow(MetaPathFinder):
    """Skips the module, fixture or test that imports TensorFlow: what it needs decides, no list of tests."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("tensorflow", "keras", "tf2onnx"):
            pytest.skip("needs TensorFlow", allow_module_level=True)


def no_python(event: str, arguments: tuple[object, ...]) -> None:
    """Skips the test that starts another Python, which may import TensorFlow unseen."""
    if event == "subprocess.Popen" and arguments[0] == sys.executable:
        pytest.skip("starts a Python", allow_module_level=True)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    draw_alike()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    draw_alike()


def draw_alike() -> None:
    """Every fixture and every test draws the same numbers, whatever ran before it; weights of Keras follow `random`."""
    random.seed(0)
    np.random.seed(0)


CLASSES = ("blue", "green", "red", "yellow")
TINTS = {"blue": (60, 80, 200), "green": (60, 180, 70), "red": (200, 60, 50), "yellow": (210, 190, 60)}


def make_colour_images(root: Path, count: int = 96, seed: int = 7) -> Path:
    """``count`` noisy images of each colour, in a folder a class; channel order and mean decide the class."""
    drawn = np.random.default_rng(seed)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for index in range(count):
            tint = np.array(TINTS[name]) + drawn.normal(0, 25, 3)
            pixels = tint + drawn.normal(0, 30, (40, 36, 3))
            x, y = drawn.integers(0, 24, 2)
            pixels[y : y + 12, x : x + 12] = drawn.integers(0, 256, 3)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{index:03d}.png")
    return root


def tiny_recipe(images: Path) -> dict:
    """A recipe that takes seconds; caffe preprocessing, so that channel order and mean are both at stake."""
    return {
        "name": "tiny",
        "data": {
            "path": str(images),
            "splits": {"train": 0.4, "validation": 0.1, "calibration": 0.2, "test": 0.3},
        },
        "model": {"backbone": "resnet20", "input_size": 32, "preprocessing": "caffe"},
        "train": {
            "head": {"epochs": 0},
            "fine_tune": {"epochs": 3, "learning_rate": 0.003, "freeze_batchnorm": False},
        },
        "quantize": {"min_images": 40},
        "build": {"profile": {"min": 1, "opt": 4, "max": 8}},
        "verify": {"min_images": 60},
        "benchmark": {"seconds": 0.1, "warmup_seconds": 0.0, "min_samples": 3},
        "infer": {"samples": 8},
    }


@dataclass(frozen=True)
class Chain:
    """A recipe and its artifacts on disk."""

    recipe: Path
    images: Path
    artifacts: Path

    @property
    def root(self) -> Path:
        return self.artifacts / "tiny"

    def arguments(self, verb: str, *more: str) -> list[str]:
        return [verb, "-c", str(self.recipe), "--artifacts", str(self.artifacts), *more]

    def run(self, verb: str, *more: str) -> int:
        """The exit status of a verb, in this process."""
        from pipeline.cli.commands import main

        return main(self.arguments(verb, *more))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the whole run: the first worker that wants it fills it, the others wait and read.

    Args:
        factory: of temporary folders.
        name: of the folder.
        make: fills it. What it left when it failed is removed, and who comes next tries again.
    """
    from filelock import FileLock  # here, because the GPU machines of some tests lack it

    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, made = root / name, root / f"{name}.made"
    with FileLock(root / f"{name}.lock"):  # ends with its process: nobody waits for one that was killed
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def made_chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The tiny recipe after ``run``, which all workers read: run no verb on it, take ``finished_chain``."""

    def located(folder: Path) -> Chain:
        return Chain(folder / "tiny.yaml", folder / "images", folder / "artifacts")

    def make(folder: Path) -> None:
        chain = located(folder)
        make_colour_images(chain.images)
        chain.recipe.write_text(yaml.safe_dump(tiny_recipe(chain.images)))
        assert chain.run("run") == 0

    return located(made_once(tmp_path_factory, "tiny-of-all", make))


@pytest.fixture(scope="session")
def finished_chain(made_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The tiny recipe after ``run``, for this worker. Do not change it: take ``chain``."""
    return copy_chain(made_chain, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def chain(finished_chain: Chain, tmp_path: Path) -> Chain:
    """A copy of the finished tiny recipe, to change."""
    return copy_chain(finished_chain, tmp_path)


def copy_chain(finished: Chain, folder: Path) -> Chain:
    """A recipe with its images and artifacts, elsewhere."""
    for source in (finished.artifacts, finished.images):
        shutil.copytree(source, folder / source.name)
    tree = yaml.safe_load(finished.recipe.read_text())
    tree["data"]["path"] = str(folder / "images")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    return Chain(recipe, folder / "images", folder / "artifacts")
