"""Command lines: read, corrected and advised. Standard library only.

Command lines to advise, as the person who reads them would type them. Standard library only.

The words of a command line, read; what was mistyped becomes a sentence with the line that was meant.

Standard library only: it is there before any package is.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

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


# Short names in the trade, which by their letters are closer to another thing, or to none.
ALIASES = {
    **dict.fromkeys(("trt", "nvinfer"), ("tensorrt",)),
    **dict.fromkeys(("ort", "onnx", "onnxrt"), ("onnxruntime",)),
    **dict.fromkeys(("tensorrt-rtx", "tensorrt_rtx", "trt-rtx", "trtrtx"), ("rtx",)),
    **dict.fromkeys(("half", "float16", "f16"), ("fp16",)),
    **dict.fromkeys(("single", "float", "float32", "f32"), ("fp32",)),
    **dict.fromkeys(("i8", "byte"), ("int8",)),
    **dict.fromkeys(("true", "yes", "on"), ("always",)),
    **dict.fromkeys(("false", "no", "off"), ("never", "none")),
}
_OPTIONS_WITH_VALUES = ("-c", "--config", "--set", "--artifacts", "-o", "--output")
# What argparse says, and the same as a sentence of ours; the first that fits counts.
_SENTENCES = (
    (r"(Expected .*)", r"\1"),
    (r"^the following arguments are required: (.*)$", r"Expected \1 behind the verb. Received: nothing."),
    (r"^argument (.*): expected (?:one|at least one) argument$", r"Expected a value after \1. Received: none."),
    (r"^argument (.*): invalid int value: (.*)$", r"Expected a whole number after \1. Received: \2."),
    (r"^argument (.*): invalid float value: (.*)$", r"Expected a number after \1. Received: \2."),
    (r"^argument (.*): invalid (\w+) value: (.*)$", r"Expected a \2 after \1. Received: \3."),
)
_RECIPE_WORDS = ("--recipe", "--recipes", "-r", "recipe")  # how else people call -c, make's RECIPE= among them


class UsageError(ProjectError):
    """A command line that cannot be read.

    Attributes:
        usage: how the verb is used, in argparse's form.
    """

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


def closest(value: object, known: Iterable[object], cutoff: float = 0.5) -> str | None:
    """The one of some names that was most likely meant, upper and lower case alike; None where none is close.

    A name that is short for one of them (``trt``) goes before one of alike letters (``rtx``).
    """
    names = {str(name).lower(): str(name) for name in known}
    word = str(value).lower()[:200]
    found = [name for name in ALIASES.get(word, ()) if name in names]
    if not found and not isinstance(value, bool):  # YAML's yes and no resemble nothing
        found = difflib.get_close_matches(word, names, 1, cutoff)
    return names[found[0]] if found else None


def meant(value: object, known: Iterable[object], cutoff: float = 0.5) -> str:
    """The same as a sentence that follows another one; empty where none is close."""
    name = closest(value, known, cutoff)
    return f" Did you mean {name!r}?" if name else ""


def recipe_file(text: str) -> Path:
    """The value of ``-c``."""
    if not text.strip():
        raise argparse.ArgumentTypeError("Expected a recipe's file or name after -c. Received: an empty word.")
    return Path(text)


def positive(text: str) -> int:
    """The value of an option that counts something."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"Expected a whole number from 1 on. Received: {text!r}. Correct it.")
    return int(text)


def override(text: str) -> str:
    """A ``--set section.key=value``, whole."""
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(
            f"Expected --set section.key=value, without spaces around the =. Received: --set {shlex.quote(text)}."
        )
    return text


