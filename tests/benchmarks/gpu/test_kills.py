"""A visit that is killed, wherever it is, leaves a whole record of what was known by then."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from export.files import ROOT
from pipeline.artifacts.gpu_evidence import GpuEvidence, read_gpu_evidence

WRITES = 240  # of a whole visit on the fakes there are more; each change puts a JSON file in its place, then a page
MOMENTS = sorted(random.Random(15).sample(range(2, WRITES), 8))
SECONDS = [0.15, 0.6]


def assert_whole(evidence: GpuEvidence, states: list[str]) -> None:
    """What the steps say, and what is there, go together."""
    assert evidence.state == "running"
    ended = [at for at, state in enumerate(states) if state in ("done", "skipped", "error")]
    assert ended == list(range(len(ended))), "steps end in their order"
    assert states.count("running") <= 1
    by_name = {step.name: step for step in evidence.steps}
    for name, step in by_name.items():
        if step.state in ("skipped", "error"):
            assert step.why
        if step.state == "done" and name.startswith("build "):
            assert name.removeprefix("build ") in evidence.engines
        if step.state == "done" and name.startswith("parity "):
            assert evidence.parity is not None
            assert name.removeprefix("parity ") in {hop.candidate for hop in evidence.parity.hops}
    checked = sum(step.state == "done" and name.startswith("check ") for name, step in by_name.items())
    assert checked <= len(evidence.checks) <= checked + 1
    assert len(evidence.targets) == 10


def test_it_is_killed_at_ten_moments(tmp_path: Path) -> None:
    moments = [*map(str, MOMENTS), *map(str, SECONDS)]
    command = [sys.executable, "-m", "tests.benchmarks.visits", str(tmp_path), *moments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"{moment} -9" for moment in moments], done.stderr
    seen = set()
    for index, moment in enumerate(moments):
        path = tmp_path / str(index) / "evidence.json"
        if "." in moment and not path.exists():  # it was killed before anything was known
            continue
        evidence = read_gpu_evidence(path)
        states = [step.state for step in evidence.steps]
        assert_whole(evidence, states)
        if int(float(moment)) > 2:
            assert path.with_suffix(".md").read_text().startswith("# model on Fake GPU")
        seen.add(tuple(states))
    assert len(seen) >= 8, "the moments differ"


@pytest.mark.slow
def test_it_is_killed_at_any_write(tmp_path: Path) -> None:
    moments = list(map(str, range(2, WRITES, 6)))
    command = [sys.executable, "-m", "tests.benchmarks.visits", str(tmp_path), *moments]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=600)
    for index in range(len(moments)):
        evidence = read_gpu_evidence(tmp_path / str(index) / "evidence.json")
        assert_whole(evidence, [step.state for step in evidence.steps])
