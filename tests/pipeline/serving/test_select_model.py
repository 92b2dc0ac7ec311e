"""Which file answers: what vouches for a verdict, and what is said where the usual file does not count any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import ProjectError
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.parity_report import read_parity
from pipeline.artifacts.paths import CARD, KERAS, ONNX, PARITY, Artifacts
from pipeline.recipe.load import load_recipe
from pipeline.serving import select_model
from pipeline.serving.candidates import Verdicts
from pipeline.workflow.context import Context
from tests.fakes.engine import make_plan
from tests.made_records import make_hop, write_verdict
from tests.stage_parts import choose


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Three ONNX files that passed; no GPU."""
    from export.tensorrt.driver import DriverStatus

    monkeypatch.setattr(select_model, "driver_status", lambda: DriverStatus(False, "no NVIDIA driver", None, None, ()))
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}}))
    context = Context(load_recipe(path), path, tmp_path / "artifacts")
    for name in ONNX.values():
        (context.root / name).parent.mkdir(parents=True, exist_ok=True)
        (context.root / name).write_bytes(name.encode())
    write_verdict(context.root, *(make_hop(name) for name in ONNX.values()))
    return context


def test_nothing_is_said_where_all_is_as_verified(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    assert choose(context).name == ONNX["fp32"]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.write_bytes(b"other"), "was altered since it was verified"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_the_next_file_answers_only_with_a_word_about_it(
    context: Context, caplog: pytest.LogCaptureFixture, damage: Any, why: str
) -> None:
    damage(context.root / ONNX["fp32"])
    assert choose(context).name == ONNX["fp16"]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{ONNX['fp16']} serves. Skipped: {ONNX['fp32']}")
    assert why in record.getMessage()


def test_one_warning_names_all_that_were_passed_over(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    (context.root / ONNX["fp32"]).write_bytes(b"other")
    write_verdict(context.root, make_hop(ONNX["fp16"], "fail"), make_hop(ONNX["int8"]))
    assert choose(context).name == ONNX["int8"]
    (record,) = caplog.records
    assert f"{ONNX['fp32']} was never verified" in record.getMessage()
    assert f"{ONNX['fp16']}: fail" in record.getMessage()


def edit(path: Path, change: Any) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_a_verdict_that_was_edited_does_not_count(context: Context) -> None:
    """The file says pass of itself; only the manifest knows that verify wrote something else."""
    write_verdict(context.root, *(make_hop(name, "fail") for name in ONNX.values()))
    with pytest.raises(ProjectError, match=f"{ONNX['fp32']}: fail"):
        choose(context)

    def passing(tree: dict[str, Any]) -> None:
        tree["verdict"] = "pass"
        for hop in tree["hops"]:
            hop["verdict"] = "pass"

    edit(context.root / PARITY, passing)
    assert read_parity(context.root / PARITY).verdict == "pass"
    with pytest.raises(ProjectError, match=r"verify/parity\.json was altered since the verify stage wrote it"):
        choose(context)
    assert choose(context, allow_unverified=True).verdict == "not verified"


def test_a_verdict_without_its_manifest_does_not_count(context: Context) -> None:
    (context.root / "verify" / "manifest.json").unlink()
    with pytest.raises(ProjectError, match=r"no manifest of the verify stage vouches for verify/parity\.json"):
        choose(context)


def test_a_model_that_was_altered_is_not_the_one_that_was_verified(context: Context) -> None:
    (context.root / KERAS).write_bytes(b"keras")
    digest = sha256_file(context.root / KERAS)
    write_verdict(context.root, *(make_hop(name) for name in ONNX.values()), subjects={KERAS: digest})
    assert choose(context).verdict == "pass"
    (context.root / KERAS).write_bytes(b"other")
    with pytest.raises(ProjectError, match=r"train/model\.keras was altered since it was verified"):
        choose(context)
    (context.root / KERAS).unlink()  # as on a machine that only serves
    assert choose(context).verdict == "pass"


def test_a_card_that_was_edited_does_not_count(context: Context) -> None:
    edit(context.root / CARD, lambda tree: tree.update(classes=["dog", "cat", "owl"]))
    with pytest.raises(ProjectError, match=r"train/model\.json was altered since it was verified"):
        choose(context)


def test_no_verdict_at_all(context: Context) -> None:
    shutil.rmtree(context.root / "verify")
    with pytest.raises(ProjectError, match=r"Received: there is no verdict\..*--allow-unverified"):
        choose(context)


def test_an_engine_counts_with_its_sidecar(context: Context) -> None:
    plan = make_plan(context.root / "build" / "tensorrt" / "fp16.plan")
    write_verdict(context.root, make_hop("build/tensorrt/fp16.plan"))
    assert Verdicts(Artifacts(context.root)).on(plan.relative_to(context.root).as_posix()).verdict == "pass"
    edit(plan.with_suffix(".json"), lambda tree: tree.update(precision="int8"))
    found = Verdicts(Artifacts(context.root)).on(plan.relative_to(context.root).as_posix())
    assert (found.verdict, found.why) == (
        "not verified",
        "build/tensorrt/fp16.json was altered since it was verified",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(hops={}), "'hops' of type a list"),
        (lambda tree: tree.update(hops=[7]), r"'hops\[0\]' of type an object"),
        (lambda tree: tree["hops"][0].pop("candidate"), r"'hops\[0\]\.candidate' of type text .*Received: nothing"),
        (lambda tree: tree["hops"][1].update(sqnr_db="40"), r"'hops\[1\]\.sqnr_db' of type a number"),
        (lambda tree: tree["hops"][1].update(precision="fp8"), r"'hops\[1\]\.precision'"),
        (lambda tree: tree.update(subjects=[]), "'subjects' of type an object"),
        (lambda tree: tree.pop("verdict"), "'verdict' of type"),
        (lambda tree: tree.update(verdict="fail"), "the verdict 'fail' over hops whose verdict is 'pass'"),
        (lambda tree: tree.update(schema=3), "the verdict of schema 4"),
    ],
)
def test_a_damaged_verdict_is_one_error_with_file_and_key(context: Context, change: Any, words: str) -> None:
    edit(context.root / PARITY, change)
    with pytest.raises(ProjectError, match=rf"(?s){words}.*verify stage again") as caught:
        choose(context)
    assert "parity.json" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("verdict", "subjects", "thresholds", "hops", "warnings", "schema")


@settings(max_examples=80, deadline=None)
@given(key=st.sampled_from([*FIELDS, *make_hop("x").__dataclass_fields__]), value=JSON)
def test_any_value_in_a_verdict_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    root = tmp_path_factory.mktemp("verdict")
    write_verdict(root, make_hop("a.onnx"), make_hop("b.onnx", "not run"))
    edit(root / PARITY, lambda tree: (tree if key in FIELDS else tree["hops"][0]).update({key: value}))
    message = "parity.json"
    try:
        read_parity(root / PARITY)
    except ProjectError as error:
        message = str(error)
    assert "parity.json" in message
