"""Which GPUs each TensorRT supports, and what is said of versions that nothing was built with."""

import types
from itertools import pairwise
from typing import Any

import pytest

from export.tensorrt.driver import BUILT, GENERATIONS, no_support, supporting, supports, untested_note
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing


@pytest.mark.parametrize(
    ("flavour", "version", "gpus", "expected"),
    [
        ("rtx", "1.7.1.116", "7.5 8.0 8.6 8.9 12.0 12.1", True),
        ("rtx", "1.7.1.116", "5.2 7.0 8.7 9.0 10.0 10.3 11.0 13.0", False),
        ("tensorrt", "8.6.0", "7.0 7.5 8.0 8.6 8.7 8.9 9.0", True),
        ("tensorrt", "8.6.1", "3.5 10.0 10.3 12.0 12.1", False),
        ("tensorrt", "8.6.1", "5.2 6.1", None),
        ("tensorrt", "10.3.0", "7.0 7.5 8.7 9.0", True),
        ("tensorrt", "10.3.0", "6.1 10.0 12.0", False),
        ("tensorrt", "10.7.0", "7.5 8.7 9.0", True),
        ("tensorrt", "10.7.0", "7.0 10.0 12.0", False),
        ("tensorrt", "10.13.0.35", "7.5 8.0 8.6 8.9 9.0 10.0 12.0", True),
        ("tensorrt", "11.4.0", "7.0 6.1", False),
        ("tensorrt", "11.4.0", "8.7 10.3 11.0 12.1 13.0", None),
        ("tensorrt", "8.5.3", "6.1 9.0 12.0", None),
        ("tensorrt", "9.3.0", "6.1 9.0 12.0", None),
        ("tensorrt", "?", "9.0", None),
    ],
)
def test_which_gpus_a_version_supports(flavour: str, version: str, gpus: str, expected: bool | None) -> None:
    assert {gpu: supports(flavour, version, gpu) for gpu in gpus.split()} == dict.fromkeys(gpus.split(), expected)
    trt = TensorRT(types.SimpleNamespace(), flavour, version)
    assert {trt.supports(gpu) for gpu in gpus.split()} == {expected}


def test_versions_of_a_flavour_follow_each_other() -> None:
    for rows in GENERATIONS.values():
        assert all(one.until is not None and one.until <= after.since for one, after in pairwise(rows))
        assert rows[-1].until is None


def test_a_library_that_names_its_generations_is_believed() -> None:
    """A later TensorRT-RTX may know more than the table."""
    members: Any = types.SimpleNamespace(__members__={"CURRENT": 0, "SM86": 1, "SM90": 2})
    trt = TensorRT(types.SimpleNamespace(ComputeCapability=members), "rtx", "1.7.1")
    assert [trt.supports(gpu) for gpu in ("8.6", "9.0", "8.9")] == [True, True, False]


def test_the_table_says_what_the_real_rtx_names() -> None:
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip(why_missing()["rtx"])
    [row] = GENERATIONS["rtx"]
    assert [f"SM{gpu.replace('.', '')}" for gpu in row.listed] == trt.generations()
    assert untested_note("rtx", trt.version) == "", (
        f"the tests build with TensorRT-RTX {trt.version}: write it into BUILT"
    )


@pytest.mark.parametrize(
    ("gpu", "instead"),
    [
        ("9.0", "TensorRT"),
        ("8.7", "TensorRT"),
        ("10.3", "TensorRT 10.8 or later"),
        ("12.0", "TensorRT 10.8 or later"),
        ("7.0", "TensorRT 10.0 to 10.4"),
        ("6.1", "TensorRT 8.6"),
        ("3.5", ""),
    ],
)
def test_what_to_build_with_on_a_gpu(gpu: str, instead: str) -> None:
    assert supporting(gpu) == instead
    said = no_support("rtx", gpu)
    assert said.startswith("TensorRT-RTX does not support this GPU; ")
    assert said.endswith(f"build with {instead}" if instead else "use the ONNX file")


def test_what_was_never_shown_of_a_version_is_said() -> None:
    assert untested_note("rtx", "1.7.1.116") == ""
    assert untested_note("rtx", "1.8.0.1") == "unproven: a version that was not checked"
    assert "names checked against the bindings; never built here" in untested_note("tensorrt", "10.13.0.35")
    assert "strong typing" not in untested_note("tensorrt", "10.12.0.36")
    assert untested_note("tensorrt", "10.3.0").endswith(
        "never built here; its strong typing is complete from 10.12 only"
    )
    assert untested_note("tensorrt", "8.6.1").endswith("never built here")
    assert {untested_note("tensorrt", version) for version in ("8.5.3", "9.3", "10.17.0", "11.5.0", "12.0", "?")} == {
        untested_note("rtx", "1.8.0.1")
    }
    assert BUILT["tensorrt"] == ()  # nothing of this project has run on a GPU: whoever changes it has the results
