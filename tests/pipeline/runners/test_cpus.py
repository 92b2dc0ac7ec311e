"""How many CPUs a process may use, by what the kernel says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runners import cpus
from pipeline.runners.cpus import usable_cores, usable_cpus


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_affinity", lambda: {0, 1, 4, 5})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("max 100000\n", 4),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("800000 100000", 4),
        ("?", 4),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path: Path, text: str, number: int) -> None:
    folder = tmp_path / "fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text(text)
    assert usable_cpus(tmp_path) == number


@pytest.mark.parametrize(("quota", "number"), [("-1\n", 4), ("300000\n", 3)])
def test_an_older_kernel_says_it_elsewhere(tmp_path: Path, quota: str, number: int) -> None:
    folder = tmp_path / "fs/cgroup/cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cpus(tmp_path) == number


def test_two_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    for cpu, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert (usable_cpus(tmp_path), usable_cores(tmp_path)) == (4, 2)


def test_a_system_that_says_nothing_has_a_core_for_each_cpu(tmp_path: Path) -> None:
    assert (usable_cpus(tmp_path), usable_cores(tmp_path)) == (4, 4)
