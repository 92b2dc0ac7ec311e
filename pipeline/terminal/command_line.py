"""Parse command lines, correct mistyped ones, and compose the commands that messages advise.

Standard library only, because it is imported before any package is installed.
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
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from export.errors import ProjectError

ARTIFACTS = Path("artifacts")  # unless --artifacts says otherwise
COMMAND = "{command}"


def module_command(*words: str | Path, python: str | None = None) -> str:
    """Return ``python -m`` with words, quoted for a shell.

    Args:
        words: A module and its options.
        python: Python that runs it. Defaults to None: the present one, relative to the working directory.
    """
    if python is None:
        present = Path(sys.executable)
        python = str(present.relative_to(Path.cwd()) if present.is_relative_to(Path.cwd()) else present)
    return shlex.join([python, "-m", *map(str, words)])


def pipeline_command(verb: str, *options: str | Path, python: str | None = None) -> str:
    """Return ``python -m pipeline`` with a verb and its options, see `module_command`."""
    return module_command("pipeline", verb, *options, python=python)


def general_command(verb: str, *options: str) -> str:
    """Return a command of any recipe, which `Invocation.complete` makes that of one.

    Args:
        verb: Verb of ``python -m pipeline``.
        options: Options without values, such as "--force".
    """
    return " ".join(["python -m pipeline", verb, "-c RECIPE", *options])


_GENERAL = re.compile(r"python -m pipeline ([a-z]+) -c RECIPE\b((?: --[a-z]+\b)*)")


def unpack_command(archive: str | Path) -> str:
    """Return the command that unpacks an archive of `bundle` on a GPU machine, in an environment with TensorRT."""
    unpack = pipeline_command("unpack", Path(archive).name, python=".venv-gpu/bin/python")
    return f"make install-gpu && {unpack}"


class CommandNeededError(ProjectError):
    """An error that advises a command with this recipe, raised by code that does not know the command line.

    Args:
        message: Message with ``COMMAND`` in place of the command.
        verb: Verb of ``python -m pipeline``.
        overrides: ``section.key=value`` strings to add.
    """

    def __init__(self, message: str, verb: str, *overrides: str) -> None:
        super().__init__(message.replace(COMMAND, pipeline_command(verb, *_set_options(overrides), python="python")))
        self._message, self._verb, self._overrides = message, verb, overrides

    def complete(self, invocation: Invocation) -> None:
        """Complete the message with the command for this recipe."""
        extended = replace(invocation, overrides=(*invocation.overrides, *self._overrides))
        self.args = (self._message.replace(COMMAND, extended.command(self._verb)),)


@dataclass(frozen=True)
class Invocation:
    """The options that repeat a recipe on a command line.

    Attributes:
        recipe_path: File of the recipe.
        artifacts: Folder of all recipes' artifacts.
        overrides: ``section.key=value`` strings of ``--set``.
    """

    recipe_path: Path
    artifacts: Path = ARTIFACTS
    overrides: Sequence[str] = ()

    def command(self, verb: str, python: str | None = None, more: Sequence[str] = ()) -> str:
        """Return the command that runs a verb with this recipe, overrides and artifacts, quoted for a shell.

        Args:
            verb: Verb of ``python -m pipeline``.
            python: Python that runs it, quoted. Defaults to None: the present one, for advice on this machine.
            more: Further options. Defaults to none.
        """
        return pipeline_command(verb, "-c", self.recipe_path, *more, *self.options, python=python)

    def complete(self, text: str, python: str | None = None) -> str:
        """Return a text with each `general_command` as the one for this recipe.

        Args:
            text: Text of code that does not know the command line.
            python: Python that runs it, quoted. Defaults to None: the present one, for advice on this machine.
        """
        return _GENERAL.sub(lambda found: self.command(found[1], python, found[2].split()), text)

    @contextmanager
    def completing_errors(self) -> Iterator[None]:
        """Complete every ``CommandNeededError`` that is raised inside."""
        try:
            yield
        except CommandNeededError as error:
            error.complete(self)
            raise

    @property
    def options(self) -> list[str]:
        """Options that repeat the overrides and the artifacts folder, as words of a command line."""
        words = _set_options(self.overrides)
        return words if self.artifacts == ARTIFACTS else [*words, "--artifacts", str(self.artifacts)]


def _set_options(overrides: Iterable[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def invocation_of(args: argparse.Namespace) -> Invocation | None:
    """Return the invocation for the recipe of parsed arguments; None if they name no recipe."""
    recipe = getattr(args, "config", None)
    return Invocation(recipe, args.artifacts, args.overrides) if isinstance(recipe, Path) else None


# Common short names whose letters are closer to another name, or to none.
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
_OPTIONS_WITH_VALUES = ("-c", "--config", "--set", "--artifacts", "--log-file", "-o", "--output")
# Patterns of argparse's messages, and the messages in our form; the first match counts.
_SENTENCES = (
    (r"(Expected .*)", r"\1"),
    (r"^the following arguments are required: (.*)$", r"Expected \1 after the verb. Received: nothing."),
    (r"^argument (.*): expected (?:one|at least one) argument$", r"Expected a value after \1. Received: none."),
    (r"^argument (.*): invalid int value: (.*)$", r"Expected a whole number after \1. Received: \2."),
    (r"^argument (.*): invalid float value: (.*)$", r"Expected a number after \1. Received: \2."),
    (r"^argument (.*): invalid (\w+) value: (.*)$", r"Expected a \2 after \1. Received: \3."),
)
_RECIPE_WORDS = ("--recipe", "--recipes", "-r", "recipe")  # other names for -c, including make's RECIPE=


class UsageError(ProjectError):
    """A command line that cannot be parsed.

    Attributes:
        usage: Usage of the verb, as argparse formats it.
    """

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


def closest(value: object, known: Iterable[object], cutoff: float = 0.5) -> str | None:
    """Return the known name closest to a value, ignoring case; None if none is close.

    A name that the value abbreviates (``trt``) takes precedence over one with similar letters (``rtx``).
    """
    names = {str(name).lower(): str(name) for name in known}
    word = str(value).lower()[:200]
    matches = [name for name in ALIASES.get(word, ()) if name in names]
    if not matches and not isinstance(value, bool):  # YAML's yes and no are not misspelt names
        matches = difflib.get_close_matches(word, names, 1, cutoff)
    return names[matches[0]] if matches else None


def suggest_closest(value: object, known: Iterable[object], cutoff: float = 0.5) -> str:
    """Return the closest name as a question, " Did you mean 'x'?"; empty if none is close."""
    name = closest(value, known, cutoff)
    return f" Did you mean {name!r}?" if name else ""


def recipe_file(text: str) -> Path:
    """Parse the value of ``-c``."""
    if not text.strip():
        raise argparse.ArgumentTypeError("Expected a recipe's file or name after -c. Received: an empty word.")
    return Path(text)


def positive(text: str) -> int:
    """Parse the value of an option that takes a positive whole number."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"Expected a whole number from 1 on. Received: {text!r}. Correct it.")
    return int(text)


