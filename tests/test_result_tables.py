"""The tables of INT8's measurements in README.md and docs/int8.md are those of the records."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy_row import AccuracyReport, AccuracyRow
from benchmarks.int8.networks import Network
from benchmarks.int8.record import Gain, Measured, Row, Table
from benchmarks.int8_noise import NoiseReport, NoiseRow
from benchmarks.int8_steps import TURNED_ON, Chosen, Made
from benchmarks.peers.quantizers.tools import Share
from export.files import ROOT
from export.int8.report import (
    BiasCorrection,
    CalibrationReport,
    Distances,
    Equalization,
    Fp16Report,
    Fp16Rounding,
    SecondOrder,
    ShiftReport,
)
from export.int8.simulate import Judged
from export.records import to_json
from pipeline.artifacts.machine import Cpu, Machine
from tests import result_tables

MACHINE = Machine(Cpu("x", 2, 2, ()), 1, "x", "3.11", {}, None, None, ())
FEW = "all three, 6% of the convolutions in float"
PEERS = {"modelopt-max": 17.0, "modelopt-entropy": 20.1, "ort-minmax": 16.0}


@pytest.mark.parametrize("page", result_tables.PAGES)
def test_tables_are_those_of_the_records(page: str) -> None:
    written = (ROOT / page).read_text(encoding="utf-8")
    assert result_tables.TABLE.search(written)
    assert written == result_tables.with_tables(written), "write them again: make result-tables"


def judged(sqnr: float, wrong: int = 0, *, exact: bool = False) -> Judged:
    """Of 200 images, some with another answer; the labels are Keras' answers."""
    reference = np.tile([[1.0, 0.0]], (200, 1))
    logits = reference.copy()
    logits[:wrong] = logits[:wrong, ::-1]
    one = Judged.of(reference, logits, np.zeros(200, np.int64))
    values = (math.inf,) * 4 if exact else (sqnr, sqnr + 2, sqnr - 3, sqnr - 9)
    return replace(one, **dict(zip(("sqnr_db", "median_db", "low_db", "worst_db"), values)))


def row(
    name: str, sqnr: float, wrong: int = 0, *, int8: int = 53, half: float | None = None, **more: Any
) -> AccuracyRow:
    one = judged(sqnr, wrong)
    return AccuracyRow(name, one, None, Share(int8, 53), 1, None, None, None if half is None else judged(half), **more)


def made(name: str) -> Made:
    return Made(f"INT8, {name}", Path("x.onnx"), Chosen("lp_3", 33, True, True, 0.7, "fp32"), 151.6, 2560)


