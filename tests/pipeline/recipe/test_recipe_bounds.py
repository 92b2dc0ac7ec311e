"""Recipes and --set out of all proportion are refused by name, in a blink and without filling the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.errors import RecipeError
from pipeline.recipe.load import load_recipe
from pipeline.recipe.messages import DEEPEST, MOST_BYTES, MOST_VALUES
from tests.bounded import attempts

LAUGHTER = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
LADDER = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000))
MANY, DEEP = f"more than {MOST_VALUES:,} keys and values", f"nested more than {DEEPEST} deep"
TEXTS = {  # what is in the file or behind --set data.salt=, and what the message says
    "laughter": (LAUGHTER, MANY),
    "merged": ("a: &a {x: 1}\n" + "".join(f"a{i}: {{<<: [{'*a,' * 9}]}}\n" for i in range(9)), "YAML"),
    "brackets": ("[" * 100_000, DEEP),
    "braces": ("{a: " * 50_000, DEEP),
    "dashes": ("- " * 100_000, DEEP),
    "ladder": (LADDER, DEEP),
    "keys": ("".join(f"k{i}: 1\n" for i in range(20_000)), MANY),
    "values": (f"a: [{'1,' * 100_000}]", MANY),
    "ring": ("a: &a [*a]", "an alias inside of what it stands for"),
    "ring of keys": ("a: &a {b: *a}", "an alias inside of what it stands for"),
    "digits": ("a: " + "1" * 200_000, "a number of 200,000 characters"),
    "sixties": ("a: " + "1:" * 100_000 + "1", "a number of 200,001 characters"),
    "hexadecimal": ("a: !!int '0x" + "f" * 200_000 + "'", "a number of 200,002 characters"),
    "comments": ("#" * (MOST_BYTES + 1), f"where at most {MOST_BYTES:,} are read"),
}


def test_texts_that_are_bombs(tmp_path: Path) -> None:
    sound = tmp_path / "sound.yaml"
    sound.write_text("data: {source: digits}\n")
    names, calls = [], []
    for name, (text, found) in TEXTS.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        names += [(name, f"Expected YAML in {path}", found)]
        calls += [("pipeline.recipe.load:load_recipe", path, [])]
        names += [(name, "--set data.salt: expected a YAML value", found)]
        calls += [("pipeline.recipe.load:load_recipe", sound, [["data.salt=" + text]])]
    for (name, start, found), attempt in zip(names, attempts(calls)):
        assert attempt.error == "RecipeError", (name, attempt)
        assert attempt.message.startswith(start), name
        assert found in attempt.message, name
        assert attempt.seconds < 5, name  # each takes a second at most on a quiet machine
        assert attempt.bytes_read < 2 * MOST_BYTES, name
        assert len(attempt.message) < 1000, name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("".join(f"k{i}: 1\n" for i in range(4_000)), "Unknown key 'k0'"),
        ("train: {seed: 1e999999}", "train.seed: expected a whole number"),
        ("train: {head: {learning_rate: 1e999999}}", "train.head.learning_rate: expected a finite number"),
        (f"name: {'x' * 50_000}", "name: expected up to 100 letters.*50,002 characters"),
        (f"? {'x' * 50_000}\n: 1", "Unknown key 'xxx.*50,002 characters"),
        (f"data: {{path: {'x' * 300}}}", r"data\.path: expected a path\. Received: one of 300 characters"),
        ("data: {path: ~nobody-of-this-name/x}", r"data\.path: expected a path.*home"),
        ('data: {path: "a\\0b"}', "a character that neither a file name"),
        ('description: "\\ud800"', "a character that neither a file name"),
        ("a: !!int ''", "a tag such as !!int on what is none"),
        ("a: !!bool x", "a tag such as !!int on what is none"),
        ("a: !!timestamp x", "a tag such as !!int on what is none"),
        (f"data: {{source: digits, label_pattern: '{'(' * 50_000}'}}", "label_pattern: expected a regular"),
        ("data: {source: digits, label_pattern: 'a{99999999999}(b)'}", "label_pattern: expected a regular"),
        ("data: {source: digits}\nmodel: {dense: [1000000000]}", r"model\.dense: expected up to 16 sizes"),
        (f"data: {{source: digits}}\nmodel: {{dense: [{'8,' * 20}]}}", r"model\.dense: expected up to 16 sizes"),
        ("data: {source: digits}\ntrain: {batch_size: 1000000000}", r"train\.batch_size: expected 1 to 65,536"),
    ],
)
def test_values_out_of_proportion(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=f"(?s){found}") as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", ["a." * 100_000 + "b", "x" * 100_000])
def test_keys_of_overrides_out_of_proportion(tmp_path: Path, key: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data: {source: digits}")
    with pytest.raises(RecipeError, match=r"Expected --set section\.key=value") as caught:
        load_recipe(path, [f"{key}=1"])
    assert len(str(caught.value)) < 1000


def test_aliases_that_a_person_writes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "data: {source: digits}\nbuild: {variants: {a: &one {min: 1, opt: 1, max: 1}, b: *one}}\n"
        f"model: {{classes: [{', '.join(f'class {i}' for i in range(1000))}]}}\n"
    )
    recipe = load_recipe(path)
    assert recipe.build.variants["a"] == recipe.build.variants["b"]
    assert len(recipe.model.classes) == 1000
