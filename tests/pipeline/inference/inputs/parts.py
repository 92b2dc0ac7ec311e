"""Plans of what a test wrote, in its working directory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.inference.inputs.make_plan import make_plan
from pipeline.inference.inputs.plan import Plan
from pipeline.inference.items import Item


def plan(
    *inputs: str,
    lists: Sequence[str] = (),
    column: str | None = None,
    stdin: BinaryIO | None = None,
    file: str = ".run/plan",
    largest_file: int = 2**29,
) -> Plan:
    return make_plan(inputs, lists, Path(file), column=column, largest_file=largest_file, stdin=stdin)


def paths(*inputs: str, lists: Sequence[str] = (), column: str | None = None) -> list[str]:
    """The rows' names."""
    items = list(plan(*inputs, lists=lists, column=column).items())
    assert [item.row for item in items] == list(range(len(items)))
    return [item.path for item in items]


def only(plan: Plan) -> Item:
    (item,) = plan.items()
    return item


@contextmanager
def nested(root: str, depth: int) -> Iterator[str]:
    """The innermost of folders in folders, removed afterwards: what Python offers for that recurs."""
    working = os.getcwd()
    for name in (root, *"d" * depth):
        os.mkdir(name)
        os.chdir(name)
    os.chdir(working)
    yield "/".join((root, *"d" * depth))
    subprocess.run(["rm", "-rf", root], check=True)


def touch(*names: str) -> None:
    """Empty files, and folders where a name ends with a slash."""
    for name in names:
        path = Path(name)
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
