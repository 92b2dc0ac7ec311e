"""The accuracy benchmark on the tiny recipe: every candidate judged, and nothing that is of something else."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.accuracy import main
from benchmarks.int8_steps import Chosen, Made
from export.files import ROOT
from export.int8.scales import METHODS
from export.metrics.per_image import sqnr_by_image
from export.records import to_json
from pipeline.runners.onnxruntime import OnnxRunner
from tests.conftest import Chain


def arguments(chain: Chain, *more: str) -> list[str]:
    return chain.arguments("", *more)[1:]


CHOSEN = Chosen("mse", 3, True, False, 0.5, "fp32")


def test_every_candidate_is_judged_on_the_test_images(
    finished_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_step(*_: Any, mixed: bool) -> Iterator[Made]:
        assert mixed is bool(json.loads((finished_chain.root / "quantize/calibration.json").read_text())["kept"])
        yield Made("INT8, all three", finished_chain.root / "quantize/model.int8.onnx", CHOSEN, 1.5, 300)

    monkeypatch.setattr(accuracy, "make_steps", one_step)  # tests/benchmarks/test_int8_steps.py has the searches
    peer = tmp_path / "other.onnx"
    shutil.copy2(finished_chain.root / "quantize/model.int8.onnx", peer)
    peer.with_suffix(".json").write_text('{"tool": "other"}')
    output = tmp_path / "accuracy.json"
    assert main(arguments(finished_chain, "--methods", "--peer", f"other={peer}", "--output", str(output))) == 0
    found = json.loads(output.read_text())
    rows = {row["name"]: row for row in found["rows"]}
    parity = json.loads((finished_chain.root / "verify/parity.json").read_text())
    hops = {hop["candidate"]: hop for hop in parity["hops"] if hop["kind"] == "from_keras"}
    assert rows["FP32"]["sqnr_db"] == pytest.approx(hops["export/model.onnx"]["sqnr_db"], abs=3)
    shipped = next(row for name, row in rows.items() if name.startswith("INT8 as shipped"))
    assert shipped["sqnr_db"] == pytest.approx(hops["quantize/model.int8.onnx"]["sqnr_db"], abs=0.5)
    assert rows["peer: other"]["sqnr_db"] == shipped["sqnr_db"]
    assert found["peers"] == {"other": {"tool": "other"}}
    for method in METHODS:
        row = rows[f"INT8 throughout, {method}"]
        assert row["int8_convolutions"] == row["convolutions"] == 21
        assert (row["fused"], row["half"]) == (None, None)
        assert row["images"] == found["test_images"] == hops["export/model.onnx"]["images"]
    assert found["rows"][0]["int8_convolutions"] == 0
    assert list(found["rows"][0])[-1] == "plan_bytes", "an engine was built"
    made = rows["INT8, all three"]
    assert (made["chosen"], made["seconds"], made["peak_memory_mib"]) == (to_json(CHOSEN), 1.5, 300)
    assert made["sqnr_db"] == shipped["sqnr_db"]
    for recipe in ("digits", "flowers", "imagenet", "signs"):
        published = json.loads((ROOT / f"benchmarks/results/int8-{recipe}.json").read_text())
        assert list(found) == list(published)
        assert list(found["rows"][0]) == list(published["rows"][0])
        whole = next(row for row in published["rows"] if row["name"] == made["name"])
        assert (list(made), list(made["chosen"])) == (list(whole), list(whole["chosen"]))
    assert (made["half"], made["fused"]) == (shipped["half"], None)
    assert shipped["fused"]["sqnr_db"] > 0
    assert shipped["worst_db"] <= shipped["low_db"] <= shipped["median_db"]
    with np.load(finished_chain.root / "verify/reference.npz") as arrays, OnnxRunner(peer, exact=True) as runner:
        by_image = sqnr_by_image(arrays["logits"], runner.infer(arrays["pixels"]).logits)
    assert shipped["worst_db"] == pytest.approx(by_image.min(), abs=0.5)
    assert rows["FP32"]["half"] is None
    assert rows["FP16"]["half"]["sqnr_db"] < rows["FP16"]["sqnr_db"]
    assert rows["INT8 throughout, minmax"]["sqnr_db"] != rows["INT8 throughout, minmax, not equalized"]["sqnr_db"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peer", "x"], "NAME=FILE"),
        (["--peer", "x=/nowhere.onnx"], "does not exist"),
        (["--set", "quantize.method=minmax"], "another quantize"),
    ],
)
def test_what_does_not_belong_is_refused(
    finished_chain: Chain, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(arguments(finished_chain, *options)) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_that_was_not_run(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    (chain.root / "quantize/model.int8.onnx").unlink()
    assert main(arguments(chain)) == 2
    assert "model.int8.onnx" in capsys.readouterr().err


def test_peers_get_the_images_that_give_our_scales(finished_chain: Chain, tmp_path: Path) -> None:
    path = tmp_path / "pixels.npz"
    assert main(arguments(finished_chain, "--pixels", str(path))) == 0
    with np.load(path) as arrays:
        pixels = arrays["pixels"]
    images = json.loads((finished_chain.root / "quantize/images.json").read_text())
    assert len(pixels) == len(images["calibration"]) > 0
    assert pixels.dtype == np.uint8
