"""Targets whose work is done by make itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.readme import make_checkout


def test_clean_takes_what_can_be_made_again_of_one_recipe(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    for name in ("digits", "mine"):
        for stage in ("train", "export", "quantize", "build", "verify", "benchmark", "infer", "report"):
            (checkout / "artifacts" / name / stage).mkdir(parents=True)
    done = subprocess.run(["make", "clean", "RECIPE=configs/mine.yaml"], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kept: artifacts/mine/train, other recipes" in done.stdout
    assert [path.name for path in (checkout / "artifacts/mine").iterdir()] == ["train"]
    assert len(list((checkout / "artifacts/digits").iterdir())) == 8
