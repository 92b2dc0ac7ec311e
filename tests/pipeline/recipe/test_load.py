from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.errors import RecipeError
from export.files import ROOT
from pipeline.recipe.load import PATH_KEYS, PERMISSION_KEYS, dump_yaml, load_recipe, recipe_slice, to_dict
from pipeline.recipe.schema import Preprocessing, Recipe, Thresholds
from pipeline.verification.checks.thresholds import relative_limit

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BASE = {"data": {"source": "digits"}}


@pytest.fixture
def write(tmp_path: Path):
    def _write(tree: object, name: str = "toy.yaml") -> Path:
        path = tmp_path / name
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return path

    return _write


@pytest.fixture
def toy(write) -> Path:
    return write(BASE)


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as info:
        load_recipe(path, overrides)
    return str(info.value)


def test_the_file_name_names_the_recipe(write) -> None:
    assert load_recipe(write(BASE, "birds.yaml")).name == "birds"
    assert load_recipe(write(BASE | {"name": "owls"}, "birds.yaml")).name == "owls"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_recipe_that_comes_with_the_project_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description


def test_there_are_recipes() -> None:
    assert {"digits", "digits-backbone"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    ("tree", "key", "match"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"input_sise": 64}}, "model.input_sise", "input_size"),
        ({"data": {"source": "digits", "splits": {"tarin": 0.5}}}, "data.splits.tarin", "train"),
        ({"verify": {"thresholds": {"int8": {"sqnr": 20}}}}, "verify.thresholds.int8.sqnr", "sqnr_db"),
        ({"train": {"fine_tune": {"learning_rat": 1}}}, "train.fine_tune.learning_rat", "learning_rate"),
    ],
)
def test_unknown_key_with_the_closest_match(write, tree: dict, key: str, match: str) -> None:
    message = refused(write(BASE | tree))
    assert f"Unknown key {key!r}" in message
    assert f"Did you mean {match!r}?" in message


@pytest.mark.parametrize(
    ("name", "split"), [("val", "validation"), ("training", "train"), ("Testing", "test"), ("calib", "calibration")]
)
def test_a_split_by_another_of_its_names(toy: Path, name: str, split: str) -> None:
    assert f"Did you mean {split!r}?" in refused(toy, f"data.splits={{{name}: 0.5}}")
    assert f"Did you mean {split!r}?" in refused(toy, f"data.divide.{name}.train=0.5")


@pytest.mark.parametrize(
    "text", ["data: {path:/data/x}", "data: {path:/data/x, source: folder}", "data:\n  path:/data/x\n"]
)
def test_a_colon_without_its_space(write, text: str) -> None:
    message = refused(write(text))
    assert message == "data: expected a space after each colon. Received: path:/data/x. Write path: /data/x."


def test_null_where_a_choice_is_due_is_to_be_left_out(write) -> None:
    message = refused(write({"data": {"path": "a"}, "model": {"path": "m.h5", "backbone": None}}))
    assert message == "model.backbone: expected a value. Received: nothing (null). Leave the line out."


@pytest.mark.parametrize("key", ["data.path", "model.path", "model.weights", "model.classes"])
def test_a_path_that_is_empty_is_none(toy: Path, key: str) -> None:
    assert refused(toy, f"{key}=''").startswith(f"{key}: expected a path. Received: '', which is empty. Leave")


@pytest.mark.parametrize(
    ("stem", "fitting"),
    [("my recipe", "my-recipe"), ("Müller", "Muller"), ("日本", "mine"), ("-x", "x"), ("a" * 120, "a" * 100)],
)
def test_a_file_whose_name_names_no_folder(write, stem: str, fitting: str) -> None:
    path = write({"data": {"source": "digits"}}, f"{stem}.yaml")
    message = refused(path)
    assert f"Received: {path}. Rename the file, such as to {fitting}.yaml, or add this line to it: name: " in message
    path.write_text(f"{message.rpartition('it: ')[2]}\ndata: {{source: digits}}\n")
    assert load_recipe(path).name == fitting
    assert load_recipe(path, ["name=other"]).name == "other"


