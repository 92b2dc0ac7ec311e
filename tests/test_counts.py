"""No sentence says "1 images": a number stands before its noun by `count`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from export.files import ROOT

PATHS = sorted(path for package in ("pipeline", "export", "benchmarks") for path in (ROOT / package).rglob("*.py"))
# What is counted in our messages; a number before one of these is one at times.
NOUNS = (
    "bytes|calls|cells|characters|classes|copies|convolutions|digits|engines|entries|epochs|files|folders|GPUs|images|"
    "inputs|items|layers|lines|links|members|models|names|nodes|numbers|operations|outputs|photos|pictures|places|plans|"
    "rows|samples|shards|signatures|steps|subfolders|tensors|texts|units|values|warnings|weights"
)
BEHIND = re.compile(rf" (?!of )(?:[a-z]+[ -]){{0,2}}(?:{NOUNS})\b")
IN_TEXT = re.compile(rf"%[ds] (?:[a-z]+[ -]){{0,2}}(?:{NOUNS})\b|\b(?:GPU|image|file|class)\(s\)")
# Numbers that are never one: limits of ours, and what is checked to be larger before it is spoken of.
LARGE = re.compile(r"[A-Z][A-Z_0-9]+|.*\b(most|minimum|PUBLISHED_CLASSES|MOST_STEPS|limit)\b.*")
NEVER_ONE = {
    ("pipeline/models/classifier_check.py", "len(outputs)"),  # more than one
    ("pipeline/verification/verify.py", "classes"),  # a classifier has two
    ("pipeline/models/classifier.py", "classes"),
    ("export/from_keras/convert.py", "width"),
    ("pipeline/runners/cuda/bindings.py", "nbytes"),  # of buffers for images
    ("pipeline/runners/cuda/pycuda.py", "nbytes"),
}
NOT_A_NUMBER = {"%s images"}  # of a split, by its name
ONE = re.compile(rf"(?<!= )(?<![\w.,])1 (?:[a-z]+[ -]){{0,2}}(?:{NOUNS})\b")  # "k >= 1 classes" is a bound


def numbers_in(function: ast.AST) -> set[str]:
    """The names in a function that are whole numbers: arguments by their type, variables by what counts them."""
    arguments = (node for node in ast.walk(function) if isinstance(node, ast.arg) and node.annotation is not None)
    counted = (
        node.targets[0].id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) in ("len", "sum")
    )
    return {argument.arg for argument in arguments if ast.unparse(argument.annotation) in ("int", "int | None")} | {
        *counted
    }


def faults_in(text: str, path: str = "") -> Iterator[str]:
    """What stands before a noun in the plural without being asked whether it is one."""
    tree = ast.parse(text)
    numbers: dict[ast.AST, set[str]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            numbers |= dict.fromkeys(ast.walk(function), numbers_in(function))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for value, after in zip(node.values, node.values[1:]):
                if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                    continue
                said = ast.unparse(value.value)
                number = (not isinstance(value.value, ast.IfExp) and "len(" in said) or (
                    value.format_spec is not None and "," in ast.unparse(value.format_spec)
                )
                number = number or said in numbers.get(node, ())
                large = LARGE.fullmatch(said) or (path, said) in NEVER_ONE
                if number and not large and "count(" not in said and BEHIND.match(str(after.value)):
                    yield f"{path}:{node.lineno}: {{{said}}}{str(after.value)[:20]}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for found in IN_TEXT.finditer(node.value):
                if found[0] not in NOT_A_NUMBER and ("%d" in found[0] or "(s)" in found[0]):
                    yield f"{path}:{node.lineno}: {found[0]}"
            yield from (f"{path}:{node.lineno}: {found[0]}" for found in ONE.finditer(node.value))


@pytest.mark.parametrize("package", ["pipeline", "export", "benchmarks"])
def test_numbers_agree_with_their_nouns(package: str) -> None:
    found = []
    for path in PATHS:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(package):
            found += faults_in(path.read_text(encoding="utf-8"), name)
    assert found == [], 'say count(number, "image")'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('f"{len(paths)} images"', True),
        ('f"{len(paths):,} unreadable images, {x}"', True),
        ('f"{images:,} images"', True),
        ('"%d epochs" % 1', True),
        ('log.info("%s: %d held-out images", 1)', True),
        ('f"{n} GPU(s)"', True),
        ('def f(images: int):\n    return f"{images} test images"', True),
        ('def f(paths):\n    total = len(paths)\n    return f"{total} files"', True),
        ('def f(split: str):\n    return f"{split} images"', False),
        ('"only 1 images"', True),
        ('"only 11 images, at least 2.1 images, k >= 1 best classes"', False),
        ("f\"{count(len(paths), 'image')} is here\"", False),
        ('f"{MOST_BYTES:,} bytes"', False),
        ('f"{name} images"', False),
        ('f"{len(paths)} of them"', False),
    ],
)
def test_the_scan_finds_what_it_should(text: str, found: bool) -> None:
    assert bool(list(faults_in(text))) is found
