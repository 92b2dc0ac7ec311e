"""What the README holds that can be tried: its blocks, its commands as a shell would start them, its headings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from export.files import ROOT

PACKAGES = ("pipeline", "export", "benchmarks", "tests")
RECORDED = (
    "make",
    "python",
    "python3",
    "python3.10",
    "pip",
    "tar",
    "mkdir",
    ".venv/bin/python",
    ".venv-gpu/bin/python",
)
STARTS = (
    "make ",
    "RECIPE=",
    "GPU=",
    "python -m ",
    ".venv/bin/python ",
    ".venv-gpu/bin/python ",
    "pip install ",
    "mkdir ",
)

SHIM = """#!{python}
import json, os, sys
call = {{"name": {name!r}, "arguments": sys.argv[1:], "recipe": os.environ.get("RECIPE"),
         "gpu": os.environ.get("GPU"), "args": os.environ.get("ARGS")}}
with open({log!r}, "a") as file:
    print(json.dumps(call), file=file)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: behind the fence; "" for plain text.
        text: without the fences.
        line: of the README, of its first line.
    """

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that its first line names in a comment, relative to the repository's root."""
        named = re.match(r"# (\S+\.(?:yaml|py))\b", self.text)
        return named[1] if named else None


@dataclass(frozen=True)
class Call:
    """A program as a shell started it."""

    name: str
    arguments: tuple[str, ...]
    recipe: str | None
    gpu: str | None
    args: str | None


def text() -> str:
    """The README."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[Block]:
    """The fenced blocks of a language, in order."""
    whole = text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", whole, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], whole.count("\n", 0, m.start(2)) + 1) for m in found if m[1] == language]


def inline_commands() -> list[str]:
    """Commands in the running text and in tables, each once."""
    prose = re.sub(r"^```.*?^```$", "", text(), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return list(dict.fromkeys(span for span in spans if span.startswith(STARTS) and " " in span))


def headings() -> list[str]:
    """Of the second level, in order."""
    return re.findall(r"^## (.+)$", text(), re.MULTILINE)


def anchor(heading: str) -> str:
    """Where a link to a heading leads on the pages that show a README."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def make_checkout(folder: Path) -> Path:
    """A copy of the code, with the environment that runs the tests as ``.venv``, and the README's own recipes in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    for path in [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "README.md", *ROOT.glob("requirements*.txt")]:
        shutil.copy2(path, folder)
    for block in blocks("yaml"):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    bin_folder = folder / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    _script(bin_folder / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for stamp in (".installed", ".test-tools"):
        (folder / ".venv" / stamp).touch()
    return folder


def recorded(script: str, folder: Path) -> list[Call]:
    """What a shell starts for a script, without starting it: variables are put in, quotes are read, nothing runs."""
    shims, log = folder / "shims", folder / "calls.jsonl"
    for name in RECORDED:
        path = (folder if "/" in name else shims) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _script(path, SHIM.format(python=sys.executable, name=name, log=str(log)))
    log.unlink(missing_ok=True)
    environment = {"PATH": f"{shims}:/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    lines = log.read_text().splitlines() if log.is_file() else []
    calls = [json.loads(line) for line in lines]
    return [Call(**{**call, "arguments": tuple(call["arguments"])}) for call in calls]


def _script(path: Path, content: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(content)
    os.chmod(path, 0o755)