def test_unknown_key_that_resembles_nothing_lists_what_is_known(write) -> None:
    message = refused(write(BASE | {"xyzzy": 1}))
    assert "Did you mean" not in message
    assert "quantize" in message


def test_unknown_keys_in_overrides(toy: Path) -> None:
    assert "Did you mean 'input_size'?" in refused(toy, "model.inputsize=64")
    assert "Unknown key 'model.'" in refused(toy, "model..x=1")
    assert "Unknown key '1'" in refused(toy, "1=2")


@pytest.mark.parametrize(
    ("override", "where", "received"),
    [
        ("model.input_size=big", "model.input_size: expected a whole number", "'big'"),
        ("model.input_size=64.0", "model.input_size: expected a whole number", "64.0, a number"),
        ("model.input_size=true", "model.input_size: expected a whole number", "Received: true"),
        ("model.dropout=yes", "model.dropout: expected a number", "Received: true"),
        ("model.dropout=half", "model.dropout: expected a number", "'half'"),
        ("name=5", "name: expected text", "Received: 5, a number. Put it in quotes"),
        ("description=2024-12-05", "description: expected text", "date"),
        ("train.save_backbone=1", "train.save_backbone: expected true or false", "Received: 1, a number"),
        ("model.dense=5", "model.dense: expected a list", "5"),
        ("model.dense=[8, x]", "model.dense[1]: expected a whole number", "'x'"),
        ("model.dense=", "model.dense: expected a list", "Received: nothing (null)"),
        ("benchmark.batches=[true]", "benchmark.batches[0]: expected a whole number", "Received: true"),
        ("data=folder", "data: expected keys and values", "'folder'"),
        ("data.splits=0.5", "data.splits: expected keys and values", "0.5"),
        ("data.splits.train.x=1", "data.splits.train: expected a number", "{'x': 1}"),
        ("model.weights=5", "model.weights: expected text", "Received: 5, a number. Put it in quotes"),
        ("build.optimization_level=high", "build.optimization_level: expected a whole number", "'high'"),
    ],
)
def test_wrong_types_say_where_and_what(toy: Path, override: str, where: str, received: str) -> None:
    message = refused(toy, override)
    assert where in message
    assert received in message


def test_literals(toy: Path) -> None:
    message = refused(toy, "model.backbone=resnet5")
    assert "model.backbone: expected a backbone. Received: 'resnet5'." in message
    assert "Did you mean 'resnet50'?" in message
    assert "build.precisions[1]: expected one of fp32, fp16, int8" in refused(toy, "build.precisions=[fp16, int4]")
    assert "export.opset: expected 17. Received: 18" in refused(toy, "export.opset=18")
    assert "model.output: expected one of" in refused(toy, "model.output=yes")
    assert load_recipe(toy, ["build.precisions=[int8]"]).build.precisions == ("int8",)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("runtime.cuda=pycuda", "runtime", "cuda", "pycuda"),
        ("model.dense=[8, 4]", "model", "dense", (8, 4)),
        ("model.dense=[]", "model", "dense", ()),
        ("build.workspace_mib=null", "build", "workspace_mib", None),
        ("build.workspace_mib=512", "build", "workspace_mib", 512),
        ("model.dropout=0", "model", "dropout", 0.0),
        ("model.dropout=1e-3", "model", "dropout", 0.001),
        ("model.dropout=2E-1", "model", "dropout", 0.2),
        ("model.dropout=1.e-3", "model", "dropout", 0.001),
        ("train.save_backbone=true", "train", "save_backbone", True),
        (" model.input_size = 64", "model", "input_size", 64),
        ("data.salt=a=b", "data", "salt", "a=b"),
        ("data.salt='7'", "data", "salt", "7"),
        ("build={tf32: true, profile: {max: 9}}", "build", "tf32", True),
    ],
)
def test_overrides_are_yaml(toy: Path, override: str, section: str, key: str, value: object) -> None:
    received = getattr(getattr(load_recipe(toy, [override]), section), key)
    assert received == value
    assert type(received) is type(value)


