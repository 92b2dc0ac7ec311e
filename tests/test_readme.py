"""The README holds: its commands are ones, its snippets run, its tables say what the code does."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import subprocess
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.cli.verbs import build_parser
from pipeline.recipe.load import dump_yaml, load_recipe
from pipeline.recipe.locate import find_recipe
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Build, Recipe
from tests import key_tables, readme
from tests.conftest import Chain
from tests.fakes.engine import install, make_plan
from tests.readme import Block, Call

SHELL = readme.blocks("sh")
RECIPES = readme.blocks("yaml")
NO_RECIPE = ("doctor", "install", "install-gpu", "test", "test-gpu", "lint", "help")  # targets that read none


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readme.make_checkout(tmp_path_factory.mktemp("readme") / "checkout")


def line(block: Block) -> str:
    return f"line-{block.line}"


WHERE_ASKED = (".png", ".json", "-trt8", "sensitivity.csv", "layers/layers.json")  # endings; where layers are measured

# --- commands ---


@pytest.mark.parametrize("script", [block.text for block in SHELL] + readme.inline_commands())
def test_a_command_is_one_that_the_project_takes(script: str, checkout: Path) -> None:
    calls = readme.recorded(script, checkout)
    assert calls, "nothing was started"
    for call in calls:
        if call.name == "make":
            for made in made_by(call, checkout):
                check_python(made, checkout)
        elif "python" in call.name:
            check_python(list(call.arguments), checkout)


def made_by(call: Call, checkout: Path) -> list[list[str]]:
    """The Python commands that a make target would start, read off what make itself prints for it."""
    variables = {"RECIPE": call.recipe, "GPU": call.gpu, "ARGS": call.args}
    given = [f"{name}={value}" for name, value in variables.items() if value is not None]
    environment = dict(part.split("=", 1) for part in given) | {"PATH": "/usr/bin:/bin"}
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", *call.arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    lines = re.findall(r"(?:^|; )(\S+python -m (?:pipeline|bench)[^;|\n]*)", printed.stdout, re.MULTILINE)
    found = [shlex.split(one) for one in lines]
    asks = call.recipe is not None and call.arguments[0] not in NO_RECIPE
    assert found or not asks, f"make {call.arguments} starts nothing for recipe {call.recipe}"
    return [words[1:] for words in found]


def check_python(words: list[str], checkout: Path) -> None:
    """``python -m MODULE OPTIONS`` is refused by no parser, and the recipe that it names loads."""
    assert words[0] == "-m", words
    module, arguments = words[1], words[2:]
    if module in ("pip", "venv"):
        assert all((checkout / one).is_file() for one in arguments if one.endswith(".txt")), words
        return
    if not arguments and module == "pipeline":
        return  # the program's name, in a sentence
    parser = parser_of(module)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = parser.parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{module} {arguments}: {errors.getvalue()}")
    if getattr(parsed, "config", None) is not None:
        with contextlib.chdir(checkout):
            load_recipe(find_recipe(parsed.config, parsed.artifacts), parsed.overrides)


def parser_of(module: str) -> argparse.ArgumentParser:
    if module == "pipeline":
        return build_parser()
    started = {"benchmarks": "benchmarks.__main__", "benchmarks.gpu_evidence": "benchmarks.gpu.options"}
    parser: argparse.ArgumentParser = import_module(started.get(module, module)).build_parser()
    return parser


# --- recipes ---


@pytest.mark.parametrize("block", RECIPES, ids=line)
def test_a_recipe_is_read(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    data = "" if "data:" in block.text else "data: {path: photos}\n"  # a part of a recipe
    path.write_text(data + block.text, encoding="utf-8")
    load_recipe(path)


def test_each_choice_in_a_comment_of_a_recipe_is_one(tmp_path: Path) -> None:
    """Lines that a reader takes the # from: each alone gives a recipe that loads."""
    tried = 0
    for block in RECIPES:
        lines = block.text.splitlines()
        for index, one in enumerate(lines):
            if found := re.match(r"(\s+)# (\w+: .+)$", one):
                key = found[2].split(":")[0]
                kept = [other for other in lines if not re.match(rf"\s+{key}:", other)]
                at = kept.index(one)
                path = tmp_path / f"{block.line}-{index}.yaml"
                path.write_text("\n".join([*kept[:at], found[1] + found[2], *kept[at + 1 :]]), encoding="utf-8")
                load_recipe(path)
                tried += 1
    assert tried >= 4


