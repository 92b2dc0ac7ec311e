"""What somebody with too few images is told: numbers that hold when they are followed."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from export.errors import DataError
from pipeline.artifacts.manifest import Key
from pipeline.artifacts.parity_report import INCONCLUSIVE
from pipeline.artifacts.results import Unreadable, Verified
from pipeline.cli.commands import _log_verdict
from pipeline.data.dataset import ImageSet, split_images
from pipeline.data.sample import Sample, SourceImages
from pipeline.data.splits import Roles, check_split_sizes, images_for, needed_images, probability_of_enough
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import SPLITS, Data, Divide, Shares, Splits
from pipeline.stages import BY_NAME
from pipeline.stages.verify import count_further_images
from pipeline.workflow.context import Context


def labelled(**labels: list[int]) -> ImageSet:
    splits = {
        name: tuple(Sample(f"{name}{i}", y, f"{i}", bytes) for i, y in enumerate(ys)) for name, ys in labels.items()
    }
    by_shares = Roles({None: dict.fromkeys(SPLITS, 0.25)}, keys={None: "data.splits"})
    return ImageSet(("cat", "dog", "owl"), {name: splits.get(name, ()) for name in SPLITS}, 0, roles=by_shares)


def image_set(count: int, config: Data, ready: Collection[str | None] = (None,), trains: bool = False) -> ImageSet:
    """Images of two classes, so many in each ready-made split."""
    samples = [
        Sample(f"{name}{i}", i % 2, random.Random(f"{name}{i}").randbytes(32).hex(), bytes, ready=name)
        for name in ready
        for i in range(count)
    ]
    return split_images(SourceImages(samples, ["cat", "dog"]), config, trains)


def refused(images: ImageSet, minimum: dict[str, int]) -> str:
    with pytest.raises(DataError) as info:
        check_split_sizes(images, minimum)
    return str(info.value)


def test_enough_images() -> None:
    check_split_sizes(labelled(train=[0, 1, 2], test=[0, 1]), {"train": 3, "test": 2, "validation": 0})


@pytest.mark.parametrize(
    ("split", "key"),
    [("test", "verify.min_images"), ("calibration", "quantize.min_images"), ("validation", None), ("train", None)],
)
def test_too_few_images_say_how_many_and_what_to_do(split: str, key: str | None) -> None:
    message = refused(labelled(train=[0, 1, 2], test=[0]), {split: 7})
    assert f"at least 7 {split} images" in message
    assert "of 4 images (train 3, calibration 0, validation 0, test 1)" in message
    assert f"raise data.splits.{split}" in message
    assert (f"or lower {key}" in message) if key else ("lower" not in message)


def test_all_splits_that_have_too_few_are_named_at_once() -> None:
    message = refused(image_set(50, Data()), {"calibration": 128, "test": 60})
    assert "at least 128 calibration images (quantize.min_images) and 60 test images (verify.min_images)" in message
    assert "raise data.splits.calibration and data.splits.test" in message


def test_a_class_without_training_images() -> None:
    with pytest.raises(DataError, match=r"training images of every class\. Received: none of cat, owl"):
        check_split_sizes(labelled(train=[1, 1], test=[0, 2]), {"train": 1})


def test_a_finished_model_needs_no_training_images(tmp_path: Path) -> None:
    check_split_sizes(labelled(calibration=[0, 1], test=[0, 1, 2]), {"train": 0, "calibration": 2, "test": 3})
    (tmp_path / "r.yaml").write_text("data: {path: x}")
    recipe = load_recipe(tmp_path / "r.yaml")
    finished = load_recipe(tmp_path / "r.yaml", ["model.path=m.h5"])
    assert needed_images(recipe, 3) == {"train": 3, "validation": 1, "calibration": 128, "test": 50}
    assert needed_images(finished, 3) == {"train": 0, "validation": 0, "calibration": 128, "test": 50}


@pytest.mark.parametrize(("needed", "share"), [(60, 0.2), (8, 0.2), (128, 1 / 3), (50, 0.05), (1, 0.5)])
def test_the_advised_number_of_images_is_enough_nearly_always(needed: int, share: float) -> None:
    advised = images_for(needed, share)
    assert probability_of_enough(advised, share, needed) >= 0.99 > probability_of_enough(advised - 1, share, needed)
    source, trials = random.Random(7), 1000
    enough = sum(sum(source.random() < share for _ in range(advised)) >= needed for _ in range(trials))
    assert enough / trials == pytest.approx(0.99, abs=0.012)


@settings(deadline=None)
@given(st.integers(0, 2000), st.floats(0.001, 0.999), st.integers(0, 400))
def test_chances_are_those_of_another_implementation(images: int, share: float, needed: int) -> None:
    assert probability_of_enough(images, share, needed) == pytest.approx(
        stats.binom.sf(needed - 1, images, share), abs=1e-9
    )


def test_a_certain_share_needs_no_more_than_the_minimum() -> None:
    assert (
        images_for(60, 1.0),
        probability_of_enough(60, 1.0, 60),
        probability_of_enough(59, 1.0, 60),
        probability_of_enough(9, 0.0, 1),
    ) == (60, 1.0, 0.0, 0.0)


def followed(message: str) -> tuple[int, int]:
    expected, certain = re.findall(r"about ([\d,]+), and ([\d,]+) to be nearly certain", message)[0]
    return int(expected.replace(",", "")), int(certain.replace(",", ""))


def test_the_total_that_the_shares_want_counts_what_is_there() -> None:
    config = Data(splits=Splits(0.5, 0.1, 0.2, 0.2))
    images = image_set(270, config, trains=True)
    received = len(images.splits["test"])
    assert 45 <= received < 60, "else this says nothing"
    message = refused(images, {"test": 60})
    expected, certain = followed(message)
    assert expected == 300
    assert 270 < certain < 400
    assert f"--set verify.min_images={received} (the verdict gets less certain)" in message
    check_split_sizes(images, {"test": received})
    check_split_sizes(image_set(certain, config, trains=True), {"test": 60})
    assert message.endswith("All images found are used.")


def test_the_number_that_is_nearly_certain_is_never_the_smaller_of_two() -> None:
    config = Data(splits=Splits(0.25, 0.25, 0.25, 0.25))
    for total in range(100, 400):
        images = image_set(total, config)
        received = len(images.splits["calibration"])
        if received > total / 2 + 6:  # more than its share
            break
    message = refused(images, {"calibration": received + 1})
    assert "takes 50 % of the images" in message
    (certain,) = re.findall(rf"of the images: {received + 1} need ([\d,]+) to be nearly certain", message)
    assert total < int(certain) <= 2 * (received + 1)


def test_another_share_that_would_do_does() -> None:
    config = Data(splits=Splits(0.5, 0.2, 0.1, 0.2))
    minimum = {"calibration": 128, "test": 50}
    message = refused(image_set(300, config), minimum)
    value = float(re.findall(r"raise data\.splits\.calibration to ([\d.]+)", message)[0])
    check_split_sizes(image_set(300, replace(config, splits=Splits(0.5, 0.2, value, 0.2))), minimum)


@pytest.mark.parametrize("count", [150, 40])
def test_no_share_is_named_where_none_would_do(count: int) -> None:
    message = refused(image_set(count, Data()), {"calibration": 128, "test": 50})
    assert not re.search(r"raise data\.splits\.\w+ to", message)


def test_what_lies_unused_is_counted() -> None:
    config = Data(divide=Divide(train=Shares(train=1), validation=Shares(test=1), test=Shares(calibration=1)))
    images = image_set(30, config, ready=("train", "validation", "test"))
    images = replace(
        images, duplicates=5, conflicts=("x",), unreadable=(Unreadable("a", "b"),) * 2, others={".heic": 3}
    )
    message = refused(images, {"test": 60})
    assert "Test takes all of the ready-made validation images: 30 more are needed there" in message
    assert (
        "Not used: 30 ready-made images of train, 5 copies, 1 picture in two classes, 2 unreadable, 3 .heic." in message
    )


def test_a_part_of_a_ready_made_split_and_none(tmp_path: Path) -> None:
    config = Data(splits=Splits(0.9, 0, 0.1, 0))
    images: Any = image_set(200, config, ready=("train", "test"), trains=True)
    message = refused(images, {"calibration": 128})
    assert "Calibration takes 10 % of the ready-made train images: 128 need about 1,300, and " in message
    assert "No image goes to validation." in refused(images, {"validation": 1})


def copied(split: str) -> ImageSet:
    """Ready-made splits train, test and another one that holds nothing but copies of the test images."""
    images = {name: [random.Random(f"{name}{i}").randbytes(32).hex() for i in range(60)] for name in ("train", "test")}
    named = [*images.items(), (split, images["test"])]
    samples = [
        Sample(f"{name}/{i}", i % 2, digest, bytes, ready=name)
        for name, digests in named
        for i, digest in enumerate(digests)
    ]
    return split_images(SourceImages(samples, ["cat", "dog"]), Data(), trains=True)


def test_a_split_of_copies_is_told_why_it_is_empty_and_gets_no_advice_that_cannot_help() -> None:
    message = refused(copied("validation"), {"train": 2, "validation": 1})
    assert (
        "Validation takes all of the ready-made validation images, but 60 are copies of images that another "
        "split keeps: 1 more is needed there."
    ) in message
    assert "Add images that no other split holds, or take their copies out of the others" in message
    assert "data.splits.validation" not in message
    assert "Not used: 60 copies, 60 of them in another split." in message


def test_the_part_that_is_advised_gives_what_is_missing() -> None:
    message = refused(copied("validation"), {"train": 2, "validation": 1})
    (key, value) = re.findall(r"--set '(data\.divide\.train)=(.*)'", message)[0]
    assert (key, value) == ("data.divide.train", "{train: 0.8, validation: 0.1}")
    config = Data(divide=Divide(train=Shares(train=0.8, validation=0.1)))
    check_split_sizes(image_set(60, config, ("train", "test"), trains=True), {"train": 2, "validation": 1})


@pytest.mark.parametrize(
    ("config", "ready", "trains", "key"),
    [
        (Data(), (None,), True, "data.splits.test"),
        (Data(), (None,), False, "data.splits.test"),
        (Data(), ("train",), True, "data.splits.test"),
        (Data(), ("train",), False, "data.splits.test"),
        (Data(divide=Divide(train=Shares(train=0.9, test=0.1))), ("train",), True, "data.divide.train.test"),
        (Data(), ("train", "test"), True, None),
        (Data(), ("train", "test"), False, None),
    ],
)
def test_only_a_key_that_helps_is_to_be_raised(config: Data, ready: tuple, trains: bool, key: str | None) -> None:
    message = refused(image_set(60, config, ready, trains), {"test": 128})
    assert re.findall(r"raise ([\w.]+\w)", message) == ([key] if key else [])


def test_a_verdict_that_wants_more_images_counts_those_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "r.yaml").write_text("data: {source: digits}\nverify: {max_images: 60}")
    context = Context(load_recipe(tmp_path / "r.yaml"), tmp_path / "r.yaml", tmp_path / "artifacts")
    tests = len(context.images.splits["test"])
    inputs = BY_NAME["verify"].hand_over(context, Key({}, {}, ""))
    found = count_further_images(inputs, 60, 3838)
    assert found == (tests - 60, 20_000), "a fifth of them tests"
    result = Verified(INCONCLUSIVE, 60, 0.9, images_to_decide=3838)
    _log_verdict(context, replace(result, images_left=found[0], images_in_all=found[1]))
    assert (
        f"about 3,838 would. Add more test images, besides {tests - 60:,} that verify.max_images leaves out "
        "(about 20,000 images in all give as many), and raise verify.max_images (now 60) to as many. See"
    ) in caplog.text
    caplog.clear()
    _log_verdict(context, replace(result, images_to_decide=70, images_left=10))
    assert "There are enough: raise verify.max_images (now 60) to 70. See" in caplog.text


def test_a_minimum_that_is_missed_by_little_may_be_lowered_to_what_is_there() -> None:
    images = labelled(calibration=[0] * 75, test=[0] * 74)
    assert "go on with --set quantize.min_images=75 (scales" in refused(images, {"calibration": 100})
    message = refused(images, {"test": 100})
    assert "or lower verify.min_images (the verdict" in message
    assert "go on" not in message


def test_a_share_that_would_starve_another_split_is_not_advised() -> None:
    message = refused(image_set(200, Data(splits=Splits(0, 0, 0.9, 0.1))), {"calibration": 128, "test": 50})
    assert "raise data.splits.test" in message
    assert "raise data.splits.test to" not in message


def test_a_split_that_takes_of_several_says_how_many_more() -> None:
    config = Data(divide=Divide(train=Shares(test=0.5, train=0.5), validation=Shares(test=0.5, calibration=0.5)))
    images = image_set(30, config, ready=("train", "validation"), trains=True)
    assert f"Test needs {90 - len(images.splits['test'])} more." in refused(images, {"test": 90})


def test_divided_splits_say_whether_there_is_validation(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {path: x}")

    def validation(*overrides: str) -> int:
        return needed_images(load_recipe(tmp_path / "r.yaml", overrides), 2)["validation"]

    assert validation("data.divide.train={train: 0.8, test: 0.2}") == 0
    assert validation("data.divide.train={train: 0.8, validation: 0.2}") == 1
    assert validation("data.splits.validation=0") == 0
    assert validation("data.splits.validation=0", "train.early_stopping=2") == 1


def ready_made(*places: str) -> ImageSet:
    """One picture in several ready-made splits, among others; validation is not used."""
    samples = [Sample(f"{ready}/copy{n}", 0, "f" * 64, bytes, ready=ready) for n, ready in enumerate(places)]
    samples += [Sample("own", 1, "0" * 64, bytes, ready="test"), Sample("other", 1, "1" * 64, bytes, ready="train")]
    return split_images(SourceImages(samples, ["cat", "dog"]), Data(), trains=False)


def test_a_picture_in_two_ready_made_splits_tests() -> None:
    images = ready_made("train", "test", "train")
    assert [sample.name for sample in images.splits["test"]] == ["own", "test/copy1"]
    assert [sample.name for sample in images.splits["calibration"]] == ["other"]
    assert (images.duplicates, images.crossing) == (2, 2)
    lines = [line for _, line in images.log_lines(finished=True)]
    assert "left out 2 copies of pictures that have another name too, 2 of them in another split" in lines


def test_pictures_that_no_split_takes_are_counted_once() -> None:
    assert ready_made("validation", "validation").unused == {"validation": 1}


def test_a_split_without_images_is_said_where_it_is_needed() -> None:
    (line,) = [line for _, line in labelled(train=[0, 1], calibration=[0]).log_lines(finished=False)]
    assert line == "3 images: 2 train, 1 calibration, 0 test"


def test_no_share_is_to_be_raised_where_a_split_takes_all_there_is() -> None:
    message = refused(image_set(30, Data(), ready=("train", "test"), trains=True), {"calibration": 40, "test": 60})
    assert "Add images, or raise data.splits.calibration, or lower quantize.min_images" in message
    message = refused(image_set(30, Data(), ready=("train", "test"), trains=True), {"test": 60})
    assert "30 more are needed there. Add images, or lower verify.min_images" in message


def test_a_split_without_a_minimum_is_not_read() -> None:
    images = labelled(train=[0, 1], calibration=[0, 1])
    check_split_sizes(replace(images, splits={"calibration": images.splits["calibration"]}), {"calibration": 1})