def test_overrides_merge_and_the_last_one_wins(write) -> None:
    path = write(BASE | {"train": {"head": {"epochs": 9, "learning_rate": 0.5}, "seed": 3}})
    recipe = load_recipe(path, ["train.head.epochs=2", "train.head={learning_rate: 0.25}", "train.head.epochs=1"])
    assert recipe.train.head.epochs == 1
    assert recipe.train.head.learning_rate == 0.25
    assert recipe.train.seed == 3


TFDS = ["mnist", "yes_no", "mnist:3.0.1", "mnist:3.*.*", "imagenet_resized/32x32", "cars_2/v1.0-b:1.0.0"]
NOT_TFDS = [
    "null",
    "''",
    "huggingface:mnist",
    "kaggle:x",
    "user:x/y:1.0.0",
    "'gs://b/x'",
    "../x",
    "/x",
    "x/../y/z",
    "X",
]


@pytest.mark.parametrize("name", TFDS)
def test_data_sets_of_tensorflow_datasets_itself(toy: Path, name: str) -> None:
    assert load_recipe(toy, ["data.source=tfds", f"data.tfds={name}"]).data.tfds == name


@pytest.mark.parametrize("name", NOT_TFDS)
def test_data_sets_whose_code_comes_from_elsewhere(toy: Path, name: str) -> None:
    message = refused(toy, "data.source=tfds", f"data.tfds={name}")
    assert "data.tfds: expected a data set of tensorflow-datasets itself" in message


@pytest.mark.parametrize("override", ["model.input_size", "=64", "  =1", "", "model.input_size 64"])
def test_override_without_key_or_equals_sign(toy: Path, override: str) -> None:
    assert "Expected --set section.key=value" in refused(toy, override)


def test_override_that_is_no_yaml(toy: Path) -> None:
    message = refused(toy, "model.dense=[8")
    assert message.startswith("--set model.dense: expected a YAML value. Received: '[8'")


