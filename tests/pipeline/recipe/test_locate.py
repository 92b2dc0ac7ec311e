"""Recipes by name, names that are taken, and paths that were written as seen from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from export.errors import RecipeError
from export.files import ROOT
from pipeline.cli.commands import main
from pipeline.recipe.load import PATH_KEYS, load_recipe
from pipeline.recipe.locate import find_recipe, refuse_name_in_use, suggest_path
from tests.conftest import Chain

DIGITS = ROOT / "configs" / "digits.yaml"
ARTIFACTS = Path("artifacts")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with recipes in configs/."""
    (tmp_path / "configs").mkdir()
    for name in ("digits", "flowers"):
        (tmp_path / "configs" / f"{name}.yaml").write_text("data: {source: digits}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_path_that_is_none_is_answered_in_one_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("~nobody-of-that-name/x", "''"):
        (place / "mine.yaml").write_text(f"data: {{path: {value}}}\n")
        assert main(["config", "-c", "mine"]) == 2
        assert capsys.readouterr().err.startswith("error: data.path: expected a path. Received: ")


# --- by name ---


@pytest.mark.parametrize("given", ["digits", "digits.yaml", "configs/digits", "configs/digits.yaml"])
def test_a_recipe_is_known_by_its_name(place: Path, given: str) -> None:
    assert find_recipe(Path(given), ARTIFACTS) == Path("configs/digits.yaml")
    assert main(["config", "-c", given, "--json"]) == 0


def test_a_file_of_that_name_goes_first(place: Path) -> None:
    (place / "digits").mkdir()
    assert find_recipe(Path("digits"), ARTIFACTS) == Path("configs/digits.yaml"), "a folder is no recipe"
    (place / "digits.yaml").write_text("data: {source: digits}\n")
    assert find_recipe(Path("digits"), ARTIFACTS) == Path("digits.yaml")
    (place / "mine").write_text("data: {source: digits}\n")
    assert find_recipe(Path("mine"), ARTIFACTS) == Path("mine")
    assert find_recipe(place / "configs" / "flowers", ARTIFACTS) == place / "configs" / "flowers.yaml"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nosuch", "nosuch, which does not exist. Recipes in configs: digits, flowers."),
        ("Flower", "Did you mean flowers?"),
        ("configs/flower.yaml", "Did you mean configs/flowers.yaml?"),
        ("configs", "Received: configs, a folder. Recipes in configs: digits, flowers."),
        ("nowhere/x.yaml", "nowhere/x.yaml, which does not exist."),
    ],
)
def test_a_recipe_that_is_none_names_those_that_are(place: Path, given: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(Path(given), ARTIFACTS)
    assert said in str(caught.value)
    assert main(["config", "-c", given]) == 2


@pytest.mark.parametrize("given", ["digits", "configs/digits.yaml"])
def test_from_another_folder_the_root_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="commands run from the repository's root") as caught:
        find_recipe(Path(given), ARTIFACTS)
    assert f"(cd {ROOT})" in str(caught.value)


