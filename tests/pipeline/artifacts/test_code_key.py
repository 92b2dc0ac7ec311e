from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.files import ROOT
from pipeline.artifacts.code_key import source_digest

SOURCE = """\"\"\"A module.\"\"\"

import os
from . import other

LIMIT = 3  # photos
\"\"\"What LIMIT is.\"\"\"


@cache
def draw(size: int = 4, *, title="a" "b", **more) -> str:
    \"\"\"Draw it.\"\"\"
    if size < LIMIT and title:
        raise ValueError(f"too small: {size!r} of {LIMIT:>{size}}")
    return f"{title}" + other.draw(size)[1:], {**more}


class Chart:
    \"\"\"A chart.\"\"\"

    async def show(self):
        \"\"\"Show it.\"\"\"
        return None
"""
OF_NO_EFFECT = {
    "a word in a docstring": ("A module.", "A module of ours."),
    "a docstring of a function": ("Draw it.", "Draw"),
    "a docstring of a class": ("A chart.", "One chart."),
    "a docstring of a method": ("Show it.", ""),
    "a docstring of a constant": ("What LIMIT is.", "How many."),
    "no docstring at all": ('    """Draw it."""\n', ""),
    "a comment": ("# photos", "# images"),
    "a new comment": ("LIMIT = 3", "# how many\nLIMIT = 3"),
    "blank lines": ("\n\n\n", "\n"),
    "other indentation": ("        raise", "            raise"),
    "brackets": ("return None", "return (None)"),
    "a line broken": ("size < LIMIT and title", "(\n        size < LIMIT\n        and title\n    )"),
    "other quotes": ('"too small: {size!r} of {LIMIT:>{size}}"', "'too small: {size!r} of {LIMIT:>{size}}'"),
    "texts joined": ('"a" "b"', "'ab'"),
    "an f-string in two": ("too small: {size!r}", 'too small" f": " "" f"{size!r}'),
    "a number written otherwise": ("= 4", "= 0x4"),
    "line endings": ("\n", "\r\n"),
}
OF_EFFECT = {
    "a constant": ("= 3", "= 4"),
    "a constant of another type": ("= 3", "= 3.0"),
    "text for a number": ("= 3", "= '3'"),
    "bytes for text": ('"a" "b"', "b'ab'"),
    "True for 1": ("size)[1:]", "size)[True:]"),
    "an operator": ("<", "<="),
    "and for or": ("and", "or"),
    "a default": ("= 4", "= 5"),
    "a default gone": (": int = 4", ": int"),
    "a decorator": ("@cache", "@lru_cache"),
    "a decorator gone": ("@cache\n", ""),
    "text of an f-string": ("too small", "too tiny"),
    "a conversion": ("!r", "!s"),
    "no conversion": ("!r", ""),
    "a format": (":>{size}", ":<{size}"),
    "a part of a slice": ("[1:]", "[:1]"),
    "the name of an argument": ("title", "name"),
    "an argument by place": (", *, ", ", "),
    "a module imported": ("import os", "import io"),
    "the level of an import": ("from . ", "from .. "),
    "a type": ("size: int", "size: float"),
    "no async": ("async def", "def"),
    "a value returned": ("return None", "return"),
    "a statement more": ("LIMIT = 3", "LIMIT = 3; LIMIT += 1"),
    "another order": ("import os\nfrom . import other", "from . import other\nimport os"),
    "an expression for a docstring": ('    """Draw it."""', "    print()"),
    "a dictionary unpacked": ("{**more}", "{more: 1}"),
}


def digest(folder: Path, source: str) -> str:
    (folder / "a.py").write_bytes(source.encode())
    return source_digest(folder / "a.py")


@pytest.mark.parametrize("change", OF_NO_EFFECT.values(), ids=OF_NO_EFFECT)
def test_what_has_no_effect_does_not_count(tmp_path: Path, change: tuple[str, str]) -> None:
    assert SOURCE.replace(*change) != SOURCE
    assert digest(tmp_path, SOURCE.replace(*change)) == digest(tmp_path, SOURCE)


@pytest.mark.parametrize("change", OF_EFFECT.values(), ids=OF_EFFECT)
def test_what_has_an_effect_counts(tmp_path: Path, change: tuple[str, str]) -> None:
    assert SOURCE.replace(*change) != SOURCE
    assert digest(tmp_path, SOURCE.replace(*change)) != digest(tmp_path, SOURCE)


def test_every_change_gives_its_own_digest(tmp_path: Path) -> None:
    digests = [digest(tmp_path, SOURCE.replace(*change)) for change in OF_EFFECT.values()]
    assert len(set(digests)) == len(digests)


def test_other_files_count_by_their_bytes_but_for_line_endings(tmp_path: Path) -> None:
    style = tmp_path / "report.css"
    style.write_bytes(b"a { color: red }\n/* one */\n")
    first = source_digest(style)
    style.write_bytes(b"a { color: red }\r\n/* one */\r\n")
    assert source_digest(style) == first
    style.write_bytes(b"a { color: red }\n/* two */\n")
    assert source_digest(style) != first


EVERYTHING = """
import sys
from pathlib import Path
from pipeline.artifacts.code_key import source_digest
files = [*sorted(Path("pipeline").rglob("*.py"))[::5], Path(sys.argv[1])]
print([source_digest(path) for path in files])
"""


def other_pythons() -> list[Path]:
    """Interpreters of other versions on this machine."""
    found = []
    for minor in (10, 11, 12, 13):
        name = f"python3.{minor}"
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))
        candidates = [Path(p) for p in (shutil.which(name), *installed) if p]
        works = [
            p for p in candidates if subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode == 0
        ]
        found += works[:1] if sys.version_info[1] != minor else []
    return found


def test_every_python_gives_the_same_digests(tmp_path: Path) -> None:
    formats = ("", ":", ":.2f", ":{e}.{f}g", "!s:>{n}")
    strings = "".join(f"x = f'{{a}}' '' 'b' f'{{c=}}' f'{{d{form}}}'\n" for form in formats)
    received = digest(tmp_path, SOURCE + strings)
    assert received == "2d83fa6ebb65084e143940c9dbfba28af9f903a7820f99e7b28061a45803a4a8"

    def digests(python: str | Path) -> str:
        return subprocess.run(
            [python, "-c", EVERYTHING, str(tmp_path / "a.py")],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    here = digests(sys.executable)
    for python in other_pythons():
        assert digests(python) == here, python