def test_paths_in_a_file_are_relative_to_it_and_overrides_to_the_working_directory(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write({"data": {"path": "photos"}, "model": {"weights": "../w.h5", "path": "/abs/m.keras"}})
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(Path("../toy.yaml"))
    assert recipe.data.path == str(tmp_path / "photos")
    assert recipe.model.weights == str(tmp_path.parent / "w.h5")
    assert recipe.model.path == "/abs/m.keras"
    recipe = load_recipe(path, ["data.path=photos", "model.weights=null", "model={path: m.keras}"])
    assert recipe.data.path == str(elsewhere / "photos")
    assert recipe.model.weights is None
    assert recipe.model.path == str(elsewhere / "m.keras")


def test_home_is_expanded(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_recipe(toy, ["model.weights=~/w.h5"]).model.weights == "/home/somebody/w.h5"


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("name=../x", "name"),
        ("name=.hidden", "name"),
        ("name=''", "name"),
        ("data.splits.train=1.5", "data.splits.train"),
        ("data.splits.test=-0.1", "data.splits.test"),
        ("data.splits.test=.nan", "data.splits.test"),
        ("data.splits={train: 0, validation: 0, calibration: 0, test: 0}", "data.splits"),
        ("data.source=folder", "data.path"),
        ("data.source=npz", "data.path"),
        ("data.max_bad_images=-1", "data.max_bad_images"),
        ("model.input_size=31", "model.input_size"),
        ("model.input_size=601", "model.input_size"),
        ("model.dropout=1.0", "model.dropout"),
        ("model.dropout=.nan", "model.dropout"),
        ("model.dense=[8, 0]", "model.dense"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.head.epochs=-1", "train.head.epochs"),
        ("train.fine_tune.learning_rate=0", "train.fine_tune.learning_rate"),
        ("train.head.learning_rate=.nan", "train.head.learning_rate"),
        ("quantize.min_images=0", "quantize.min_images"),
        ("quantize.held_out=0", "quantize.held_out"),
        ("train.augment.zoom=1", "train.augment.zoom"),
        ("verify.max_images=49", "verify.max_images"),
        ("quantize.max_images=1", "quantize.max_images"),
        ("verify.max_images=10", "verify.max_images"),
        ("verify.batch_size=0", "verify.batch_size"),
        ("build.profile.min=0", "build.profile"),
        ("build.profile.opt=64", "build.profile"),
        ("build.optimization_level=6", "build.optimization_level"),
        ("build.precisions=[]", "build.precisions"),
        ("build.max_aux_streams=-1", "build.max_aux_streams"),
        ("build.builder_threads=0", "build.builder_threads"),
        ("build.workspace_mib=0", "build.workspace_mib"),
        ("build={strip_weights: true, version_compatible: true}", "build"),
        ("benchmark.batches=[1, 0]", "benchmark.batches"),
        ("benchmark.min_samples=0", "benchmark.min_samples"),
        ("infer.top_k=0", "infer.top_k"),
        ("export.top_k=-1", "export.top_k"),
        ("infer.samples=-1", "infer.samples"),
    ],
)
def test_out_of_range(toy: Path, override: str, where: str) -> None:
    assert refused(toy, override).startswith(f"{where}: expected ")


@pytest.mark.parametrize(
    "override",
    ["train.seed=-1", "train.seed=4294967296", "benchmark.seconds=-1", "benchmark.seconds=.inf",
     "train.head.learning_rate=.inf", "build.workspace_mib=-5"],
)  # fmt: skip
def test_out_of_range_values_that_would_fail_later(toy: Path, override: str) -> None:
    assert override.partition("=")[0] in refused(toy, override)


def test_negative_epochs_are_named(toy: Path) -> None:
    assert "-7" in refused(toy, "train.head.epochs=-7")


@pytest.mark.parametrize("where", ["file", "override"])
def test_an_impossible_date_is_no_crash(write, toy: Path, where: str) -> None:
    if where == "file":
        refused(write("description: 2024-13-45\ndata: {source: digits}\n"))
    else:
        refused(toy, "description=2024-13-45")


def test_a_literal_number_of_another_type_is_refused(toy: Path) -> None:
    assert "export.opset: expected 17. Received: 17.0" in refused(toy, "export.opset=17.0")


@pytest.mark.parametrize(("value", "expected"), [("auto", "auto"), ("1e-4", 1e-4), ("2", 2.0), ("null", None)])
def test_a_relative_error_is_a_number_or_left_to_the_model(toy: Path, value: str, expected: object) -> None:
    recipe = load_recipe(toy, [f"verify.thresholds.fp32.relative_error={value}"])
    found = recipe.verify.thresholds.fp32.relative_error
    assert (found, type(found)) == (expected, type(expected))
    assert "relative_error: expected a number" in refused(toy, "verify.thresholds.fp32.relative_error=automatic")


def test_one_threshold_overridden_leaves_the_others(toy: Path) -> None:
    limits = load_recipe(toy, ["verify.thresholds.int8.sqnr_db=15"]).verify.thresholds.int8
    assert limits == dataclasses.replace(load_recipe(toy).verify.thresholds.int8, sqnr_db=15.0)


def test_an_empty_threshold_section_is_the_default(toy: Path) -> None:
    assert load_recipe(toy, ["verify.thresholds.fp16=null"]).verify.thresholds.fp16 != Thresholds()


def test_a_key_given_twice_is_refused(write) -> None:
    refused(write("data: {source: digits, salt: a}\nmodel: {input_size: 64}\nmodel: {dropout: 0.5}\n"))


def test_default_thresholds_meet_the_contract(toy: Path) -> None:
    for recipe in (load_recipe(toy), load_recipe(ROOT / "configs/digits.yaml")):
        limits = recipe.verify.thresholds
        assert relative_limit(limits.fp32, None) <= 1e-5
        assert limits.fp16.top1_agreement >= 0.999
        assert limits.int8.top1_agreement >= 0.99
        assert limits.int8.sqnr_db >= 20
    assert recipe.verify.thresholds.fp16.sqnr_db >= 60
    assert recipe.verify.min_images >= 200


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere" / "x.yaml")


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("train.epochs=5", "train.head.epochs or train.fine_tune.epochs"),
        ("epochs=5", "train.head.epochs or train.fine_tune.epochs"),
        ("path=x", "data.path or model.path"),
        ("batchsize=5", "train.batch_size or quantize.batch_size or verify.batch_size or infer.batch_size"),
        ("model.min_images=5", "quantize.min_images or verify.min_images"),
        ("modle.input_size=64", "'model'"),
    ],
)
def test_a_key_in_the_wrong_section_is_found_in_its_own(toy: Path, override: str, match: str) -> None:
    assert f"Did you mean {match}?" in refused(toy, override)


