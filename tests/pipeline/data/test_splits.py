"""Where images go: by the recipe's shares, by ready-made splits, and by whether anything is trained on them."""

from __future__ import annotations

from collections import Counter

import pytest

from export.files import ROOT
from pipeline.artifacts.files import sha256_bytes
from pipeline.data.dataset import load_image_set
from pipeline.data.sample import Sample
from pipeline.data.splits import Roles, roles_of
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import SPLITS, Data, Divide, Model, Shares, Splits

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not on this machine")


def images(count: int, ready: str | None = None) -> list[Sample]:
    return [Sample(f"{ready}{i}", 0, sha256_bytes(f"{ready}{i}".encode()), bytes, ready=ready) for i in range(count)]


def dealt(roles: Roles, samples: list[Sample]) -> dict[str | None, int]:
    return dict(Counter(roles.split_of(sample) for sample in samples))


def test_a_finished_model_trains_on_nothing() -> None:
    roles = roles_of(Data(splits=Splits(0.7, 0.1, 0.1, 0.1)), {None}, trains=False)
    found = dealt(roles, images(1000))
    assert set(found) == {"calibration", "test"}
    assert found["test"] == pytest.approx(500, abs=50)
    given = Data(splits=Splits(0.5, 0.2, 0.1, 0.2))
    assert dealt(roles_of(given, {None}, trains=False), images(900))["test"] == pytest.approx(600, abs=50), "0.1 : 0.2"
    assert dealt(roles_of(Data(), {None}, trains=False), images(900))["test"] == pytest.approx(450, abs=50), "halves"


def test_without_shares_for_either_half_calibrates() -> None:
    roles = roles_of(Data(splits=Splits(0.8, 0.2, 0, 0)), {None}, trains=False)
    assert dealt(roles, images(1000))["calibration"] == pytest.approx(500, abs=50)


def test_shares_of_a_recipe_without_training_images_mean_what_they_meant() -> None:
    config = Data(splits=Splits(0, 0, 0.4, 0.6))
    samples = images(500)
    first, second = (roles_of(config, {None}, trains) for trains in (True, False))
    assert [first.split_of(s) for s in samples] == [second.split_of(s) for s in samples]


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ("train test", {"train": "calibration", "test": "test"}),
        ("train validation", {"train": "calibration", "validation": "test"}),
        ("train validation test", {"train": "calibration", "validation": None, "test": "test"}),
        ("validation test", {"validation": "calibration", "test": "test"}),
        ("train calibration", {"train": "test", "calibration": "calibration"}),
        ("train validation calibration", {"train": None, "validation": "test", "calibration": "calibration"}),
        ("calibration test", {"calibration": "calibration", "test": "test"}),
    ],
)
def test_ready_made_splits_of_a_finished_model(present: str, expected: dict[str, str | None]) -> None:
    roles = roles_of(Data(), set(present.split()), trains=False)
    for ready, split in expected.items():
        assert dealt(roles, images(20, ready)) == {split: 20}


@pytest.mark.parametrize("only", ["train", "validation", "test", "calibration"])
def test_the_only_ready_made_split_is_divided(only: str) -> None:
    found = dealt(roles_of(Data(), {only}, trains=False), images(600, only))
    assert set(found) == {"calibration", "test"}
    assert found["test"] == pytest.approx(300, abs=50)


def test_what_is_divided_explicitly_stays_so() -> None:
    divide = Divide(train=Shares(train=1), validation=Shares(calibration=0.4, test=0.6))
    roles = roles_of(Data(divide=divide), {"train", "validation"}, trains=False)
    assert dealt(roles, images(50, "train")) == {None: 50}
    assert set(dealt(roles, images(50, "validation"))) == {"calibration", "test"}
    half = Divide(validation=Shares(validation=0.5, test=0.5))
    roles = roles_of(Data(divide=half), {"train", "validation"}, trains=False)
    assert dealt(roles, images(50, "validation")) == {"test": 50}, "its validation images would lie idle"
    assert dealt(roles, images(50, "train")) == {"calibration": 50}


def test_which_models_are_finished() -> None:
    assert [m.finished for m in (Model(), Model(path="m.h5"), Model(head="published"))] == [False, True, True]


@needs_shared
@pytest.mark.parametrize(
    ("recipe", "path", "overrides", "expected", "unused"),
    [
        ("imagenet", "imagenet", [], (500, 500), {}),
        ("photos", "flowers/train", ["model.path=m.h5"], (155, 145), {}),
        ("flowers", "flowers", ["model.path=m.h5"], (128, 240), {"train": 300}),
        ("signs", "signs", ["model.path=m.h5"], (829, 119), {"validation": 196}),
    ],
)
def test_finished_models_on_the_shared_data(
    recipe: str, path: str, overrides: list[str], expected: tuple[int, int], unused: dict[str, int]
) -> None:
    configs = ROOT / "configs"
    loaded = load_recipe(configs / f"{recipe}.yaml", [f"data.path={SHARED / path}", *overrides])
    found = load_image_set(loaded.data, trains=not loaded.model.finished)
    sizes = {split: len(found.splits[split]) for split in SPLITS}
    assert sizes == {"train": 0, "validation": 0, "calibration": expected[0], "test": expected[1]}
    assert found.unused == unused
    (said,) = [line for _, line in found.log_lines(finished=True) if "trained" in line]
    assert said.startswith(f"{sum(expected) + sum(unused.values()):,} images: {expected[0]} calibration, ")
    assert said.endswith("; nothing is trained")


def test_shares_that_do_not_sum_to_one_are_said_to_be_in_proportion() -> None:
    def told(**shares: float) -> str | None:
        return roles_of(Data(splits=Splits(**shares)), [None], trains=True).sum_warning()

    said = told(train=0.8, test=0.2)  # validation and calibration were forgotten, and keep their defaults
    assert said is not None
    assert said.startswith("data.splits sum to 1.2 (train 0.8, calibration 0.1, validation 0.1, test 0.2; one that is")
    assert said.endswith("in proportion: train 66.7 %, calibration 8.33 %, validation 8.33 %, test 16.7 %")
    assert told() is None
    assert told(train=0.33, validation=0.33, calibration=0.0, test=0.33) is None
    assert told(train=0.5, validation=0.0, calibration=0.1, test=0.2) is not None
    assert roles_of(Data(splits=Splits(train=0.8)), ["train"], trains=True).sum_warning() is None


@pytest.mark.parametrize(
    ("salt", "expected"),
    [
        ("", "calibration train validation calibration train train train train"),
        ("x", "calibration train test train train train train train"),
    ],
)
def test_an_image_stays_where_former_versions_put_it(salt: str, expected: str) -> None:
    """Results that somebody has are of these splits: another rule would test with what was trained on."""
    roles = roles_of(Data(salt=salt), [None], trains=True)
    assert [roles.split_of(sample) for sample in images(8)] == expected.split()