def override(text: str) -> str:
    """Check the form of a value of ``--set``, ``section.key=value``, and return it."""
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(
            f"Expected --set section.key=value, without spaces around the =. Received: --set {shlex.quote(text)}."
        )
    return text


class Parser(argparse.ArgumentParser):
    """A parser that raises ``UsageError`` instead of ending the process."""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line without the program's name.

        Raises:
            UsageError: It cannot be parsed; with what was expected, what was received and what to write.
        """
        self._refuse_options_before_the_verb(words)
        args, unknown = self.parse_known_args(words)
        if unknown:
            parser = self._verbs().get(getattr(args, "command", ""), self)
            parser.error(_left_over(unknown, words, parser._option_string_actions))
        return args

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message in our form."""
        raise UsageError(_sentence(message, list(self._verbs())), self.format_usage())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Compare a value with the choices, if there are any; argparse calls this for every value."""
        if action.choices is not None and value not in action.choices:
            known = list(action.choices)
            what = "a verb" if isinstance(action, argparse._SubParsersAction) else action.option_strings[-1]
            self.error(
                f"Expected {what} of {', '.join(map(str, known))}. Received: {value}.{suggest_closest(value, known)}"
            )

    def _verbs(self) -> dict[str, Parser]:
        subparsers = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return next((dict(action.choices) for action in subparsers), {})

    def _refuse_options_before_the_verb(self, words: Sequence[str]) -> None:
        verbs = self._verbs()
        if not verbs or not words or not words[0].startswith("-") or words[0] in self._option_string_actions:
            return
        places = [n for n, word in enumerate(words) if word in verbs and words[n - 1] not in _OPTIONS_WITH_VALUES]
        rest = [word for n, word in enumerate(words) if n not in places[:1]]
        line = shlex.join([words[places[0]] if places else "run", *rest])
        what = "the verb" if places else f"a verb ({', '.join(verbs)})"
        self.error(f"Expected {what} before its options. Received: {words[0]} first. Write: {self.prog} {line}")


def _left_over(unknown: Sequence[str], words: Sequence[str], options: Collection[str]) -> str:
    """Explain why the first unknown word is not accepted, and suggest what to write."""
    word = unknown[0]
    before = words[words.index(word) - 1] if word in words[1:] else ""
    if before.endswith("=") or word.startswith("="):
        return f"Expected KEY=VALUE without spaces around the =. Received: {before} {word}. Write: {before}{word}"
    name, equals, value = word.partition("=")
    if name.lower() in _RECIPE_WORDS and "-c" in options:
        follows = unknown[1] if not equals and len(unknown) > 1 and not unknown[1].startswith("-") else ""
        recipe = shlex.quote(value or follows or "RECIPE")
        return f"Expected the recipe after -c. Received: {f'{word} {follows}'.strip()}. Write: -c {recipe}"
    if not word.startswith("-"):
        advice = _bare_word(word, words, options)
        return f"Expected options and their values. Received: {word}, which belongs to none of them. {advice}"
    if "." in name:
        key = f"{name.lstrip('-')}={value if equals else 'VALUE'}"
        return f"Expected an option. Received: {word}. A key of the recipe is given by --set {key}"
    return (
        f"Expected an option that this verb has. Received: {name}.{suggest_closest(name, options, cutoff=0.7)} "
        "A key of the recipe is given by --set section.key=value."
    )


def _bare_word(word: str, words: Sequence[str], options: Collection[str]) -> str:
    """Suggest what to write for a word without an option."""
    if "-c" not in options:
        return "Leave it out."
    if re.match(r"[a-z]\w*(\.\w+)*=", word):
        return f"A key of the recipe is given by --set {shlex.quote(word)}"
    path = Path(word)
    is_recipe = path.suffix in (".yaml", ".yml") or Path(f"{word}.yaml").is_file()
    if not is_recipe and ("/" in word or path.exists()):
        recipes = (["-c", value] for option, value in pairwise(words) if option in ("-c", "--config"))
        return f"To classify images, write: {pipeline_command('infer', *next(recipes, []), word)}"
    return f"If it is a recipe, write: -c {shlex.quote(word)}"


def _sentence(message: str, verbs: Sequence[str]) -> str:
    if "required: VERB" in message:
        return f"Expected a verb: {', '.join(verbs)}. Received: none. To do all there is: python -m pipeline run"
    sentences = (match.expand(ours) for theirs, ours in _SENTENCES if (match := re.search(theirs, message, re.DOTALL)))
    return next(sentences, f"Expected another command line. Received: {message}.")
