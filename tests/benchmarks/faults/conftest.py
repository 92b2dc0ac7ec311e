"""Artifacts to plant faults into: those of the tiny recipe, and those of the small model that has every part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults.catalogue import plant
from benchmarks.faults.examine import Examination, Examiner
from benchmarks.faults.planted import NoSuchPartError, Planted
from benchmarks.faults.specimen import Specimen
from tests.conftest import Chain, made_once

IMAGES = 48


@dataclass(frozen=True)
class Bench:
    """Artifacts, and what verifies copies of them."""

    specimen: Specimen
    examiner: Examiner

    def examine(
        self, name: str, form: str, folder: Path, *, explained: bool = False, seed: int = 0
    ) -> tuple[Planted, Examination]:
        """Plant a fault into a copy, and verify it."""
        copy = self.specimen.copy(folder)
        planted = plant(name, copy, np.random.default_rng(seed), form)
        return planted, self.examiner.examine(copy, planted, explained=explained)


def draw_calibration(specimen: Specimen) -> np.ndarray:
    """Images that are not among those looked at."""
    return specimen.reference["pixels"][IMAGES : IMAGES + 16]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The small model; the files are made once for all processes."""
    pytest.importorskip("keras")
    from benchmarks.faults.small_model import build_specimen

    folder = made_once(tmp_path_factory, "faults-small-model", lambda place: build_specimen(place, images=IMAGES + 16))
    whole = Specimen(folder, np.zeros(0))
    return Bench(Specimen(folder, draw_calibration(whole), IMAGES), Examiner())


@pytest.fixture(scope="session")
def tiny(made_chain: Chain) -> Bench:
    """The tiny recipe, whose files are copied and stay as they are."""
    whole = Specimen(made_chain.root, np.zeros(0))
    return Bench(Specimen(made_chain.root, draw_calibration(whole), IMAGES), Examiner())


@pytest.fixture
def benches(tiny: Bench, small: Bench) -> tuple[Bench, Bench]:
    return tiny, small


def examined(
    benches: tuple[Bench, ...], name: str, form: str, folder: Path, *, explained: bool = False
) -> tuple[Planted, Examination]:
    """Plant a fault into the first artifacts that have its part."""
    for index, bench in enumerate(benches[:-1]):
        try:
            return bench.examine(name, form, folder / str(index), explained=explained)
        except NoSuchPartError:
            continue
    return benches[-1].examine(name, form, folder / "last", explained=explained)