def test_an_unpacked_recipe_is_known_by_its_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last one that is looked for; and only names are looked for there."""
    for name in ("mine", "digits"):
        (place / "artifacts" / name).mkdir(parents=True)
        (place / "artifacts" / name / "recipe.yaml").write_text(f"name: {name}\ndata: {{source: digits}}\n")
    assert find_recipe(Path("mine"), ARTIFACTS) == Path("artifacts/mine/recipe.yaml")
    assert find_recipe(Path("digits"), ARTIFACTS) == Path("configs/digits.yaml")
    assert main(["run", "-c", "mine", "--explain"]) == 0
    assert "recipe mine (artifacts/mine/recipe.yaml)" in capsys.readouterr().err
    (place / "artifacts").rename(place / "elsewhere")
    assert main(["config", "-c", "mine"]) == 2
    assert main(["config", "-c", "mine", "--artifacts", "elsewhere"]) == 0
    (place / "recipe.yaml").write_text("data: {source: digits}\n")
    for given in ("..", "configs/mine"):
        with pytest.raises(RecipeError):
            find_recipe(Path(given), Path("elsewhere"))


def test_make_takes_the_name_of_a_recipe_or_its_path() -> None:
    text = (ROOT / "Makefile").read_text()
    assert 'OPTIONS := -c "$(RECIPE)" $(filter-out $(OF_VERIFY),$(ARGS))' in text


# --- names that are taken ---


def test_a_copy_that_kept_the_name_would_replace_results(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = place / "configs" / "mine.yaml"
    copy.write_text("name: digits\ndata: {source: digits}\n")
    assert main(["config", "-c", "mine"]) == 2
    said = capsys.readouterr().err
    assert "name: expected another than that of configs/digits.yaml" in said
    assert "Received: name: digits in configs/mine.yaml. Leave that line out" in said
    assert "--set name=mine" in said
    assert main(["config", "-c", "mine", "--set", "name=mine"]) == 0
    assert main(["config", "-c", "mine", "--set", "name=digits"]) == 0, "who says it means it"
    copy.write_text("data: {source: digits}\n")
    assert main(["config", "-c", "mine", "--json"]) == 0


def test_a_name_that_nobody_else_has_is_fine(place: Path) -> None:
    def check(path: Path) -> None:
        refuse_name_in_use(load_recipe(path), path, Path("artifacts"), [])

    other = place / "configs" / "mine.yaml"
    other.write_text("name: birds\ndata: {source: digits}\n")
    check(other)
    (place / "configs" / "birds.yaml").write_text("name: owls\ndata: {source: digits}\n")
    check(other)
    unpacked = place / "artifacts" / "digits" / "recipe.yaml"
    unpacked.parent.mkdir(parents=True)
    unpacked.write_text("name: digits\ndata: {source: digits}\n")
    check(unpacked)
    check(place / "configs" / "digits.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_copy_of_a_recipe_has_a_name_of_its_own(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    shutil.copy(path, copy)
    assert load_recipe(copy).name == "mine"


# --- paths that were written as seen from elsewhere ---


def nested(key: str, value: str) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}  # type: ignore[assignment]
    return value  # type: ignore[return-value]


@pytest.mark.parametrize("key", PATH_KEYS)
def test_every_path_is_looked_for_in_the_other_place(place: Path, key: str) -> None:
    recipe = place / "configs" / "mine.yaml"
    recipe.write_text(yaml.safe_dump(nested(key, "my file")))
    missing = f"Expected a file. Received: {place}/configs/my file, which does not exist."
    assert suggest_path(missing, recipe, []) == ""
    (place / "my file").touch()
    section, _, name = key.rpartition(".")
    assert suggest_path(missing, recipe, []).endswith(f"Write in {recipe}, below {section}: {name}: ../my file")
    assert suggest_path("Received: another file", recipe, []) == ""

    (place / "configs" / "its file").touch()
    override = [f"{key}=its file"]
    missing = f"Received: {place}/its file, which does not exist."
    assert suggest_path(missing, recipe, override).endswith(f"Write: --set '{key}=configs/its file'")
    assert suggest_path(missing, recipe, [*override, f"{key}=null"]) == "", "the last one counts"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "my/photos"),
        ("model.path", "my/colleague.h5"),
        ("model.weights", "my/weights.h5"),
        ("model.preprocessing", {"mean": "my/mean.npy"}),
        ("model.classes", "my/names.txt"),
        ("data.classes", "my/names.txt"),
    ],
)
def test_the_error_gives_the_line_that_works(
    finished_chain: Chain,
    place: Path,
    key: str,
    value: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place / "my").mkdir()
    for name in ("colleague.h5", "weights.h5", "names.txt"):
        (place / "my" / name).touch()
    np.save(place / "my" / "mean.npy", np.zeros(3, np.float32))
    (place / "my" / "photos").symlink_to(finished_chain.images, target_is_directory=True)
    tree = yaml.safe_load(finished_chain.recipe.read_text())
    section, _, name = key.partition(".")
    tree[section][name] = value
    if key != "data.path":
        tree["data"]["path"] = str(finished_chain.images)
    (place / "configs" / "mine.yaml").write_text(yaml.safe_dump({**tree, "name": "mine"}))
    assert main(["train", "-c", "mine"]) == 2
    said = capsys.readouterr().err
    written = next(iter(value.values())) if isinstance(value, dict) else value
    assert f"Write in configs/mine.yaml, below {section}" in said
    assert f": ../{written}" in said


def test_what_the_line_says_is_found(place: Path) -> None:
    (place / "mean.npy").touch()
    recipe = place / "configs" / "mine.yaml"
    recipe.write_text("model: {preprocessing: {mean: mean.npy}, path: m.h5}\ndata: {path: /data}\n")
    loaded = load_recipe(recipe)
    said = suggest_path(f"{place / 'configs' / 'mean.npy'}, which does not exist", recipe, [])
    assert said.endswith("below model.preprocessing: mean: ../mean.npy")
    recipe.write_text(recipe.read_text().replace("mean: mean.npy", said.rpartition("preprocessing: ")[2]))
    assert load_recipe(recipe) != loaded
    assert Path(load_recipe(recipe).model.preprocessing.mean).is_file()  # type: ignore[union-attr, arg-type]


def test_a_copy_elsewhere_that_kept_the_name_is_refused_too(place: Path) -> None:
    copy = place / "mine" / "birds.yaml"
    copy.parent.mkdir()
    copy.write_text("name: digits\ndata: {source: digits}\n")
    with pytest.raises(RecipeError, match=r"expected another than that of configs/digits\.yaml"):
        refuse_name_in_use(load_recipe(copy), copy, Path("artifacts"), [])


def test_a_folder_that_was_named_is_not_taken_for_the_root(place: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(Path("nowhere/digits.yaml"), ARTIFACTS)
    assert "commands run from" not in str(caught.value)
