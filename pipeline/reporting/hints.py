"""The report's section on what a failed verdict points at: cause, evidence, place and remedy, the first hop first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.artifacts.diagnosis import Hint
from pipeline.reporting.headline import step_words
from pipeline.reporting.html import Section, section
from pipeline.terminal.command_line import Invocation

TITLE = "What to look at"


@dataclass(frozen=True)
class Shown:
    """A hint as the page shows it.

    Attributes:
        hint: the hint.
        cause: its cause as a title.
        hop: the comparison at fault, such as "Keras → model.onnx".
    """

    hint: Hint
    cause: str
    hop: str


def hints_sections(hints: Sequence[Hint], invocation: Invocation) -> list[Section]:
    """Make the section; none without a hint.

    Args:
        hints: of the verdict.
        invocation: how the command was called, for commands in advice.
    """
    if not hints:
        return []
    complete = [replace(hint, remedy=invocation.complete(hint.remedy, "python")) for hint in hints]
    shown = [Shown(hint, _title(hint), step_words(hint.reference, hint.run)) for hint in complete]
    return [section(TITLE, "hints.html.j2", hints=shown)]


def _title(hint: Hint) -> str:
    return "Cause not found" if hint.cause == "unknown" else hint.cause.capitalize()
