"""Command lines to advise, as the person who reads them would type them. Standard library only."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from export.errors import ProjectError

ARTIFACTS = Path("artifacts")  # unless --artifacts says otherwise
COMMAND = "{command}"


def pipeline_command(*words: str | Path, python: str | None = None) -> str:
    """``python -m pipeline`` and words, safe to paste.

    Args:
        words: a verb and its options.
        python: that runs it. Defaults to None: this very one, as it is seen from where it runs.
    """
    if python is None:
        here = Path(sys.executable)
        python = str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
    return shlex.join(map(str, (python, "-m", "pipeline", *words)))


def unpack_command(archive: str | Path) -> str:
    """What unpacks an archive of `bundle` on a GPU machine, in an environment with TensorRT."""
    there = pipeline_command("unpack", Path(archive).name, python=".venv-gpu/bin/python")
    return f"make install-gpu && {there}"


class CommandNeededError(ProjectError):
    """An error that a command with this recipe mends, raised where nobody knows the command line.

    Args:
        message: with ``COMMAND`` where the command stands.
        verb: of ``python -m pipeline``.
        overrides: ``section.key=value`` strings to add.
    """

    def __init__(self, message: str, verb: str, *overrides: str) -> None:
        words = [word for override in overrides for word in ("--set", override)]
        super().__init__(message.replace(COMMAND, shlex.join(("python", "-m", "pipeline", verb, *words))))
        self._message, self._verb, self._overrides = message, verb, overrides

    def complete(self, invocation: Invocation) -> None:
        """Name the command as it has to be typed."""
        again = replace(invocation, overrides=(*invocation.overrides, *self._overrides))
        self.args = (self._message.replace(COMMAND, again.command(self._verb)),)


@dataclass(frozen=True)
class Invocation:
    """What repeats a recipe on a command line.

    Attributes:
        recipe_path: the recipe's file.
        artifacts: folder of all recipes' artifacts.
        overrides: the ``section.key=value`` strings that were laid over the file.
    """

    recipe_path: Path
    artifacts: Path = ARTIFACTS
    overrides: Sequence[str] = ()

    def command(self, verb: str, python: str | None = None, more: Sequence[str] = ()) -> str:
        """The command line that runs a verb with this recipe, overrides and artifacts; safe to paste.

        Args:
            verb: of ``python -m pipeline``.
            python: that runs it. Defaults to None: this very one, for advice on this machine.
            more: further options. Defaults to none.
        """
        return pipeline_command(verb, "-c", self.recipe_path, *more, *self.options, python=python)

    @contextmanager
    def completing_errors(self) -> Iterator[None]:
        """Name the commands in errors of what knows no command line."""
        try:
            yield
        except CommandNeededError as error:
            error.complete(self)
            raise

    @property
    def options(self) -> list[str]:
        """The options that repeat the overrides and the artifacts folder, as words of a command line."""
        words = [word for override in self.overrides for word in ("--set", override)]
        return words if self.artifacts == ARTIFACTS else [*words, "--artifacts", str(self.artifacts)]


def invocation_of(args: argparse.Namespace) -> Invocation | None:
    """What repeats the recipe of a command line that was read; None where that has none."""
    recipe = getattr(args, "config", None)
    return Invocation(recipe, args.artifacts, args.overrides) if isinstance(recipe, Path) else None
