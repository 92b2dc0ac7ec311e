"""The networks of the bench: drawn or trained on photographs of one split, and exported; nothing half-made stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.int8.networks import load_photographs, make_network, read_images, read_network
from export.errors import ProjectError
from export.int8.simulate import simulate
from export.onnx_passes.file import load_model
from tests.conftest import CLASSES, make_colour_images


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "least"), [("trained", 0.9), ("drawn", 0.0)])
def test_a_network_is_exported_with_images_that_no_other_split_has(tmp_path: Path, weights: str, least: float) -> None:
    photographs = load_photographs(make_colour_images(tmp_path / "images", 60))
    folder = tmp_path / "resnet20"
    made = make_network(folder, "resnet20", weights, photographs, size=32, epochs=4, most=32)  # type: ignore[arg-type]
    assert read_network(folder) == made
    assert made.classes == tuple(sorted(CLASSES))
    images = read_images(folder)
    assert (len(images.scales), len(images.held_out), len(images.test)) == (24, 8, made.images["test"])
    seen = [picture.tobytes() for part in (images.scales, images.held_out, images.test) for picture in part]
    assert len(set(seen)) == len(seen)
    answers = simulate(load_model(folder / "model.onnx"), images.test).argmax(axis=1)
    assert np.mean(answers == images.test_labels) == pytest.approx(made.accuracy, abs=0.02)
    assert made.accuracy >= least
    assert made.epochs == (4 if weights == "trained" else 0)


@pytest.mark.slow
def test_nothing_stays_of_a_network_that_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.from_keras import convert

    def fail(*_: object, **__: object) -> None:
        raise ProjectError("no counterpart")

    monkeypatch.setattr(convert, "export_keras", fail)
    photographs = load_photographs(make_colour_images(tmp_path / "images", 40))
    with pytest.raises(ProjectError, match="no counterpart"):
        make_network(tmp_path / "n" / "x", "resnet20", "drawn", photographs, size=32, epochs=1, most=32)
    assert list((tmp_path / "n").glob("*")) == []
