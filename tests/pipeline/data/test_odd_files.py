"""Every odd file has the status that is promised, and no other file's."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from export.errors import ImageError, ImageStatus
from pipeline.data.decode import DecodeSpec
from tests.fakes.odd_files import OddFile, make_odd_files

SPEC = DecodeSpec((32, 32), "stretch")
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="pipes, sockets and links of POSIX"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's own, about what it finds in damaged files
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[OddFile]:
    return make_odd_files(tmp_path_factory.mktemp("odd"))


def status_of(source: Path | bytes) -> tuple[str, str]:
    try:
        decoded = SPEC.decode(source)
    except ImageError as error:
        return error.status, str(error)
    assert decoded.pixels.shape == (32, 32, 3)
    return "ok", decoded.damage


def test_each_has_the_promised_status(files: list[OddFile]) -> None:
    found = [(file.cause, file.status, *status_of(file.path)) for file in files]
    assert [row for row in found if row[1] != row[2]] == []
    assert all(bool(reason) == (status != "ok") and "\n" not in reason for _, _, status, reason in found)


def test_there_are_many_of_every_status(files: list[OddFile]) -> None:
    assert len({file.cause for file in files}) == len(files) >= 150
    assert set(Counter(file.status for file in files)) == {"ok", *get_args(ImageStatus)}
