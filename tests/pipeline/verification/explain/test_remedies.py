"""Advice fits the file at fault, and its commands are those of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.terminal.command_line import Invocation, general_command
from pipeline.verification.explain.remedies import COMPARE_LAYERS, make_again

HERE = Invocation(Path("my recipe.yaml"), Path("/data/art"), ["quantize.method=minmax"])
OPTIONS = "--set quantize.method=minmax --artifacts /data/art"


@pytest.mark.parametrize(
    ("name", "precision", "own", "verbs"),
    [
        ("export/model.onnx", "fp32", True, ["export"]),
        ("quantize/model.fp16.onnx", "fp16", True, ["quantize", "build"]),
        ("quantize/model.int8.onnx", "int8", True, ["quantize", "build"]),
        ("build/rtx/int8.plan", "int8", True, ["build"]),
        ("theirs.onnx", "int8", False, []),
    ],
)
def test_what_makes_a_file_again(name: str, precision: str, own: bool, verbs: list[str]) -> None:
    said = make_again(name, precision, own)
    assert [word for word in ("export", "quantize", "build", "verify") if general_command(word) in said] == verbs
    assert said.count("--force") == len(verbs)


def test_commands_are_completed_for_the_recipe() -> None:
    said = HERE.complete(make_again("quantize/model.int8.onnx", "int8", True) + "; look there.", "python")
    quantize, build = (
        f"python -m pipeline {verb} -c 'my recipe.yaml' --force {OPTIONS}" for verb in ("quantize", "build")
    )
    assert said == f"Make the file again: {quantize}, and then its engines: {build}; look there."
    layers = f"python -m pipeline verify -c 'my recipe.yaml' --layers {OPTIONS}"
    assert HERE.complete(COMPARE_LAYERS, "python") == f"Compare the layers: {layers}."
    assert HERE.complete("python -m pipeline doctor; -c RECIPE") == "python -m pipeline doctor; -c RECIPE"
