"""What to do about a cause, in words that fit the file at fault. The standard library only, Python 3.10 syntax."""

from __future__ import annotations

from export.tensorrt.sidecar import REBUILD
from pipeline.terminal.command_line import general_command

AGAIN = "{again}"  # in a remedy: the beginning of a sentence that says what makes the file again
COMPARE_LAYERS = f"Compare the layers: {general_command('verify', '--layers')}."
CUT_OUT = f"cut it out: {general_command('verify', '--reduce')}"
OF_OTHERS = "Export the file again with the tool that made it"


def make_again(name: str, precision: str, own: bool) -> str:
    """Return what makes a file again, as the beginning of a sentence.

    Args:
        name: Of the file.
        precision: "fp32", "fp16" or "int8".
        own: Whether this project made it.
    """
    if not own:
        return OF_OTHERS
    if name.endswith(".plan"):
        return f"Build the engine again: {REBUILD}"
    if precision == "fp32":
        return f"Export the model again: {general_command('export', '--force')}"
    return f"Make the file again: {general_command('quantize', '--force')}, and then its engines: {REBUILD}"
