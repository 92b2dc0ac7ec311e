"""docs/parity.md: its commands and its example run, and its numbers are those of the code."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from export.files import ROOT
from pipeline.artifacts.image_results import NEAR_TIE
from pipeline.artifacts.paths import KERAS, ONNX, PARITY
from pipeline.cli.verify_options import EXAMPLES
from pipeline.verification import ParityError
from pipeline.verification.checks.consistency import COPIES, IMAGES, SIZES
from pipeline.verification.checks.consistency import LEAST_DB as CONSISTENT_DB
from pipeline.verification.layers.compare import THRESHOLDS_DB
from pipeline.verification.layers.half import IMAGES as HALF_IMAGES
from pipeline.verification.outside.baseline import LEAST_DB
from pipeline.verification.parity import INT8_BACKENDS_DB
from tests.conftest import Chain, make_colour_images
from tests.own_export import theirs

PAGE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
SENTENCES = " ".join(PAGE.split())
VERIFY = ".venv/bin/python -m pipeline verify -c digits "
COMMANDS = re.findall(rf"^{re.escape(VERIFY)}.*$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def place(finished_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with every file that the page names."""
    folder = tmp_path_factory.mktemp("parity-page")
    make_colour_images(folder / "photos", count=4, seed=5)
    source = finished_chain.root / ONNX["fp32"]
    for name in ("theirs.onnx", "a.onnx"):
        theirs(source, folder / name)
    shutil.copy(source, folder / "b.onnx")
    shutil.copy(source, folder / "model.onnx")
    shutil.copy(finished_chain.root / KERAS, folder / "model.keras")
    (folder / "release").mkdir()
    shutil.copy(finished_chain.root / PARITY, folder / "release" / "parity.json")
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs(line: str, place: Path, finished_chain: Chain) -> None:
    options = shlex.split(line.removeprefix(VERIFY))
    if {"--layers", "--reduce"} & set(options):  # what they find has tests of its own, which take their time once
        options.append("--explain")
    with chdir(place):
        assert finished_chain.run("verify", *options) == 0


def test_the_commands_of_the_page_are_all_there() -> None:
    assert len(COMMANDS) == PAGE.count("-m pipeline") == 6
    for option in ("--onnx", "--images", "--junit", "--baseline", "--precision", "--layers", "--reduce"):
        assert f"`{option}`" in PAGE or f"[`{option}`]" in PAGE
        assert option in EXAMPLES or option in ("--precision", "--reduce")


def test_the_example_passes_and_fails_with_the_sentence_of_the_page(place: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Callable[[], None]] = {}
    exec(code, names)
    with chdir(place):
        names["test_the_export_answers_like_the_model"]()
        theirs(Path("b.onnx"), Path("model.onnx"), factor=3.0)
        with pytest.raises(ParityError, match=r"^Expected model.onnx \(fp32\) to answer like model.keras. Received: "):
            names["test_the_export_answers_like_the_model"]()


def test_numbers_are_those_of_the_code() -> None:
    assert f"The first {IMAGES} test images" in SENTENCES
    assert f"as {COPIES} copies of one image" in SENTENCES
    assert f"in batches of {', '.join(map(str, SIZES[:-1]))} and {SIZES[-1]}" in SENTENCES
    assert f"in FP16 by {CONSISTENT_DB['fp16']:.0f} dB, in INT8 by {CONSISTENT_DB['int8']:.0f} dB" in SENTENCES
    assert f"lower by more than {LEAST_DB} dB" in SENTENCES
    least = {precision: f"{db:.0f}" for precision, db in THRESHOLDS_DB.items()}
    assert f"below {least['fp32']} dB in FP32, {least['fp16']} in FP16 or {least['int8']} in INT8 is named" in SENTENCES
    assert f"is asked for {INT8_BACKENDS_DB:.0f} dB at most" in SENTENCES
    assert f"less than {100 * NEAR_TIE:.0f} points apart" in SENTENCES
    assert f"So {HALF_IMAGES} images go through true FP16 arithmetic" in SENTENCES


def test_links_lead_to_sections() -> None:
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGE, re.M)
    }
    links = re.findall(r"\]\(#(.+?)\)", PAGE)
    assert len(links) > 8
    assert set(links) <= titles


def test_every_argument_has_a_row() -> None:
    from inspect import signature

    from pipeline.verification import assert_parity

    rows = re.findall(r"^\| (`.+?`) \|", PAGE.partition("## In your own tests")[2], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert named == list(signature(assert_parity).parameters)[3:]