@pytest.mark.parametrize(("section", "kind"), [("Building engines", Build), ("Running engines", RuntimeOptions)])
def test_a_table_of_keys_has_every_key_with_its_default(section: str, kind: type) -> None:
    part = readme.text().split(f"### {section}")[1].split("\n### ")[0]
    rows = dict(re.findall(r"^\| (`[^|]+?) \| ([^|]+?) \|", part, re.MULTILINE))
    told = {name: default for names, default in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert set(told) == {field.name for field in fields(kind)}
    plain: dict[str, Any] = yaml.safe_load(dump_yaml(Recipe(name="x")))[
        section.split()[0].lower().replace("building", "build").replace("running", "runtime")
    ]
    for name, default in told.items():
        if literal := re.fullmatch(r"`(.+)`", default):
            assert yaml.safe_load(literal[1]) == plain[name], name
        else:
            assert not plain[name], f"{name}: the table says {default}, the code {plain[name]}"


@pytest.mark.parametrize("page", key_tables.PAGES)
def test_tables_of_keys_are_those_of_the_fields(page: str) -> None:
    written = (readme.ROOT / page).read_text(encoding="utf-8")
    assert written == key_tables.with_tables(written), "write them again: make key-tables"


def test_the_page_of_keys_has_every_section_and_says_what_each_key_is() -> None:
    page = (readme.ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    sections = [field.name for field in fields(Recipe) if is_dataclass(getattr(Recipe("x"), field.name))]
    assert re.findall(r"^<!-- keys of (\w+) -->$", page, re.MULTILINE) == ["recipe", *sections]
    assert re.findall(r"^\| `.+\|  \|$", page, re.MULTILINE) == []


def test_a_table_of_keys_follows_its_fields() -> None:
    old = "before\n<!-- keys of export -->\nold\n<!-- end of keys -->\nafter\n"
    row = "| `top_k` | `0` | 0 (none) or more | best classes that the graph itself selects"
    new = key_tables.with_tables(old)
    assert new.startswith("before\n<!-- keys of export -->\n| key | default | takes | what |\n")
    assert row in new
    assert "old" not in new
    assert new.endswith("\n<!-- end of keys -->\nafter\n")


def test_the_table_of_recipes_has_every_recipe_but_the_one_that_makes_weights() -> None:
    part = readme.text().split("### Recipes")[1].split("\n\n`")[0]
    told = re.findall(r"^\| `([\w-]+)` \| .+? \| `(.+?)` \|$", part, re.MULTILINE)
    there = {path.stem for path in (readme.ROOT / "configs").glob("*.yaml")} - {"digits-backbone"}
    assert {name for name, _ in told} == there
    for name, command in told:
        assert command == "make run" if name == "digits" else f"RECIPE={name} " in command


# --- Python ---


def test_the_python_snippet_runs_as_printed(
    finished_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = readme.blocks("python")
    shown = "artifacts/digits/build/tensorrt/int8.plan"
    assert shown in snippet.text
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, grey in enumerate((40, 200, 90)):
        Image.fromarray(np.full((40, 30, 3), grey, np.uint8)).save(photos / f"{index}.jpg")
    install(monkeypatch).size = (32, 32)
    tensors = [
        ("images", "uint8", [-1, 32, 32, 3]),
        ("logits", "float32", [-1, 3]),
        ("probabilities", "float32", [-1, 3]),
    ]
    make_plan(tmp_path / "x.plan", tensors=[dict(zip(("name", "dtype", "shape"), one)) for one in tensors])
    monkeypatch.chdir(tmp_path)
    script = snippet.text.replace(shown, "x.plan").replace("artifacts/digits", finished_chain.root.as_posix())
    names: dict[str, Any] = {}
    exec(compile(script, "README.md", "exec"), names)
    assert (names["pixels"].shape, names["pixels"].dtype) == ((3, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(names["logits"][:, 0], [40, 200, 90], atol=2)


# --- the page itself ---


def test_every_heading_is_in_the_contents_and_every_link_leads_somewhere() -> None:
    whole = readme.text()
    headings = readme.headings()
    contents = whole.split("## ")[0]
    links = re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", contents)
    assert links == [(heading, readme.anchor(heading)) for heading in headings]
    everywhere = {readme.anchor(one) for one in re.findall(r"^#+ (.+)$", whole, re.MULTILINE)}
    assert {target for _, target in re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", whole)} <= everywhere
    for target in re.findall(r"\]\(([^)#]+)\)", whole):
        assert (readme.ROOT / target).exists(), target


def test_every_artifact_of_the_table_is_made(finished_chain: Chain) -> None:
    part = readme.text().split("## What comes out")[1].split("\n## ")[0]
    names = [name for row in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) >= 10
    made = {path.relative_to(finished_chain.root).as_posix() for path in finished_chain.root.rglob("*")}
    for name in names:
        if name in WHERE_ASKED:
            continue
        pattern = re.escape(name).replace(r"<flavour>/<precision>\[\-<variant>\]", r"\w+/\w+")
        assert any(re.search(rf"(^|/){pattern}$", one) for one in made), name


# --- the reader of the README itself ---


def test_what_a_shell_starts_is_recorded_with_what_make_reads(tmp_path: Path) -> None:
    calls = readme.recorded(
        "GPU=1 RECIPE=mine ARGS='--set a=b' make run\n.venv/bin/python -m pipeline doctor", tmp_path
    )
    assert calls == [
        readme.Call("make", ("run",), "mine", "1", "--set a=b"),
        readme.Call(".venv/bin/python", ("-m", "pipeline", "doctor"), None, None, None),
    ]


def test_commands_in_the_text_are_found_however_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["GPU=1 make run", "RECIPE=x make run", "make test", "python -m pipeline run", "mkdir x"]
    monkeypatch.setattr(
        readme, "text", lambda: " and ".join(f"`{line}`" for line in [*lines, "model.onnx", "make test"])
    )
    assert readme.inline_commands() == lines


def test_a_block_names_its_file() -> None:
    assert readme.Block("python", "# tools/x.py: what it is\n", 1).file == "tools/x.py"
    assert readme.Block("yaml", "# configs/mine.yaml\n", 1).file == "configs/mine.yaml"
    assert readme.Block("yaml", "data: {}  # x.yaml\n", 1).file is None