class Parser(argparse.ArgumentParser):
    """A parser that raises ``UsageError`` with a sentence instead of ending the process."""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Read a command line, without the program's name.

        Raises:
            UsageError: it cannot be read, with what was expected, what was received and what to write.
        """
        self._refuse_options_before_the_verb(words)
        found, left = self.parse_known_args(words)
        if left:
            reader = self._verbs().get(getattr(found, "command", ""), self)
            reader.error(_left_over(left, words, reader._option_string_actions))
        return found

    def error(self, message: str) -> NoReturn:
        """What argparse found, in our form."""
        raise UsageError(_sentence(message, list(self._verbs())), self.format_usage())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Called for every value; those that have choices are compared with them."""
        if action.choices is None or value in action.choices:
            return
        known = list(action.choices)
        what = "a verb" if isinstance(action, argparse._SubParsersAction) else f"{action.option_strings[-1]}"
        self.error(f"Expected {what} of {', '.join(map(str, known))}. Received: {value}.{meant(value, known)}")

    def _verbs(self) -> dict[str, Parser]:
        actions = [one for one in self._actions if isinstance(one, argparse._SubParsersAction)]
        return dict(actions[0].choices) if actions else {}

    def _refuse_options_before_the_verb(self, words: Sequence[str]) -> None:
        verbs = self._verbs()
        if not verbs or not words or not words[0].startswith("-") or words[0] in self._option_string_actions:
            return
        found = [n for n, word in enumerate(words) if word in verbs and words[n - 1] not in _OPTIONS_WITH_VALUES]
        rest = [word for n, word in enumerate(words) if n not in found[:1]]
        line = shlex.join([words[found[0]] if found else "run", *rest])
        what = "the verb before its options" if found else f"a verb ({', '.join(verbs)}) before its options"
        self.error(f"Expected {what}. Received: {words[0]} first. Write: {self.prog} {line}")


def _left_over(left: Sequence[str], words: Sequence[str], options: Collection[str]) -> str:
    """Why a word that nothing takes is none, and what was meant."""
    word = left[0]
    before = words[words.index(word) - 1] if word in words[1:] else ""
    if before.endswith("=") or word.startswith("="):
        return f"Expected KEY=VALUE without spaces around the =. Received: {before} {word}. Write: {before}{word}"
    name, equals, value = word.partition("=")
    if name.lower() in _RECIPE_WORDS and "-c" in options:
        follows = left[1] if not equals and len(left) > 1 and not left[1].startswith("-") else ""
        given = shlex.quote(value or follows or "RECIPE")
        return f"Expected the recipe after -c. Received: {f'{word} {follows}'.strip()}. Write: -c {given}"
    if not word.startswith("-"):
        meaning = _bare_word(word, words, options)
        return f"Expected options and their values. Received: {word}, which belongs to none of them. {meaning}"
    if "." in name:
        value = f"={value}" if equals else "=VALUE"
        return f"Expected an option. Received: {word}. A key of the recipe is given by --set {name.lstrip('-')}{value}"
    return (
        f"Expected an option that this verb has. Received: {name}.{meant(name, options, cutoff=0.7)} "
        "A key of the recipe is given by --set section.key=value."
    )


def _bare_word(word: str, words: Sequence[str], options: Collection[str]) -> str:
    """What a word without an option was most likely meant as."""
    if "-c" not in options:
        return "Leave it out."
    name, equals, _ = word.partition("=")
    if equals and re.fullmatch(r"[a-z]\w*(\.\w+)*", name):
        return f"A key of the recipe is given by --set {shlex.quote(word)}"
    path = Path(word)
    is_recipe = path.suffix in (".yaml", ".yml") or Path(f"{word}.yaml").is_file()
    if not is_recipe and ("/" in word or path.exists()):
        at = next((n for n, one in enumerate(words[:-1]) if one in ("-c", "--config")), None)
        recipe = [] if at is None else ["-c", words[at + 1]]
        return f"To classify images, write: {pipeline_command('infer', *recipe, word)}"
    return f"If it is a recipe, write: -c {shlex.quote(word)}"


def _sentence(message: str, verbs: Sequence[str]) -> str:
    if "required: VERB" in message:
        return f"Expected a verb: {', '.join(verbs)}. Received: none. To do all there is: python -m pipeline run"
    said = (found.expand(ours) for theirs, ours in _SENTENCES if (found := re.search(theirs, message, re.DOTALL)))
    return next(said, f"Expected another command line. Received: {message}.")
