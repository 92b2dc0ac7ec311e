"""A process of the inference benchmark is watched from outside: its time, its memory, its answer, its failure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.inference.process import watch, without_folders
from export.errors import ProjectError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_time_and_memory_are_those_of_the_process() -> None:
    seen = watch(
        python("import time; a = bytearray(120 << 20); time.sleep(0.4); del a; time.sleep(0.4); print('{\"n\": 3}')")
    )
    assert seen.result == {"n": 3}
    assert 0.8 < seen.seconds < 8
    assert seen.peak_bytes is not None
    assert 120 << 20 < seen.peak_bytes < 200 << 20
    assert seen.looks[-1].bytes < 100 << 20 < max(look.bytes for look in seen.looks)
    assert [look.seconds for look in seen.looks] == sorted(look.seconds for look in seen.looks)


def test_a_file_is_seen_while_the_process_runs(tmp_path: Path) -> None:
    row, seen = tmp_path / "row", list[bool]()
    code = f"import time; time.sleep(0.3); open({str(row)!r}, 'w'); time.sleep(0.5); print('{{}}')"
    watch(python(code), at_each_look=lambda: seen.append(row.exists()))
    assert seen[0] is False
    assert seen[-1] is True
    assert sum(seen) > 3


def test_a_failure_says_what_the_process_said() -> None:
    with pytest.raises(ProjectError, match=r"exit status 4\.\n(?s:.*)the reason"):
        watch(python("import sys; sys.stderr.write('the reason'); sys.exit(4)"))
    assert watch(python("print('{}'); raise SystemExit(3)"), successes=(0, 3)).result == {}
    with pytest.raises(ProjectError, match=r"Expected a line of JSON .* 'no JSON\\n'"):
        watch(python("print('no JSON')"))


def test_evidence_names_no_folder() -> None:
    assert without_folders("see /home/a b/c.csv and /tmp/x-1/y.txt: 3/4") == "see a b/c.csv and y.txt: 3/4"
    assert without_folders("`-o /tmp/t/rows.csv` of m/n") == "`-o rows.csv` of m/n"
