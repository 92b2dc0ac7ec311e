"""A plan for a GPU that its TensorRT does not support is refused as such, not as one to build again the same way."""

import json
import shlex
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from export.errors import ProjectError
from export.tensorrt.compatibility import RefusedEngineError, UnsupportedGpuError, check_engine, trying_unsupported_gpus
from export.tensorrt.library import TensorRT
from pipeline.recipe.load import load_recipe, to_dict
from tests.fakes.engine import make_plan

RTX = {"flavour": "rtx", "tensorrt_version": "1.7.1", "compute_capability": None}
AMPERE_PLUS = {"compute_capability": "8.9", "options": {"hardware_compatibility": "ampere_plus"}}


def library(flavour: str, version: str, *generations: str) -> TensorRT:
    named: Any = types.SimpleNamespace(__members__=dict.fromkeys(generations))
    module = types.SimpleNamespace(ComputeCapability=named) if generations else types.SimpleNamespace()
    return TensorRT(module, flavour, version)


@pytest.mark.parametrize("here", ["9.0", "8.7", "10.0", "7.0"])
@pytest.mark.parametrize("version", ["1.7.1", "1.8.0"])
@pytest.mark.parametrize("targets", [[], ["8.6"]])
def test_rtx_on_a_gpu_that_it_does_not_know(tmp_path: Path, here: str, version: str, targets: list[str]) -> None:
    """Whatever else does not fit: it would not run there either if it were built again by this TensorRT."""
    plan = make_plan(tmp_path / "fp16.plan", **RTX, targets=targets)
    trt = library("rtx", version, "NONE", "CURRENT", "SM75", "SM86", "SM120")
    with pytest.raises(UnsupportedGpuError) as caught:
        check_engine(plan, trt, here)
    assert caught.value.reason.startswith("TensorRT-RTX does not support this GPU; build with TensorRT")
    said = str(caught.value)
    assert caught.value.reason in said
    assert f"Expected a GPU that rtx {version} supports: compute capability 7.5, 8.6, 12.0. Received: " in said
    assert f"Received: compute capability {here} here." in said
    assert caught.value.settings == {"flavour": "tensorrt", **({"targets": []} if targets else {})}
    assert "python -m pipeline build -c RECIPE --force --set 'build.flavour=\"tensorrt\"'" in said
    assert ("--set 'build.targets=[]'." in said) == bool(targets), "classic TensorRT refuses targets"


def test_a_gpu_that_no_tensorrt_supports_is_no_reason_to_build(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "fp16.plan", **RTX)
    with pytest.raises(UnsupportedGpuError, match="no TensorRT that is known does, use the ONNX file") as caught:
        check_engine(plan, library("rtx", "1.7.1"), "3.5")
    assert "pipeline build" not in str(caught.value)


@pytest.mark.parametrize(("version", "instead"), [("8.6.0", "10.8 or later"), ("10.7.0", "10.8 or later")])
def test_a_classic_version_older_than_the_gpu(tmp_path: Path, version: str, instead: str) -> None:
    plan = make_plan(tmp_path / "fp16.plan", tensorrt_version=version, compute_capability="8.9")
    with pytest.raises(UnsupportedGpuError, match=f"TensorRT does not support this GPU; build with TensorRT {instead}"):
        check_engine(plan, library("tensorrt", version), "12.0")


@pytest.mark.parametrize(
    ("changes", "here", "settings"),
    [
        ({**RTX, "targets": ["8.6"]}, "8.9", {"targets": ["8.6", "8.9"]}),
        (RTX, "7.5", {"targets": ["7.5"]}),  # the default targets leave Turing out
        (AMPERE_PLUS, "7.5", {"hardware_compatibility": "none"}),
        ({"compute_capability": "8.9"}, "8.6", {}),
    ],
)
def test_building_anew_is_advised_with_the_settings_that_make_a_difference(
    tmp_path: Path, changes: dict[str, Any], here: str, settings: dict[str, Any]
) -> None:
    plan = make_plan(tmp_path / "fp16.plan", **changes)
    flavour = changes.get("flavour", "tensorrt")
    trt = library(flavour, "1.7.1", "SM75", "SM86", "SM89") if flavour == "rtx" else library(flavour, "10.13.0")
    with pytest.raises(RefusedEngineError) as caught:
        check_engine(plan, trt, here)
    assert not isinstance(caught.value, UnsupportedGpuError)
    assert caught.value.settings == settings
    words = shlex.split(str(caught.value).rpartition("Rebuild it: ")[2].removesuffix("."))
    assert words[:7] == ["python", "-m", "pipeline", "build", "-c", "RECIPE", "--force"]
    assert [json.loads(word.partition("=")[2]) for word in words[8::2]] == list(settings.values())
    given = [word for flag, word in pairwise(words) if flag == "--set"]
    recipe = tmp_path / "toy.yaml"
    recipe.write_text("data: {path: images}\n")
    build = load_recipe(recipe, given).build  # it is taken as it is said
    assert {name: value for name, value in to_dict(build).items() if name in settings} == settings


def test_what_is_not_known_is_tried(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "fp16.plan", tensorrt_version="11.4.0", compute_capability="13.0")
    assert check_engine(plan, library("tensorrt", "11.4.0"), "13.0").precision == "fp16"


def test_the_library_can_be_asked_all_the_same(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "fp16.plan", **RTX)
    trt = library("rtx", "1.7.1", "SM86")
    with trying_unsupported_gpus():
        assert check_engine(plan, trt, "9.0").flavour == "rtx"
        with pytest.raises(ProjectError, match=r"Received: 7\.5 here"):  # what its own sidecar rules out stays refused
            check_engine(plan, trt, "7.5")
    with pytest.raises(UnsupportedGpuError):
        check_engine(plan, trt, "9.0")
