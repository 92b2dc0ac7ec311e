"""Plant faults into a recipe's finished artifacts, verify each, and print what was caught and what was named."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.faults.catalogue import FAULTS, plant
from benchmarks.faults.examine import Examiner
from benchmarks.faults.planted import NoSuchPartError
from benchmarks.faults.record import Row, Table, control_row, make_row, markdown, summary, table_lines
from benchmarks.faults.small_model import build_specimen
from benchmarks.faults.specimen import Specimen
from benchmarks.telemetry import commit, machine
from export.errors import ProjectError
from export.files import write_atomic
from export.records import to_json
from pipeline.artifacts.files import write_json
from pipeline.artifacts.output import check_output
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE
from pipeline.cli import options
from pipeline.data.dataset import Pixels
from pipeline.terminal.command_line import Parser, suggest_closest
from pipeline.terminal.console import progress_bar
from pipeline.workflow.context import Context

log = logging.getLogger("benchmarks.faults")

SMALL_MODEL = "small model"
CALIBRATION = 32  # images that give scales where an INT8 file is made again
FEWEST = 16  # test images
EXAMPLES = """Faults are planted one at a time into copies; the artifacts stay as they are. A fault whose part the model
lacks, such as an average pool with padding, is planted into a small model that is made for it. A fault that is not
caught, or at another hop, counts as a failed verdict; so does sound work that fails.

examples:
  python -m benchmarks.faults -c digits -o benchmarks/results/faults-digits.json
  python -m benchmarks.faults -c imagenet --only mean,scale,weights --images 32
  python -m benchmarks.faults -c digits --forms all             # every way to plant each of them
  python -m benchmarks.faults -c digits --forms drawn --seed 7  # a drawn way, layer and magnitude
"""


@dataclass(frozen=True)
class _Subject:
    """Artifacts to plant into, and what verifies them."""

    name: str
    specimen: Specimen
    examiner: Examiner

    def control(self) -> Row:
        """Verify them without a fault."""
        return control_row(self.name, self.examiner.examine(self.specimen, None))


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        parents=[options.recipe_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAMES", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
    parser.add_argument(
        "--forms",
        choices=("first", "drawn", "all"),
        default="first",
        help="the plainest way to plant each, one drawn, or all; default: first",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn: form, layer, magnitude; default: 0")
    parser.add_argument("--images", type=int, default=64, help="test images, at most; default: 64")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="JSON file to write, with a page (.md) beside it"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _plant_all)


def _plant_all(args: argparse.Namespace) -> dict[str, object]:
    context = options.make_context(args)
    names = _checked(args)
    if args.output is not None:
        check_output(args.output, "--output", "faults.json", (".json",))
    examiner = Examiner(context.recipe.verify.thresholds)
    recipe = _Subject(context.recipe.name, _open(context, args.images), examiner)
    random = np.random.default_rng(args.seed)
    wanted = [(name, form) for name in names for form in _forms(name, args.forms, random)]
    with tempfile.TemporaryDirectory() as folder, progress_bar(total=len(wanted), desc="faults", unit="fault") as bar:
        subjects = _Subjects(recipe, Path(folder))
        rows = [recipe.control()]
        for index, (name, form) in enumerate(wanted):
            rows += subjects.examine(name, form, (args.seed, index))
            bar.update()
    table = Table(tuple(rows), args.images, args.seed, machine(), commit())
    for line in table_lines(rows):
        log.info("%s", line)
    log.info("%s", summary(rows))
    if args.output is not None:
        write_json(args.output, to_json(table))
        write_atomic(args.output.with_suffix(".md"), markdown(table))
    failed = [row for row in rows if not row.as_it_should_be]
    return {
        "faults": len(table.faults),
        "caught": sum(row.caught for row in table.faults),
        "hops": sum(row.hop for row in table.faults),
        "causes": sum(row.cause for row in table.faults),
        "exit": options.VERDICT_FAIL if failed else options.DONE,
    }


def _checked(args: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in args.only.split(",")]
    for name in names:
        if name not in FAULTS:
            closest = suggest_closest(name, FAULTS)
            raise ProjectError(f"--only: expected names of {', '.join(FAULTS)}. Received: {name!r}.{closest}")
    if args.images < FEWEST:
        raise ProjectError(f"Expected --images of at least {FEWEST}. Received: {args.images}.")
    return names


def _open(context: Context, images: int) -> Specimen:
    """Return the recipe's artifacts, with calibration images of the recipe's data."""
    for name in (KERAS, CARD, *ONNX.values(), REFERENCE):
        if not (context.root / name).is_file():
            raise ProjectError(
                f"Expected finished artifacts. Received: no {name} in {context.root}. "
                f"Make them first: `{context.command('run')}`."
            )
    samples = context.images.splits["calibration"][:CALIBRATION]
    decoder = Pixels(context.card().decode, context.recipe.data.max_bad_images)
    pixels, _ = decoder.all(samples, "calibration images")
    return Specimen(context.root, pixels, images)


def _forms(name: str, which: str, random: np.random.Generator) -> list[str]:
    known = list(FAULTS[name].forms)
    return known if which == "all" else [str(random.choice(known))] if which == "drawn" else known[:1]


@dataclass
class _Subjects:
    """The recipe's artifacts, and those of the small model, which is built when it is first needed.

    Attributes:
        recipe: the recipe's.
        folder: for copies and the small model.
        small: the small model's.
    """

    recipe: _Subject
    folder: Path
    small: _Subject | None = None

    def examine(self, name: str, form: str, seed: tuple[int, int]) -> list[Row]:
        """Plant one fault and verify it; the rows begin with the control of a model that comes for the first time.

        A fault that neither model has a part for gives no row.
        """
        try:
            return [self._row(self.recipe, name, form, seed)]
        except NoSuchPartError as error:
            log.debug("%s, %s: %s", name, form, error)
        rows = []
        if self.small is None:
            self.small = _Subject(SMALL_MODEL, build_specimen(self.folder / "small"), Examiner())
            rows.append(self.small.control())
        try:
            return [*rows, self._row(self.small, name, form, seed)]
        except NoSuchPartError as error:
            log.info("%s, %s: not planted: %s", name, form, error)
            return rows

    def _row(self, subject: _Subject, name: str, form: str, seed: tuple[int, int]) -> Row:
        with tempfile.TemporaryDirectory() as copy:
            specimen = subject.specimen.copy(Path(copy))
            planted = plant(name, specimen, np.random.default_rng(seed), form)
            found = subject.examiner.examine(specimen, planted)
        row = make_row(name, FAULTS[name].title, form, subject.name, planted, found)
        # What a record holds names no folder of this machine.
        return replace(row, said=row.said.replace(f"{specimen.folder}/", "").replace(sys.executable, "python"))


if __name__ == "__main__":
    sys.exit(main())
