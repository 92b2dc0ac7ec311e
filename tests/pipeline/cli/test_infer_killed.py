"""The real command, ended at random moments and started again: the file is that of an undisturbed run, to the byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from export.files import ROOT
from tests.conftest import Chain

IMAGES = 6000  # links to those of the chain: a second or more of work
MOMENTS = 50
ENDINGS = ("csv", "jsonl", "parquet")


@pytest.fixture
def photos(finished_chain: Chain, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    sources = sorted(finished_chain.images.rglob("*.png"))
    for number in range(IMAGES):
        os.link(sources[number % len(sources)], folder / f"{number:05}.png")
    (folder / "00007.png").unlink()
    (folder / "00007.png").write_bytes(b"no image")
    return folder


def command(chain: Chain, photos: Path, output: Path) -> list[str]:
    options = ["-o", str(output), "--shard-rows", "700", "--quiet"]
    features = ["--embeddings", str(output.with_suffix(".features.parquet"))] if output.suffix == ".parquet" else []
    words = [sys.executable, "-m", "pipeline", *chain.arguments("infer", str(photos), *options, *features)]
    return words


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.timeout(1800)
def test_fifty_random_moments(finished_chain: Chain, photos: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    for ending in ENDINGS:
        done = subprocess.run(
            command(finished_chain, photos, tmp_path / f"undisturbed.{ending}"), cwd=ROOT, check=False
        )
        assert done.returncode == 3  # one is no image
    longest = (time.perf_counter() - start) / len(ENDINGS)
    moments, ended, finished = random.Random(1), Counter[str](), Counter[str]()
    while sum(ended.values()) < MOMENTS or not all(finished[ending] for ending in ENDINGS):
        ending = ENDINGS[sum(finished.values()) % len(ENDINGS)]
        output = tmp_path / f"out.{ending}"
        process = subprocess.Popen(command(finished_chain, photos, output), cwd=ROOT, stderr=subprocess.DEVNULL)
        with process:
            try:
                wait = moments.uniform(0, longest) if sum(ended.values()) < MOMENTS else None
                status = process.wait(wait)
            except subprocess.TimeoutExpired:
                way = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                process.send_signal(way)
                process.wait()
                ended[way.name] += 1
                continue
        assert status == 3
        for suffix in (ending, *(["features.parquet"] if ending == "parquet" else [])):
            undisturbed = tmp_path / f"undisturbed.{suffix}"
            assert output.with_suffix(f".{suffix}").read_bytes() == undisturbed.read_bytes()
            output.with_suffix(f".{suffix}").unlink()
        assert not list(tmp_path.glob("out.*")), "the run's folder is gone"
        finished[ending] += 1
    print(f"ended {dict(ended)}, finished {dict(finished)}")
