"""The step that a page advises, for every kind of verdict; advice that was followed in vain is not given again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.manifest import Key, read_manifest, write_manifest
from pipeline.reporting.sections import make_with
from pipeline.stages import BY_NAME
from pipeline.terminal.command_line import Invocation
from tests.pipeline.report_artifacts import LAYERS, ONNX, PLAN, RESULTS, Artifacts, distances, hop, not_compared

# --- the next step ---


def step(artifacts: Artifacts) -> tuple[str, list[str]]:
    """Its words and the words of its first command, without the folder of this test."""
    node = artifacts.write().page().section("Next step")
    command = shlex.split(node.all("code")[0].text)
    folder = ["--artifacts", str(artifacts.folder / "artifacts")]
    at = next((at for at in range(len(command)) if command[at : at + 2] == folder), len(command))
    return node.text, command[:at] + command[at + 2 :]


def verified_on_a_gpu(artifacts: Artifacts, *also: str) -> None:
    """What verify, and stages besides, record of the machine."""
    plain = artifacts.manifest

    def manifest(stage: str, result: dict, inputs: dict[str, str] | None = None) -> None:
        plain(stage, result, inputs)
        if stage in ("verify", *also):
            key = Key(inputs or {}, BY_NAME[stage].recipe_part(artifacts.context), "code", {"gpu": "Big GPU"})
            folder = artifacts.root / stage
            whole = RESULTS.get(stage, {}) | result
            write_manifest(folder, stage=stage, recipe="hand", key=key, seconds=1, result=whole)

    artifacts.manifest = manifest  # type: ignore[method-assign]


def test_what_no_engine_ran_goes_to_a_gpu(artifacts: Artifacts) -> None:
    words, command = step(artifacts)
    assert "Take it to a GPU" in words
    assert command[3] == "bundle"
    assert "make install-gpu && .venv-gpu/bin/python -m pipeline unpack hand.bundle.tar" in words


def test_on_a_gpu_engines_that_do_not_run_are_built_there(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops.append(hop(PLAN, "int8", "not run", why="for another GPU"))
    verified_on_a_gpu(artifacts)
    words, command = step(artifacts)
    assert "Build engines that this GPU runs" in words
    assert (command[3], command[-1]) == ("build", "--force")


def test_what_keeps_engines_of_this_gpu_from_running_is_asked_of_the_doctor(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops.append(hop(PLAN, "int8", "not run", why="the driver is too old"))
    verified_on_a_gpu(artifacts, "build")
    words, command = step(artifacts)
    assert "Find out why engines do not run here" in words
    assert "The driver is too old." in words
    assert command == ["python", "-m", "pipeline", "doctor"]


def test_where_all_ran_and_passed_pictures_are_classified(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops.append(hop(PLAN, "int8"))
    verified_on_a_gpu(artifacts)
    words, command = step(artifacts)
    assert "Classify your own pictures" in words
    assert command[3] == "infer"


def test_an_engine_that_was_never_verified_is_verified(artifacts: Artifacts) -> None:
    artifacts.write()
    (artifacts.root / PLAN).parent.mkdir()
    (artifacts.root / PLAN).write_bytes(b"new")
    assert "Verify the new engines" in artifacts.page().section("Next step").text


# --- after a failure ---

CHEAP = [*LAYERS, ("head_pool", "n3", "GlobalAveragePool", "60.00", "1.000e-06", "1.0000", "0.0000", "int8")]
NOT_MET: dict[str, Any] = {"budget_met": False, "convolutions": 20, "int8_convolutions": 19, "kept": ("n2",)}


def fp16_report(artifacts: Artifacts, **changed: Any) -> None:
    """The FP16 graph missed what was asked of it on held-out images."""
    before = artifacts.calibration_report.fp16
    artifacts.calibration["fp16"] = replace(before, **{"budget_met": False, **changed})


def fails(artifacts: Artifacts, number: int, **numbers: Any) -> None:
    """One file misses what is asked of it."""
    precision = ("fp32", "fp16", "int8")[number]
    low = {"sqnr_db": 15.0} if numbers.get("finite", True) else {"sqnr_db": None}
    artifacts.hops[number] = hop(ONNX[number], precision, "fail", **low | numbers)


def test_int8_that_missed_its_budget_may_keep_more_layers(artifacts: Artifacts) -> None:
    fails(artifacts, 2)
    artifacts.sensitivity, artifacts.calibration = CHEAP, NOT_MET
    words, command = step(artifacts)
    assert "Keep more layers in FP16" in words
    assert command[-2:] == ["--set", "quantize.max_kept=1"]
    assert "now 2 of 20 convolutions may" in words


def test_an_override_that_is_there_is_replaced(artifacts: Artifacts) -> None:
    fails(artifacts, 2)
    artifacts.sensitivity, artifacts.calibration = CHEAP, NOT_MET
    artifacts.overrides = ["quantize.max_kept=0.3", "train.seed=2"]
    _, command = step(artifacts)
    assert command[6:] == ["--set", "train.seed=2", "--set", "quantize.max_kept=1"]
    invocation = Invocation(Path("configs/mine.yaml"), overrides=["a.b=1", "a.bc=2"])
    assert make_with(invocation, ["a.b=3"], "run", None) == "RECIPE=mine ARGS='--set a.bc=2 --set a.b=3' make run"


def test_on_a_gpu_the_changed_command_runs_in_its_environment_too(artifacts: Artifacts) -> None:
    invocation = Invocation(Path("configs/mine.yaml"))
    verified_on_a_gpu(artifacts)
    verify = read_manifest(artifacts.write().root / "verify")
    assert make_with(invocation, ["a.b=3"], "run", verify) == "GPU=1 RECIPE=mine ARGS='--set a.b=3' make run"


def test_int8_that_kept_all_it_may_says_what_it_reached(artifacts: Artifacts) -> None:
    fails(artifacts, 2, sqnr_db=15.44)
    artifacts.overrides = ["quantize.max_kept=1"]
    artifacts.sensitivity, artifacts.calibration = CHEAP, {**NOT_MET, "int8_convolutions": 3}
    words, command = step(artifacts)
    assert "Serve FP16 or FP32, which passed" in words
    assert command[3] == "infer"
    assert "INT8 does not reach 20 dB SQNR on this model. On 200 images: SQNR 15.4 dB, 98.50% agree" in words
    assert "3 of 20 convolutions compute in INT8, so little of INT8's speed is left" in words
    assert "verify.thresholds.int8.sqnr_db (now 20.0)" in words


@pytest.mark.parametrize(
    ("reached", "left", "raised"),
    [
        (12.0, "5.000e-03", True),  # what is left makes nearly all of the noise
        (10.0, "2.000e-06", False),  # nothing left costs a hundredth of it
    ],
)
def test_layers_are_kept_only_where_some_are_left_that_cost(
    artifacts: Artifacts, reached: float, left: str, raised: bool
) -> None:
    fails(artifacts, 2)
    artifacts.sensitivity = [LAYERS[0], (*LAYERS[1][:4], left, *LAYERS[1][5:]), CHEAP[2]]
    artifacts.calibration = {**NOT_MET, "mixed": distances(reached)}
    assert ("quantize.max_kept" in " ".join(step(artifacts)[1])) is raised


def test_a_far_threshold_is_called_out_of_reach_before_anything_is_tried(artifacts: Artifacts) -> None:
    fails(artifacts, 2)
    # half of what is INT8 now could stay in FP16: 3 dB more than the 5 dB on held-out images
    artifacts.sensitivity = [LAYERS[0], LAYERS[1], ("add", "n3", "Add", "23.00", "5.000e-03", "1", "0", "int8")]
    artifacts.calibration = {**NOT_MET, "mixed": distances(5.0)}
    words, command = step(artifacts)
    assert command[3] == "infer"
    assert "With all sensitive layers in FP16 about 8 dB would be reached" in words


@pytest.mark.parametrize("number", [1, 2])
def test_what_was_met_on_held_out_images_is_not_asked_for_again(artifacts: Artifacts, number: int) -> None:
    fails(artifacts, number)
    artifacts.sensitivity = CHEAP
    words, command = step(artifacts)
    assert command[3] == "infer"
    assert "It was met on 18 held-out images, so keeping more layers changes nothing" in words
    assert "more calibration images (here 72)" in words


def test_fp16_may_keep_more_layers_where_all_that_may_are_kept(artifacts: Artifacts) -> None:
    fails(artifacts, 1)
    fp16_report(artifacts, kept=tuple(f"n{number}" for number in range(15)))  # of 21, 0.75 may
    words, command = step(artifacts)
    assert command[-2:] == ["--set", "quantize.max_kept_fp32=1"]
    fp16_report(artifacts, kept=("n1",))
    words, command = step(artifacts)
    assert command[3] == "infer"
    assert "Serve INT8 or FP32, which passed" in words
    assert "1 layer is in FP32 already" in words


def test_what_the_recipe_turned_off_is_tried_before_layers_stay_in_float(artifacts: Artifacts) -> None:
    fails(artifacts, 2)
    artifacts.sensitivity, artifacts.calibration = CHEAP, dict(NOT_MET)
    artifacts.overrides = ["quantize.shift=never", "quantize.effort=fast", "quantize.sensitivity=never"]
    words, command = step(artifacts)
    assert "Let the quantize stage try all that brings INT8 closer: quantize.effort=full, quantize.shift=auto" in words
    assert command[-4:] == ["--set", "quantize.effort=full", "--set", "quantize.shift=auto"]
    artifacts.overrides = ["quantize.shift=auto", "quantize.effort=full", "quantize.sensitivity=never"]
    assert step(artifacts)[1][-2:] == ["--set", "quantize.sensitivity=auto"], "no advice twice"


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_turned_off_for_int8_is_no_advice_for_fp16_nor_where_the_budget_was_met(
    artifacts: Artifacts, number: int
) -> None:
    fails(artifacts, number)
    artifacts.sensitivity, artifacts.overrides = CHEAP, ["quantize.effort=fast"]
    if number == 1:
        fp16_report(artifacts, kept=tuple(f"n{layer}" for layer in range(15)))
    assert "quantize.effort=full" not in step(artifacts)[1]


def test_layers_that_were_never_measured_are_measured_first(artifacts: Artifacts) -> None:
    fails(artifacts, 2)
    artifacts.calibration, artifacts.overrides = NOT_MET, ["quantize.sensitivity=never"]
    assert step(artifacts)[1][-2:] == ["--set", "quantize.sensitivity=auto"]


def test_what_is_wrong_with_fp32_comes_first_and_what_can_be_mended_before_what_cannot(artifacts: Artifacts) -> None:
    fails(artifacts, 1)  # nothing fixes it
    fails(artifacts, 2)
    artifacts.sensitivity, artifacts.calibration = CHEAP, dict(NOT_MET)
    assert "quantize.max_kept=1" in step(artifacts)[1]
    artifacts.overrides = ["verify.thresholds.fp32.relative_error=1.0e-6"]
    fails(artifacts, 0, sqnr_db=120.0, relative_error=2e-6, relative_limit=1e-6)
    assert step(artifacts)[1][-2:] == ["--set", "verify.thresholds.fp32.relative_error=auto"]


def test_fp32_that_misses_another_threshold_is_not_told_about_rounding(artifacts: Artifacts) -> None:
    artifacts.hops = [hop(ONNX[0], "fp32", "fail", sqnr_db=95.0)]
    words, command = step(artifacts)
    assert "Set the thresholds to what was reached, if that is enough for you" in words
    assert command[-2:] == ["--set", "verify.thresholds.fp32.sqnr_db=95.0"]
    assert "FP32 does not reach 100 dB SQNR on this model" in words


def test_nan_of_every_file_has_no_threshold_that_helps(artifacts: Artifacts) -> None:
    numbers = {"finite": False, "sqnr_db": None, "max_abs": None, "relative_error": None}
    artifacts.hops = [hop(ONNX[0], "fp32", "fail", **numbers)]
    section = artifacts.write().page().section("Next step")
    assert "FP32 gives NaN or infinite logits on this model" in section.text
    assert section.all("code") == []


def test_a_file_that_was_damaged_before_it_was_judged_is_made_anew(artifacts: Artifacts) -> None:
    artifacts.hops[1] = not_compared(ONNX[1], "fp16", "fail", "it cannot be parsed")
    words, command = step(artifacts)
    assert command == ["python", "-m", "pipeline", "doctor"]
    assert "as the quantize stage wrote it" in words
    (artifacts.root / ONNX[1]).write_bytes(b"damaged")
    artifacts.judge()
    words = artifacts.page().section("Next step").text
    assert "Make the file again" in words
    assert "pipeline run" in words


def test_a_graph_that_picks_wrong_classes_leaves_that_to_the_host(artifacts: Artifacts) -> None:
    artifacts.overrides = ["export.top_k=3"]
    artifacts.hops.append(replace(not_compared(ONNX[2], "int8", "fail", "the best 3 are others"), kind="top_k"))
    assert step(artifacts)[1][-2:] == ["--set", "export.top_k=0"]


def test_an_engine_that_failed_is_looked_at(artifacts: Artifacts) -> None:
    plan = "build/rtx/int8-a; ls.plan"  # a name from outside is one word of the command
    artifacts.plans = [plan]
    artifacts.hops = [hop(ONNX[0], "fp32"), not_compared(plan, "int8", "fail", "it died")]
    words, command = step(artifacts)
    assert command == ["python", "-m", "pipeline", "engine", "check", str(artifacts.root / plan)]
    assert "rtx/int8-a; ls.plan: it died." in words
    assert "serve FP32, which passed" in words


def test_an_engine_that_is_not_what_its_sidecar_says_is_built_anew(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    artifacts.hops.append(not_compared(PLAN, "int8", "fail", "it cannot be loaded"))
    artifacts.write()
    (artifacts.root / PLAN).write_bytes(b"cut short")
    artifacts.judge()
    section = artifacts.page().section("Next step")
    assert "Build it again" in section.text
    assert section.all("code")[0].text.endswith("--force")


def followed(artifacts: Artifacts) -> list[str]:
    """The commands of one page after the other, each followed though it brought nothing, until no value changes."""
    seen: list[str] = []
    for _ in range(8):
        section = artifacts.write().page().section("Next step")
        line = section.all("code")[0].text if section.all("code") else ""
        advice = f"{section.text.partition(':')[0]}: {line}"
        assert advice not in seen, "a page advises again what was followed in vain"
        seen.append(advice)
        words = shlex.split(line)
        overrides = [value for option, value in pairwise(words) if option == "--set"]
        keys = [override.partition("=")[0] for override in overrides]
        assert len(set(keys)) == len(keys), "a key stands twice"
        lowered = any("thresholds" in override and override.split("=")[1][0].isdigit() for override in overrides)
        if "run" not in words or overrides == artifacts.overrides or (lowered and "Set the thresholds" in section.text):
            return seen
        artifacts.overrides = overrides
    raise AssertionError(f"no end: {seen}")


NAN = {"finite": False, "sqnr_db": None, "max_abs": None, "relative_error": None}


STATES = [
    (*state, measured) for state in (("auto", False), ("never", False), ("auto", True)) for measured in (True, False)
]


@pytest.mark.parametrize(
    ("number", "numbers", "sensitivity", "met", "measured"),
    [
        (0, {"sqnr_db": 120.0, "relative_error": 1e-4, "relative_limit": 1e-5}, "auto", True, False),
        (0, {"sqnr_db": 90.0}, "auto", True, False),
        (0, NAN, "auto", True, False),
        *(
            (1, numbers, *state)
            for numbers in ({"top1_agreement": 0.9}, {"sqnr_db": 20.0}, NAN)
            for state in STATES[::2]
        ),
        *(
            (2, numbers, *state)
            for numbers in ({"top1_agreement": 0.9}, {"accuracy_drop": 0.2}, NAN)
            for state in STATES
        ),
        *((2, {"sqnr_db": 15.0}, *state) for state in STATES),
    ],
)
def test_advice_that_was_followed_in_vain_is_not_given_again(
    artifacts: Artifacts, number: int, numbers: dict[str, Any], sensitivity: str, met: bool, measured: bool
) -> None:
    more = ["verify.thresholds.int8.accuracy_drop=0.01", "verify.thresholds.int8.top1_agreement=0.99"]
    artifacts.overrides = [*more, "verify.thresholds.fp32.relative_error=1.0e-5", f"quantize.sensitivity={sensitivity}"]
    fails(artifacts, number, **numbers)
    artifacts.sensitivity = CHEAP if measured else None
    if not met:
        fp16_report(artifacts, kept=tuple(f"n{layer}" for layer in range(15)))
        artifacts.calibration |= NOT_MET
    assert len(followed(artifacts)) <= 4


@pytest.mark.parametrize("plan", [True, False])
def test_what_gave_no_answers_has_an_end_too(artifacts: Artifacts, plan: bool) -> None:
    if plan:
        artifacts.plans = [PLAN]
        artifacts.hops.append(not_compared(PLAN, "int8", "fail", "it died"))
    else:
        artifacts.hops[0] = not_compared(ONNX[0], "fp32", "fail", "it died")
    assert len(followed(artifacts)) == 1


def test_keras_own_nan_is_looked_for_in_the_model(artifacts: Artifacts) -> None:
    why = "its reference train/model.keras did not give usable logits"
    artifacts.hops = [not_compared(name, "fp32", "fail", why) for name in ONNX[:1]]
    words, command = step(artifacts)
    assert command[3:] == ["inspect", str(artifacts.root / "train/model.keras")]
    assert "It gives NaN or infinite logits" in words


def test_an_engine_fails_with_the_graph_that_it_was_made_from(artifacts: Artifacts) -> None:
    artifacts.plans = [PLAN]
    fails(artifacts, 2)
    artifacts.hops.append(hop(PLAN, "int8", "fail", sqnr_db=14.0))
    words, command = step(artifacts)
    assert command[3] == "infer"
    assert words.count("INT8 does not reach") == 1


# --- a model that knows nothing, and a chain that is not up to date ---

NOTHING = "Keras itself predicts 'cat' for all 17 test images. Check model.preprocessing."


@pytest.mark.parametrize("verdict", ["pass", "inconclusive", "fail"])
def test_a_model_that_knows_nothing_is_not_taken_further(artifacts: Artifacts, verdict: str) -> None:
    artifacts.card = replace(artifacts.card, source="a.keras")
    artifacts.hops[1] = hop(ONNX[1], "fp16", verdict)
    artifacts.warnings = (NOTHING,)
    words, command = step(artifacts)
    assert command == ["python", "-m", "pipeline", "inspect", "model.keras"]
    assert "Keras itself predicts 'cat' for all 17 test images" in words
    assert "GPU" not in words


def test_a_trained_model_that_knows_nothing_is_trained_longer_until_only_images_help(artifacts: Artifacts) -> None:
    artifacts.warnings = (NOTHING,)
    commands = followed(artifacts)
    assert [advice.partition(":")[0].removeprefix("Next step ") for advice in commands] == [
        *("Train longer", "Train longer", "Add more training images")
    ]
    artifacts.card = replace(artifacts.card, backbone="resnet50")
    artifacts.overrides = []
    assert "model.weights=imagenet" in step(artifacts)[1]


def test_a_model_as_it_was_published_is_held_against_its_recipe(artifacts: Artifacts) -> None:
    artifacts.warnings = (NOTHING,)
    artifacts.overrides = ["model.backbone=resnet50", "model.weights=imagenet", "model.head=published"]
    words, command = step(artifacts)
    assert "Check preprocessing and classes in the recipe" in words
    assert command[:4] == ["python", "-m", "pipeline", "config"]


def test_what_was_doubtful_when_the_model_was_taken_over_is_looked_at(artifacts: Artifacts) -> None:
    artifacts.card = replace(artifacts.card, source="a.h5", doubts=("It normalises its input twice.",))
    artifacts.warnings = artifacts.card.doubts
    assert step(artifacts)[1] == ["python", "-m", "pipeline", "inspect", "model.keras"]


def test_a_deviation_that_the_recipe_asked_for_is_no_doubt(artifacts: Artifacts) -> None:
    artifacts.card = replace(artifacts.card, source="a.h5", deviations=("Layers are taken as at inference.",))
    artifacts.warnings = artifacts.card.deviations
    assert "Take it to a GPU" in step(artifacts)[0]


def test_classes_without_a_test_image_come_before_the_gpu(artifacts: Artifacts) -> None:
    artifacts.warnings = ("There is no test image of 1 class of 3: owl.",)
    words, command = step(artifacts)
    assert "Add test images of the classes that have none" in words
    assert command[3] == "run"


@pytest.mark.parametrize("what", ["another recipe", "no infer", "another input", "a missing file"])
def test_only_a_chain_that_is_up_to_date_is_bundled(artifacts: Artifacts, what: str) -> None:
    artifacts.write()
    if what == "another recipe":
        artifacts.overrides = ["quantize.max_kept=0.5"]
    elif what == "no infer":
        (artifacts.root / "infer/manifest.json").unlink()
    elif what == "another input":
        artifacts.manifest("quantize", {}, {"export/model.onnx": "0" * 64})
    else:
        (artifacts.root / "quantize/model.int8-trt8.onnx").unlink()
    section = artifacts.page().section("Next step")
    assert "Run the stages that are out of date" in section.text
    assert "bundle" not in section.text


def test_what_a_recipe_says_no_more_is_told_from_the_record_alone(artifacts: Artifacts) -> None:
    artifacts.write()
    config = {**BY_NAME["export"].recipe_part(artifacts.context), "export.once": 3}
    folder = artifacts.root / "export"
    write_manifest(folder, stage="export", recipe="hand", key=Key({}, config, ""), seconds=1, result={})
    words = artifacts.page().section("Next step").text
    assert "Export was run with other values: export.once: is gone." in words


def test_what_is_inconclusive_asks_for_images(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "inconclusive", images_to_decide=2377)
    words, command = step(artifacts)
    assert "Add test images: about 2,377 are needed, 200 were used" in words
    assert "takes at most 1,000" in words
    assert command[-2:] == ["--set", "verify.max_images=2377"]
    artifacts.hops[2] = hop(ONNX[2], "int8", "inconclusive", images_to_decide=900)
    assert "--set" not in step(artifacts)[1]
    artifacts.hops[2] = hop(ONNX[2], "int8", "inconclusive")
    assert "Add more test images" in step(artifacts)[0]


def test_images_that_are_there_are_not_asked_for(artifacts: Artifacts) -> None:
    artifacts.hops[2] = hop(ONNX[2], "int8", "inconclusive", images_to_decide=2377)
    artifacts.write()
    for result, words in (
        ({"images_left": 3000, "images_in_all": 12_000}, "Use about 2,377 test images instead of 200"),
        ({"images_left": 10, "images_in_all": 12_000}, "200 were used (about 12,000 images in all give as many)"),
    ):
        artifacts.manifest("verify", result)
        assert words in artifacts.page().section("Next step").text


def test_altered_files_are_judged_again(artifacts: Artifacts) -> None:
    artifacts.write()
    (artifacts.root / ONNX[0]).write_bytes(b"another")
    assert "Verify the files as they are now" in artifacts.page().section("Next step").text