def distances(median: float) -> Distances:
    return Distances(median - 1, 0.992, 0.0, median, median - 4, median - 8, median - 5)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a record as `benchmarks.accuracy` writes it."""
    step = distances(25.0), distances(28.5)
    calibration = CalibrationReport(
        *(
            Fp16Report(Fp16Rounding("mean", distances(60), distances(61)), {}),
            49,
            125,
            375,
            50,
            53,
            "nothing",
            "lp_2.4",
        ),
        methods={"mse": distances(27.0), "lp_2.4": distances(27.5)},
        all_int8=distances(31.0),
        kept=("conv1/Conv",),
        budget_met=True,
        shift=ShiftReport(True, ("a", "b"), {}, 54, plain=step[0], after=step[1]),
        equalization=Equalization(True, step[0], {"0.5": step[1]}, "0.5"),
        rounding=SecondOrder(True, 192, *step, {}),
        bias_correction=BiasCorrection(False, *step),
    )
    rows = [
        replace(row("FP32", 120, int8=0), comparison=judged(0, exact=True)),
        row("FP16", 60.26, 1, int8=0, half=58.0),
        row("INT8 as shipped, 1 layer in float", 30.26, 1, int8=50, half=28.94),
        row("INT8 as shipped, 1 layer in float, for TensorRT 8.6", 30.0),
        *(row(f"peer: {name}", sqnr, 4) for name, sqnr in PEERS.items()),
        *(row(f"INT8, {name}", 24.0 + number, 2, half=23.0, made=made(name)) for number, name in enumerate(TURNED_ON)),
        row(f"INT8, {FEW}", 30.5, int8=50, half=29.0, made=made(FEW)),
        row("INT8, all three, trunk of FP16", 26.5, half=26.14, made=made("all three, trunk of FP16")),
    ]
    report = AccuracyReport(
        recipe="photos",
        machine=MACHINE,
        commit="c",
        model_sha256="0" * 64,
        test_images=200,
        classes=2,
        calibration=calibration,
        seconds={},
        peak_memory_mib=None,
        peers={},
        rows=tuple(rows),
    )
    (tmp_path / "int8-photos.json").write_text(json.dumps(to_json(report)), encoding="utf-8")
    return tmp_path


def table(view: str, results: Path, of: str = "photos") -> list[str]:
    page = f"before\n<!-- INT8 of {of}: {view} -->\nold\n<!-- end of table -->\nafter\n"
    lines = result_tables.with_tables(page, results).splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == (
        "before",
        page.splitlines()[1],
        "<!-- end of table -->",
        "after",
    )
    assert result_tables.with_tables("\n".join(lines), results).splitlines() == lines
    return lines[2:-2]


def cells(sqnr: float, agreement: str, answers: str) -> str:
    return " | ".join([*(f"{value:.1f} dB" for value in (sqnr, sqnr + 2, sqnr - 3, sqnr - 9)), agreement, answers])


def test_the_summary_has_the_file_as_shipped_and_each_quantizer_at_its_best(results: Path) -> None:
    lines = table("summary", results)
    assert lines[2:-2] == [
        f"| FP16 | – | {cells(60.3, '99.5 % (97.2 to 99.9)', '1 / 0')} |",
        f"| **INT8 as shipped, 1 layer in float** | 50 of 53 | {cells(30.3, '99.5 % (97.2 to 99.9)', '1 / 0')} |",
        f"| INT8 throughout, all steps | 53 of 53 | {cells(28.0, '99.0 % (96.4 to 99.7)', '2 / 0')} |",
        "| INT8 throughout, without the eighth bit, second-order rounding and norms | 53 of 53 "
        f"| {cells(24.0, '99.0 % (96.4 to 99.7)', '2 / 0')} |",
        f"| modelopt, entropy (its best) | 53 of 53 | {cells(20.1, '98.0 % (95.0 to 99.2)', '4 / 0')} |",
        f"| quantize_static, minmax (its best) | 53 of 53 | {cells(16.0, '98.0 % (95.0 to 99.2)', '4 / 0')} |",
    ]
    assert lines[-2:] == [
        "",
        "375 + 125 calibration images, 200 test images; the smallest p of McNemar's exact test in this table is 0.12.",
    ]


def test_the_summary_of_a_file_in_int8_throughout_has_one_with_a_few_layers_in_float(results: Path) -> None:
    path = results / "int8-photos.json"
    path.write_text(path.read_text().replace("INT8 as shipped, 1 layer in float", "INT8 as shipped, throughout"))
    lines = table("summary", results)
    assert [line.split(" | ")[0] for line in lines[3:5]] == [
        "| **INT8 as shipped, throughout**",
        "| INT8, 6 % of the convolutions in float",
    ]
    assert lines[4].endswith(f"| 50 of 53 | {cells(30.5, '100.0 % (98.1 to 100)', '0 / 0')} |")


def test_the_steps_are_all_there_with_what_their_searches_took(results: Path) -> None:
    lines = table("steps", results)
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:-2]] == [*result_tables.STEPS.values(), FEW]
    assert set(result_tables.STEPS) == {f"INT8, {name}" for name in TURNED_ON}
    assert lines[3].endswith(f"| 53 of 53 | {cells(25.0, '99.0 % (96.4 to 99.7)', '2 / 0')} | 152 s | 2.5 GiB |")


def test_the_trunk_is_shown_with_every_fp16_value_rounded(results: Path) -> None:
    lines = table("trunk", results)
    assert len(lines) == 2 + 8
    assert lines[2] == "| INT8 as shipped, 1 layer in float | 30.3 dB | 32.3 dB | 28.9 dB | 30.9 dB |"
    assert lines[-1] == "| INT8, all three, trunk of FP16 | 26.5 dB | 28.5 dB | 26.1 dB | 28.1 dB |"


def test_the_search_is_told_step_by_step(results: Path) -> None:
    assert table("search", results)[2:] == [
        f"| {step} | 25.0 dB → 28.5 dB | 20.0 dB → 23.5 dB | 17.0 dB → 20.5 dB | 99.2 % → 99.2 % | {kept} |"
        for step, kept in (
            ("equalization, strength 0.5", "yes"),
            ("the eighth bit, 2 of 54 tensors", "yes"),
            ("second-order rounding", "yes"),
            ("bias correction", "no"),
        )
    ] + ["", "Scales: lp_2.4. Layers in float: 1. Judged on 125 held-out images."]


def test_methods_are_those_that_the_search_tried(results: Path) -> None:
    assert table("methods", results)[2:] == [
        "| mse | 26.0 dB | 27.0 dB | 22.0 dB | 19.0 dB | 99.2 % |",
        "| **lp_2.4** | 26.5 dB | 27.5 dB | 22.5 dB | 19.5 dB | 99.2 % |",
    ]


def test_noise_is_told_way_by_way(tmp_path: Path) -> None:
    rows = (
        NoiseRow("255 levels", "second_order", "lp_3", 28.85, 31.06, None, 0.274, 0.984375),
        NoiseRow("float", "nearest", None, 29.94, 30.8, 25.37, 0.15, 1.0),
    )
    record = NoiseReport(
        recipe="photos",
        machine=MACHINE,
        commit=None,
        model_sha256="0" * 64,
        scale_images=375,
        images=64,
        quantized=54,
        shifted=33,
        rows=rows,
    )
    (tmp_path / "noise-photos.json").write_text(json.dumps(to_json(record)))
    assert table("noise", tmp_path)[2:] == [
        "| 255 levels | second order | lp_3 | 28.9 dB | 31.1 dB | – | 98.4 % | 27 % |",
        "| float | nearest |  | 29.9 dB | 30.8 dB | 25.4 dB | 100.0 % | 15 % |",
        "",
        "33 of 54 tensors can have 255 levels; 375 images gave scales, 64 held-out ones judge.",
    ]


def test_networks_are_told_with_what_the_steps_changed(tmp_path: Path) -> None:
    network = Network(
        backbone="resnet18",
        weights="drawn",
        input_size=64,
        parameters=1,
        classes=("a", "b"),
        images={},
        epochs=0,
        accuracy=0.0605,
    )

    def step(name: str, median: float, agreement: float, **more: Any) -> Row:
        return Row(
            step=name,
            median_db=median,
            top1_agreement=agreement,
            agreement_interval=(0.0, 1.0),
            **{"lost": 0, "gained": 0, "method": "mse", "int8_convolutions": 20, "convolutions": 20, "kept": ()},
            **{"skipped": {}, "seconds": 1.0, "gains": {}} | more,
        )

    gains = {"earlier": Gain(1.32, (1.15, 1.56), 0.0575, (-0.001, 0.0887))}
    rows = (
        step("earlier", 20.04, 0.88),
        step("trunk", 1.0, 0.1),
        step("norms", 21.24, 0.9375, quantized=21, shifted=1, gains=gains),
    )
    record = Table(photographs="x", machine=MACHINE, networks=(Measured(network, rows),))
    (tmp_path / "int8-networks.json").write_text(json.dumps(to_json(record)))
    assert table("networks", tmp_path, of="networks")[2:] == [
        "| resnet18, drawn | 64 | 6.0 % | 20.0 dB → 21.2 dB | +1.3 dB (+1.1 to +1.6) "
        "| 88.0 % → 93.8 % | +5.8 (-0.1 to +8.9) | 1 of 21 |"
    ]


def test_a_record_of_before_is_no_measurement(results: Path) -> None:
    path = results / "int8-photos.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    for view in ("summary", "steps", "methods", "trunk", "search"):
        assert table(view, results) == [result_tables.NOT_MEASURED]


def test_a_value_that_is_not_finite_is_a_dash(results: Path) -> None:
    path = results / "int8-photos.json"
    record = json.loads(path.read_text())
    exact = record["rows"][0]
    assert (exact["sqnr_db"], exact["worst_db"]) == (None, None)
    path.write_text(json.dumps(record | {"rows": [exact | {"name": "INT8, before", "seconds": 1.0}]}))
    assert table("steps", results)[2].startswith("| none of the three | – | – | – | – | – | 100.0 % (98.1 to 100) |")