def test_upper_case_is_no_other_word(toy: Path) -> None:
    assert "Received: 'INT8'. Did you mean 'int8'?" in refused(toy, "build.precisions=[INT8]")
    assert "Did you mean 'resnet50'?" in refused(toy, "model.backbone=ResNet50")


@pytest.mark.parametrize("text", ["a: [", "? [1]\n: 2\n", "\x00"])
def test_file_that_is_no_yaml(write, text: str) -> None:
    assert "Expected YAML" in refused(write(text))


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xff\x00")
    assert refused(path) == f"Expected YAML in {path}. Received: no UTF-8 text. Save it as UTF-8."
    path.write_text("data: {source: digits}", encoding="utf-16")
    assert refused(path) == f"Expected YAML in {path}. Received: UTF-16 text. Save it as UTF-8."
    path.write_text("data: {source: digits}", encoding="utf-8-sig")
    assert load_recipe(path).data.source == "digits"


@pytest.mark.parametrize("text", ["", "[]", "just text", "5"])
def test_file_without_sections(write, text: str) -> None:
    assert "Expected sections" in refused(write(text))


def test_an_empty_section_is_its_default(write) -> None:
    assert load_recipe(write("data: {source: digits}\nmodel:\ntrain: {head:}\n")) == load_recipe(write(BASE))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_dump_loads_again(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["model.dense=[8]", "train.head.learning_rate=1e-5", "description='ä: #1'"])
    copy = tmp_path / "other.yaml"
    copy.write_text(dump_yaml(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    description=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    salt=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
    rate=st.floats(1e-12, 1e3),
    dense=st.lists(st.integers(1, 99), max_size=3),
    train=st.floats(0.001, 1),
    level=st.none() | st.integers(0, 5),
)
def test_dump_loads_again_for_any_values(tmp_path: Path, description, salt, rate, dense, train, level) -> None:
    recipe = load_recipe(CONFIGS[0])
    recipe = dataclasses.replace(
        recipe,
        description=description,
        data=dataclasses.replace(recipe.data, salt=salt, splits=dataclasses.replace(recipe.data.splits, train=train)),
        model=dataclasses.replace(recipe.model, dense=tuple(dense)),
        train=dataclasses.replace(recipe.train, head=dataclasses.replace(recipe.train.head, learning_rate=rate)),
        build=dataclasses.replace(recipe.build, optimization_level=level),
    )
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe


def test_dump_fills_in_every_default(toy: Path) -> None:
    tree = yaml.safe_load(dump_yaml(load_recipe(toy)))
    assert set(tree) == {f.name for f in dataclasses.fields(Recipe)}
    assert tree["build"]["profile"] == {"min": 1, "opt": 8, "max": 32}


def test_slice_leaves_paths_out_and_keeps_the_rest(write, tmp_path: Path) -> None:
    path = write(
        {
            "data": {"path": "a", "salt": "s"},
            "model": {"weights": "w.h5", "path": "m.keras", "allow": ["preprocess"]},
            "build": {"timing_cache": "timing.cache"},
            "runtime": {"host_code": True},
        }
    )
    recipe = load_recipe(path)
    part = recipe_slice(recipe, ["data", "model", "build", "runtime", "description"])
    assert set(part) == {"data", "model", "build", "runtime", "description"}
    assert str(tmp_path) not in repr(part)
    whole = to_dict(recipe)
    for dotted in (*PATH_KEYS, *PERMISSION_KEYS):
        section, _, key = dotted.partition(".")
        if "." not in key:  # model.preprocessing.mean is there where preprocessing is spelt out
            assert key not in part[section]
            del whole[section][key]  # type: ignore[attr-defined]
    assert part == {name: whole[name] for name in part}
    moved = load_recipe(path, ["data.path=/b", "model.weights=/c", "model.path=/d"])
    assert recipe_slice(moved, list(part)) == part
    assert recipe.data.path is not None, "the recipe itself is untouched"


def test_preprocessing_may_be_spelt_out(write, tmp_path: Path) -> None:
    own = {"channel_order": "BGR", "mean": "mean.npy", "scale": 0.5, "mean_of": "scaled"}
    recipe = load_recipe(write({"model": {"preprocessing": own}, "data": {"path": "a"}}))
    assert recipe.model.preprocessing == Preprocessing("BGR", str(tmp_path / "mean.npy"), 0.5, "scaled")
    part = recipe_slice(recipe, ["model"])
    assert "mean" not in part["model"]["preprocessing"]
    assert part["model"]["preprocessing"]["scale"] == 0.5
    numbers = load_recipe(
        write({"model": {"preprocessing": {"mean": [1, 2, 3], "scale": [1, 1, 2]}}, "data": {"path": "a"}})
    )
    assert recipe_slice(numbers, ["model"])["model"]["preprocessing"]["mean"] == [1.0, 2.0, 3.0]
    for bad, message in (
        ({"means": [1, 2, 3]}, "Unknown key 'model.preprocessing.means'. Did you mean 'mean'"),
        ({"mean": 3}, "model.preprocessing.mean: expected a list"),
        ([1, 2], "model.preprocessing: expected a plain value"),
        ("cafe", "model.preprocessing: expected one of auto, caffe.*Did you mean 'caffe'"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(write({"model": {"preprocessing": bad}, "data": {"path": "a"}}))


def test_classes_are_names_or_a_file(write, tmp_path: Path) -> None:
    named = load_recipe(write({"model": {"classes": ["owl", 7]}, "data": {"path": "a"}}))
    assert named.model.classes == ("owl", "7")
    assert recipe_slice(named, ["model"])["model"]["classes"] == ["owl", "7"]
    file = load_recipe(write({"model": {"classes": "names.txt"}, "data": {"path": "a"}}))
    assert file.model.classes == str(tmp_path / "names.txt")
    assert "classes" not in recipe_slice(file, ["model"])["model"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("int8.top1_agreement", "99"),
        ("int8.top1_agreement", "-1"),
        ("fp16.accuracy_drop", "5"),
        ("fp16.sqnr_db", "-5"),
        ("fp32.relative_error", "-1"),
    ],
)
def test_a_threshold_out_of_its_range_is_refused_by_its_key(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data: {source: digits}")
    with pytest.raises(
        RecipeError, match=rf"verify\.thresholds\.{key}: expected (a share from )?(0|-1) to .*Received: {value}"
    ):
        load_recipe(path, [f"verify.thresholds.{key}={value}"])
    load_recipe(path, ["verify.thresholds.int8={top1_agreement: null, sqnr_db: 0, accuracy_drop: 1}"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {source: digits\nmodel: {backbone: resnet20}\n", "line 2, column 6: .*brackets"),
        ("data:\n\tsource: digits\n", "line 2, column 1: .*indent with spaces"),
        ("data:\n  source: digits\n path: x\n", "line 3, column 2: .*one column"),
        ("data: {source: digits}\ndata: {source: digits}\n", "line 1, column 1: the key 'data' is given twice"),
        ("description: from: here\n", "line 1, column 18: .*quote a value that holds a colon"),
    ],
)
def test_a_slip_in_yaml_is_told_in_one_line_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"Received: {said}") as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_the_least_that_a_limit_may_be_is_named(toy: Path) -> None:
    assert "at least verify.min_images (50). Received: 49" in refused(toy, "verify.max_images=49")
