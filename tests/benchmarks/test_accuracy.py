"""The accuracy benchmark on the tiny recipe: every candidate judged, and nothing that is of something else."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.accuracy import main
from export.files import ROOT
from export.int8.scales import METHODS
from tests.conftest import Chain


def arguments(chain: Chain, *more: str) -> list[str]:
    return chain.arguments("", *more)[1:]


def test_every_candidate_is_judged_on_the_test_images(finished_chain: Chain, tmp_path: Path) -> None:
    peer = tmp_path / "other.onnx"
    shutil.copy2(finished_chain.root / "quantize/model.int8.onnx", peer)
    peer.with_suffix(".json").write_text('{"tool": "other"}')
    output = tmp_path / "accuracy.json"
    assert main(arguments(finished_chain, "--peer", f"other={peer}", "--output", str(output))) == 0
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
        assert row["images"] == found["test_images"] == hops["export/model.onnx"]["images"]
    assert found["rows"][0]["int8_convolutions"] == 0
    published = json.loads((ROOT / "benchmarks/results/int8-digits.json").read_text())
    assert list(found) == list(published)
    assert [list(found["rows"][at]) for at in (0, -1)] == [list(published["rows"][at]) for at in (0, -1)]
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
