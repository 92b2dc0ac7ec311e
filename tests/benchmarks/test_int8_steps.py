"""The steps of the search for INT8, turned on one by one: each row's file has what the step allows, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks import int8_steps
from benchmarks.int8_steps import TURNED_ON, Made, forget_peak, make_steps, method_before
from export.int8.options import SearchOptions
from export.int8.report import Distances
from export.int8.scales import METHODS
from export.int8.search import SearchResult, search
from export.int8.simulate import HeldOut
from export.onnx_passes.file import load_model
from export.onnx_passes.graph import op_counts
from pipeline.artifacts.machine import peak_memory_mib
from tests.residual_onnx import residual_classifier

ASKED: list[SearchOptions] = []  # of each search, in order


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Made]]:
    def noted(*given: Any) -> SearchResult:
        result = search(*given)
        ASKED.append(given[3])
        assert result.fp16 is given[5], "searched once for all rows"
        return result

    model = residual_classifier()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (24, 16, 16, 3), np.uint8)
    held_out = HeldOut.of(model, pixels[16:], np.zeros(8, np.int64))
    options = SearchOptions(rounding_images=16, shift="always", sensitivity="always", max_kept=1.0)
    made = make_steps(
        model, lambda words: [pixels[:8], pixels[8:16]], held_out, options, tmp_path_factory.mktemp("rows"), mixed=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_steps, "search", noted)
        yield {one.name.removeprefix("INT8, "): one for one in made}


def test_each_row_has_what_its_steps_allow(rows: dict[str, Made]) -> None:
    few = "all three, 6% of the convolutions in float"
    assert list(rows) == [*TURNED_ON, few, "all three, trunk of FP16", "as shipped, trunk of FP16"]
    for name, on in TURNED_ON.items():
        chosen, counts = rows[name].chosen, op_counts(load_model(rows[name].path))
        assert counts.get("Clip", 0) == chosen.shifted, name
        assert (chosen.shifted > 0) <= ("shift" in on), name
        assert chosen.second_order <= ("rounding" in on), name
        assert chosen.method in (METHODS if "norms" in on else METHODS[:-2]), name
        assert counts["QuantizeLinear"] == 6, f"{name}: INT8 throughout"
    assert [rows[name].chosen.trunk for name in rows] == ["fp32"] * 6 + ["fp16"] * 2
    assert [one.complete for one in rows.values()] == [False] * 4 + [True] * 4
    assert all(one.seconds > 0 for one in rows.values())
    norms, before, *_, everything, fewest, _, shipped = ASKED
    assert [options.sensitivity for options in ASKED] == ["never"] * 5 + ["always", "never", "always"]
    assert (fewest.max_kept, fewest.int8.sqnr_db) == (0.06, 1000.0), "a budget that nothing meets, so all that may stay"
    assert (norms.method, everything.method, shipped.method) == ("auto",) * 3
    assert {options.method for options in ASKED[1:4]} == {before.method} <= set(METHODS[:-2]), "the usual one of then"
    assert shipped.shift == "always", "as the recipe says"
    assert len({one.path for one in rows.values()}) == len(rows)


def test_the_method_of_before_is_the_usual_choice_of_then() -> None:
    def found(sqnr_db: float | None, agreement: float) -> Distances:
        return Distances(sqnr_db, agreement, None)

    worse, close, agrees = found(20.0, 1.0), found(24.0, 0.98), found(23.6, 0.99)
    methods = {"minmax": worse, "mse": close, "entropy": agrees, "lp_3": found(30.0, 1.0)}
    assert method_before(methods) == "entropy", "within half a decibel agreement decides, and there were no norms"
    assert method_before({"minmax": worse, "mse": close}) == "mse"
    assert method_before({"minmax": found(None, 1.0), "mse": close}) == "minmax", "no noise at all"


def test_the_peak_of_memory_begins_anew() -> None:
    block = np.ones(100 << 20, np.uint8)
    before = peak_memory_mib()
    del block
    forget_peak()
    after = peak_memory_mib()
    if before is None or after is None:
        pytest.skip("this system does not report it")
    assert after < before - 50
