"""Results that are older than what they were made from, or damaged: what is said of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from export.errors import ProjectError
from pipeline.artifacts.manifest import Key, read_manifest, write_manifest
from pipeline.cli.commands import main
from pipeline.cli.status import refuse_stale_artifacts, warn_of_a_new_training, warn_of_stale_inputs
from pipeline.stages import BY_NAME
from pipeline.workflow.context import Context
from tests.conftest import Chain


def context_of(chain: Chain, *overrides: str) -> Context:
    from pipeline.recipe.load import load_recipe

    return Context(load_recipe(chain.recipe, overrides), chain.recipe, chain.artifacts, overrides)


def rewritten(context: Context, name: str, **changes: object) -> None:
    """A stage's manifest as that of a run that read something else."""
    folder = context.folder(name)
    was = read_manifest(folder)
    assert was is not None
    key = {"inputs": dict(was.inputs), "config": dict(was.config), "code": was.code, "environment": was.environment}
    write_manifest(folder, stage=name, recipe=was.recipe, key=Key(**key | changes), seconds=1, result=dict(was.result))


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings, as they are given."""
    lines: list[str] = []
    monkeypatch.setattr("pipeline.cli.status.log.warning", lambda text, *values: lines.append(text % values))
    return lines


# --- an archive ---


def test_a_chain_that_is_up_to_date_may_be_packed(finished_chain: Chain) -> None:
    refuse_stale_artifacts(context_of(finished_chain))


def test_a_model_that_was_trained_anew_is_not_packed_with_the_files_of_the_former_one(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = dict(read_manifest(chain.root / "export").inputs) | {"train/model.keras": "0" * 64}
    rewritten(context_of(chain), "export", inputs=inputs)
    assert chain.run("bundle", "-o", str(tmp_path / "x.tar")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "Received: export is not up to date (input train/model.keras: 000000000000 -> " in error
    assert f"Run first: `{context_of(chain).command('run')}`" in error
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize("name", ["train", "quantize", "verify"])
def test_a_chain_with_a_stage_that_has_not_run_is_not_packed(chain: Chain, name: str) -> None:
    (chain.root / name / "manifest.json").unlink()
    with pytest.raises(ProjectError, match=f"Received: {name} has not run"):
        refuse_stale_artifacts(context_of(chain))


def test_a_recipe_that_would_train_or_quantize_anew_there_is_refused_and_one_that_only_builds_is_not(
    finished_chain: Chain,
) -> None:
    with pytest.raises(ProjectError, match=r"train is not up to date \(recipe train.seed: 1 -> 9\)"):
        refuse_stale_artifacts(context_of(finished_chain, "train.seed=9"))
    refuse_stale_artifacts(context_of(finished_chain, "build.profile.max=16"))


def test_what_a_machine_with_a_gpu_decides_refuses_no_archive(chain: Chain) -> None:
    rewritten(context_of(chain), "verify", environment={"gpu": None, "tensorrt": None, "other": "there"})
    refuse_stale_artifacts(context_of(chain))


def without_images(chain: Chain) -> Chain:
    """Its recipe names a folder that is not there, as on a machine that unpacked an archive."""
    tree = yaml.safe_load(chain.recipe.read_text())
    tree["data"]["path"] = f"{chain.images}/gone"
    chain.recipe.write_text(yaml.safe_dump(tree))
    return chain


def test_without_the_images_an_archive_may_be_packed_again(chain: Chain) -> None:
    refuse_stale_artifacts(context_of(without_images(chain)))


# --- damage ---


@pytest.mark.parametrize(
    "file", ["train/model.keras", "export/model.onnx", "quantize/scales.json", "quantize/model.int8.onnx"]
)
def test_damage_is_said_once_with_the_stage_that_wrote_the_file(chain: Chain, file: str, warned: list[str]) -> None:
    path = chain.root / file
    path.write_bytes(path.read_bytes() + b"x")
    warn_of_stale_inputs(BY_NAME["verify"], context_of(chain))
    stage, name = file.split("/")
    (line,) = warned
    assert f"{chain.root / stage}: not as the stage wrote it: output {name} was altered." in line
    assert line.endswith(f"Run it again: `{context_of(chain).command(stage)}`")


def test_a_damaged_file_is_told_with_its_stage_and_the_table_gives_its_reason_once(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chain.root / "quantize/model.int8.onnx"
    path.write_bytes(path.read_bytes() + b"x")
    assert chain.run("verify") == 1
    err = capsys.readouterr().err
    assert f"output model.int8.onnx was altered. Run it again: `{context_of(chain).command('quantize')}`" in err
    assert "Export or copy" not in err
    assert err.count("] Expected an ONNX file.") == 1
    assert err.count("fail [2]") == 2


# --- a training that surprises ---


def test_a_model_that_is_replaced_is_named_with_the_options_that_keep_it(
    finished_chain: Chain, warned: list[str]
) -> None:
    warn_of_a_new_training(context_of(finished_chain))
    warn_of_a_new_training(context_of(finished_chain, "quantize.method=mse"))
    assert warned == []
    warn_of_a_new_training(context_of(finished_chain, "train.seed=9", "train.fine_tune.epochs=1"))
    (line,) = warned
    assert line.endswith("add the same options as before: --set train.fine_tune.epochs=3 --set train.seed=1")


# --- what is refused is said without running ---


def explained(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    capsys.readouterr()
    assert main([*words, "--explain", "--json"]) == 2
    shown = capsys.readouterr()
    assert "would run" not in shown.out
    return str(json.loads(shown.out.splitlines()[-1])["error"])


@pytest.mark.parametrize("verb", ["train", "run"])
def test_explain_refuses_what_the_run_refuses_at_once(
    verb: str, finished_chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    error = explained(capsys, finished_chain.arguments(verb, "--set", "data.splits.train=0"))
    assert error.startswith("train would be refused: Expected at least 4 train images")
    error = explained(capsys, finished_chain.arguments(verb, "--set", "verify.min_images=999", "--set", "train.seed=9"))
    assert error.startswith("train would be refused: Expected at least 999 test images")


def test_explain_refuses_a_quantization_without_images(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    error = explained(capsys, without_images(chain).arguments("quantize", "--set", "quantize.method=mse"))
    assert error.startswith("quantize would be refused: data.path: expected a folder")


def test_explain_refuses_a_model_that_inspect_refuses(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import keras

    image = keras.Input((32, 32, 3))
    flat = keras.layers.Flatten()(image)
    model = keras.Model(image, [keras.layers.Dense(4, name="a")(flat), keras.layers.Dense(4, name="b")(flat)])
    model.save(tmp_path / "two.keras")
    tree = yaml.safe_load(chain.recipe.read_text())
    tree["model"] = {"path": str(tmp_path / "two.keras"), "preprocessing": "unit"}
    chain.recipe.write_text(yaml.safe_dump(tree))
    error = explained(capsys, chain.arguments("train"))
    assert error.startswith(f"train would be refused: model.path: expected an image classifier. Received: {tmp_path}")


def test_explain_refuses_a_recipe_that_says_other_than_the_model(
    finished_chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    error = explained(capsys, finished_chain.arguments("export", "--set", "data.resize=crop"))
    assert error.startswith("data.resize: expected stretch")


@pytest.mark.parametrize("verb", ["export", "run", "benchmark", "infer"])
def test_the_first_line_names_the_recipe(verb: str, finished_chain: Chain, capfd: pytest.CaptureFixture[str]) -> None:
    assert finished_chain.run(verb, "--explain") == 0
    err = capfd.readouterr().err
    assert err.splitlines()[0] == f"recipe tiny ({finished_chain.recipe})"
    assert err.count("recipe tiny") == 1
