"""Training: features computed once, resuming, the same weights twice, augmentation, early stopping, pictures."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.errors import ModelError, ProjectError
from export.files import ROOT
from export.preprocessing import PreprocessingSpec
from pipeline.artifacts.files import read_json
from pipeline.data.dataset import ImageSet, Pixels, load_image_set
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import Sample
from pipeline.models import classifier
from pipeline.models.resnet import convolutional_block
from pipeline.recipe.schema import SPLITS, Augment, Data, FineTunePhase, HeadPhase, Model, Recipe, Splits, Train
from pipeline.stages.train import STAGE
from pipeline.terminal.command_line import Invocation
from pipeline.terminal.console import start_tensorflow
from pipeline.training import inputs as batches
from pipeline.training import loop
from pipeline.training.checkpoint import Checkpoint, Epoch, Progress, read_history
from pipeline.training.inputs import Batches, Images, augment_image
from pipeline.training.train import interleave_classes, train
from pipeline.workflow.context import Context
from tests.conftest import make_colour_images
from tests.stage_parts import run_stage

SMALL, LARGE = (Pixels(DecodeSpec((side, side), "stretch"), 0) for side in (32, 64))
start_tensorflow()
import keras  # noqa: E402

MODEL = Model(backbone="resnet20", input_size=32)
TRAIN = Train(
    batch_size=16,
    head=HeadPhase(2, 0.01),
    fine_tune=FineTunePhase(0),
    checkpoint_seconds=0,
)


def tiny_backbone(*_: Any) -> Any:
    """One block: what is tested here is the loop, and a ResNet-20 takes seconds to trace.

    Sixteen channels, because oneDNN in TensorFlow 2.21 crashes on gradients of four.
    """
    inputs = keras.Input((32, 32, 3), name="pixels")
    x = keras.layers.Conv2D(16, 3, 2, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9, name="stem_bn")(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    return keras.Model(inputs, convolutional_block(x, (16, 16), 3, 2, name="a"))


@pytest.fixture(autouse=True)
def _small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "build_backbone", tiny_backbone)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = make_colour_images(tmp_path_factory.mktemp("colours") / "images", 24)
    return load_image_set(Data(path=str(folder), splits=Splits(0.6, 0.2, 0.1, 0.1)))


def recipe(settings: Train = TRAIN, model: Model = MODEL) -> Recipe:
    base = Recipe("toy", model=model, train=settings)
    return replace(base, quantize=replace(base.quantize, min_images=1), verify=replace(base.verify, min_images=1))


def run(settings: Train, images: ImageSet, folder: Path, model: Model = MODEL, **more: Any) -> list[np.ndarray]:
    """Weights after the stage."""
    folder.mkdir(parents=True)
    train(recipe(settings, model), images, folder, **more)
    return keras.saving.load_model(folder / "model.keras", compile=False).get_weights()


def largest_difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("pooling", "dropout"), [("avg", 0.0), ("avg2x2", 0.4)])
def test_features_computed_once_give_the_same_as_the_plain_path(
    images: ImageSet, tmp_path: Path, pooling: Any, dropout: float
) -> None:
    model = replace(MODEL, pooling=pooling, dense=(8,), dropout=dropout)
    once = run(TRAIN, images, tmp_path / "once", model)
    plain = run(replace(TRAIN, feature_cache_mib=0), images, tmp_path / "plain", model)
    assert largest_difference(once, plain) < 1e-4
    a, b = (read_history(tmp_path / name / "history.json") for name in ("once", "plain"))
    for one, other in zip(a, b, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.val_accuracy == pytest.approx(other.val_accuracy)


def test_features_above_the_limit_or_behind_augmentation_are_not_kept(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("features were computed once")

    monkeypatch.setattr(loop, "compute_features", never)
    for name, settings in {
        "limit": replace(TRAIN, feature_cache_mib=0),
        "augment": replace(TRAIN, augment=Augment(flip=True)),
    }.items():
        run(replace(settings, head=HeadPhase(1)), images, tmp_path / name)
    with pytest.raises(AssertionError, match="computed once"):
        run(TRAIN, images, tmp_path / "once")


def test_one_seed_gives_the_same_weights_twice(images: ImageSet, tmp_path: Path) -> None:
    settings = replace(
        TRAIN, head=HeadPhase(1), fine_tune=FineTunePhase(1), augment=Augment(flip=True, rotation=10, zoom=0.1)
    )
    first, second = (run(settings, images, tmp_path / name) for name in "ab")
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    other = run(replace(settings, seed=2), images, tmp_path / "c")
    assert largest_difference(first, other) > 1e-4


def test_frozen_batchnorm_statistics_do_not_move(images: ImageSet, tmp_path: Path) -> None:
    run(replace(TRAIN, head=HeadPhase(1), fine_tune=FineTunePhase(1)), images, tmp_path / "t")
    trained = keras.saving.load_model(tmp_path / "t" / "model.keras", compile=False)
    keras.utils.set_random_seed(TRAIN.seed)
    fresh = classifier.build_classifier(MODEL, 4).backbone
    norms = [layer for layer in fresh.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    for layer in norms:
        for before, after in zip(layer.get_weights(), trained.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    moved = trained.get_layer("a_1_conv").get_weights()[0] - fresh.get_layer("a_1_conv").get_weights()[0]
    assert 0 < np.abs(moved).max() < 0.1, "the convolutions did learn"


@pytest.mark.parametrize(
    ("finished", "seconds"),
    [(1, 0), (2, 3600), (3, 3600)],
    ids=["head phase", "between the phases", "fine-tuning phase"],
)
def test_a_training_resumes_where_it_was_interrupted(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int, seconds: float
) -> None:
    """Ctrl-C in the second step of an epoch, also where no checkpoint was due before."""
    settings = replace(TRAIN, head=HeadPhase(2, 0.01), fine_tune=FineTunePhase(2))
    model = replace(MODEL, dropout=0.3)
    whole = run(settings, images, tmp_path / "whole", model)
    put, epochs = Checkpoint.put, []

    def counted(self: Checkpoint, progress: Progress) -> None:
        put(self, progress)
        epochs.append(len(progress.history))

    class Bar:
        steps = 0

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self) -> None:
            self.steps += len(epochs) == finished
            if self.steps == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "put", counted)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "progress_bar", lambda **_: Bar())
        first = Checkpoint(tmp_path / "c", "key", seconds)
        with pytest.raises(KeyboardInterrupt):
            run(settings, images, tmp_path / "a", model, checkpoint=first)
    assert (tmp_path / "c").exists() == (seconds == 0)
    said = f"Run it again: the training resumes after epoch {finished}."
    assert first.keep() == said
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["key.npz"]
    second = Checkpoint(tmp_path / "c", "key", seconds)
    assert second.keep() == said, "stopped before it looked: what the first one left still counts"
    epochs.clear()
    resumed = run(settings, images, tmp_path / "b", model, checkpoint=second)
    assert epochs == list(range(finished + 1, 5))
    assert largest_difference(whole, resumed) < 1e-5
    history, expected = (read_history(tmp_path / name / "history.json") for name in ("b", "whole"))
    assert [row.epoch for row in history] == [1, 2, 3, 4]
    assert [row.loss for row in history] == pytest.approx([row.loss for row in expected], rel=1e-4)


def test_nothing_is_promised_where_nothing_was_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from_the_beginning = "No finished epoch was saved: the training starts from the beginning."
    assert Checkpoint(tmp_path / "c", "key", 3600).keep() == from_the_beginning
    (tmp_path / "file").write_text("")
    full = Checkpoint(tmp_path / "file", "key", 3600)
    full.put(Progress("head", 1, [Epoch("head", 1, 1.0, 0.5)]))
    assert full.keep() == from_the_beginning
    assert "no checkpoint was written" in caplog.text


def test_an_interrupted_train_stage_says_from_where_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(recipe: Recipe, images: object, folder: Path, checkpoint: Checkpoint) -> None:
        checkpoint.put(Progress("head", 3, [Epoch("head", n, 1.0, 0.5) for n in (1, 2, 3)]))
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.training.train.train", interrupted)
    none: tuple[Sample, ...] = ()
    nothing = ImageSet(("a", "b"), dict.fromkeys(SPLITS, none), 0)
    for model, notes in (
        (MODEL, ["Run it again: the training resumes after epoch 3."]),
        (Model(path="m.keras"), None),
    ):
        context = Context(recipe(model=model), tmp_path / "toy.yaml", tmp_path)
        context.__dict__["images"] = nothing
        with pytest.raises(KeyboardInterrupt) as caught:
            run_stage(STAGE, context, tmp_path / "train")
        assert getattr(caught.value, "__notes__", None) == notes


def test_a_training_of_no_epoch_says_that_nothing_is_trained(
    images: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(replace(TRAIN, head=HeadPhase(0), fine_tune=FineTunePhase(0)), images, tmp_path / "none")
    assert "are both 0: nothing is trained" in caplog.text


def test_a_checkpoint_of_another_recipe_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    progress = Progress("head", 1, [Epoch("head", 1, 1.0, 0.5)], (0.5, -1.0), 0, {"model": [np.ones(2)]})
    Checkpoint(tmp_path, "one", 0).put(progress)
    found = Checkpoint(tmp_path, "one", 0).read()
    assert found is not None
    assert (found.phase, found.epochs, found.history, found.score) == ("head", 1, progress.history, (0.5, -1.0))
    np.testing.assert_array_equal(found.arrays["model"][0], np.ones(2))
    assert Checkpoint(tmp_path, "other", 0).read() is None
    (tmp_path / "one.npz").write_bytes((tmp_path / "one.npz").read_bytes()[:60])
    assert Checkpoint(tmp_path, "one", 0).read() is None
    Checkpoint(tmp_path, "other", 0).put(progress)
    assert [p.name for p in tmp_path.iterdir()] == ["other.npz"], "what no recipe state can use goes"


def test_early_stopping_ends_a_phase(images: ImageSet, tmp_path: Path) -> None:
    settings = replace(TRAIN, head=HeadPhase(30, 0.05), early_stopping=2)
    run(settings, images, tmp_path / "t")
    history = read_history(tmp_path / "t" / "history.json")
    assert len(history) < 30
    scores = [(row.val_accuracy, -(row.val_loss or 0.0)) for row in history]
    assert len(scores) - 1 - scores.index(max(scores)) == 2


def test_without_validation_images_the_last_epoch_counts(images: ImageSet, tmp_path: Path) -> None:
    splits = {**images.splits, "validation": (), "train": images.splits["train"] + images.splits["validation"]}
    pooled = replace(images, splits=splits)
    toy = recipe()
    toy = replace(toy, data=replace(toy.data, splits=Splits(0.8, 0.0, 0.1, 0.1)))
    (tmp_path / "t").mkdir()
    result = train(toy, pooled, tmp_path / "t")
    assert result.best_validation_accuracy is None
    written = read_json(tmp_path / "t" / "history.json")
    assert written["schema"] == 1
    assert set(written["epochs"][0]) == {"phase", "epoch", "accuracy", "loss"}


def test_a_history_of_an_earlier_version_is_refused_with_the_command_that_remakes_it(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text('[{"phase": "head", "epoch": 1, "loss": 1.0, "accuracy": 0.5}]')
    invocation = Invocation(Path("configs/mine.yaml"), tmp_path, ("train.seed=2",))
    command = r"train -c configs/mine\.yaml --set train\.seed=2 --artifacts .* again\."
    with (
        pytest.raises(ProjectError, match=rf"schema 1 in .*history\.json\. Received: a list\. Run .*{command}"),
        invocation.completing_errors(),
    ):
        read_history(path)


def test_class_weights() -> None:
    weights = loop._class_weights(np.array([0, 0, 0, 1]))
    assert weights == {0: pytest.approx(4 / 6), 1: pytest.approx(2.0)}


def test_mixed_precision_leaves_a_float32_model(images: ImageSet, tmp_path: Path) -> None:
    run(replace(TRAIN, head=HeadPhase(1), mixed_precision="always", class_weights="balanced"), images, tmp_path / "t")
    model = keras.saving.load_model(tmp_path / "t" / "model.keras", compile=False)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


def test_a_diverging_training_says_which_rate(images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Lower train\.fine_tune\.learning_rate"):
        run(replace(TRAIN, head=HeadPhase(0), fine_tune=FineTunePhase(2, 1e30)), images, tmp_path / "t")


def test_pictures_and_history(images: ImageSet, tmp_path: Path) -> None:
    run(replace(TRAIN, head=HeadPhase(1)), images, tmp_path / "t")
    with np.load(tmp_path / "t/samples.npz") as samples:
        pixels, labels = samples["pixels"], samples["labels"]
    assert (pixels.dtype, pixels.shape[1:], labels.dtype) == (np.uint8, (32, 32, 3), np.int64)
    assert labels.tolist() == [s.label for s in interleave_classes(images.splits["train"])][:6]
    assert not list((tmp_path / "t").glob("*.png")), "the report draws them"
    shown = [s.label for s in interleave_classes(images.splits["train"])]
    assert shown[:4] == [0, 1, 2, 3]
    assert len(shown) == len(images.splits["train"])


def test_augmentation() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    same = augment_image(pixels, Augment(), np.random.default_rng(1))
    np.testing.assert_array_equal(same, pixels)
    flipped = [augment_image(pixels, Augment(flip=True), np.random.default_rng(i)) for i in range(20)]
    mirrored = sum(np.array_equal(image, pixels[:, ::-1]) for image in flipped)
    assert 3 < mirrored < 17
    assert mirrored + sum(np.array_equal(image, pixels) for image in flipped) == 20
    grey = np.full((21, 21, 3), 100, np.uint8)
    turned = augment_image(grey, Augment(rotation=45, zoom=0.5), np.random.default_rng(3))
    assert turned.shape == grey.shape
    assert (turned[10, 10] == 100).all(), "the centre stays"


def test_batches_hold_every_image_once_in_an_order_that_seed_and_epoch_decide(images: ImageSet) -> None:
    source = Images(
        images.splits["train"], Pixels(DecodeSpec((32, 32), "stretch"), 0), PreprocessingSpec.from_mode("unit"), "x"
    )
    one, again = Batches(source, 7, 5), Batches(source, 7, 5)
    orders = []
    for epoch in (0, 1):
        one.set_epoch(epoch)
        assert sorted(one.order) == list(range(len(source.labels)))
        assert sum(len(one[i][1]) for i in range(len(one))) == len(source.labels)
        orders.append(one.order.tolist())
    assert orders[0] != orders[1]
    again.set_epoch(1)
    assert again.order.tolist() == orders[1]


def photos(folder: Path, count: int) -> tuple[Sample, ...]:
    """Samples of one file, in two classes."""
    path = folder / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    return tuple(Sample(str(i), i % 2, str(i), lambda: path, path) for i in range(count))


def source_of(samples: tuple[Sample, ...], side: int) -> Images:
    decode = DecodeSpec((side, side), "stretch")
    return Images(samples, Pixels(decode, 0), PreprocessingSpec.from_mode("unit"), "images")


def test_images_above_the_size_of_the_cache_are_checked_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = photos(tmp_path, 4096)
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    tracemalloc.start()
    source_of(samples, 64)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert highest < len(samples) * 64 * 64 * 3 / 2


def test_a_slow_model_has_no_more_batches_waiting_than_its_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    made, ahead = [], []

    class Counted(Batches):
        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            made.append(index)
            return super().__getitem__(index)

    def wait(batch: int, logs: Any) -> None:
        time.sleep(1.0 * (batch == 0))  # long enough for all that are decoded ahead; less only hides some of them
        ahead.append(len(made) - batch)

    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    model.compile("sgd", "mse")
    source = Counted(source_of(photos(tmp_path, 400), 8), 2, 1)
    model.fit(source, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_begin=wait)])
    assert len(ahead) == 200
    assert max(ahead) <= 14  # ten in the queue, one decoded, one taken, two for the model to see their shapes


@pytest.mark.slow
def test_training_on_several_devices(tmp_path: Path) -> None:
    """MirroredStrategy over two logical CPUs: what several GPUs do, without GPUs."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.terminal.console import start_tensorflow
import tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2)
from pipeline.training import loop
from pipeline.data.dataset import Pixels, load_image_set
from pipeline.data.decode import DecodeSpec
from pipeline.models.classifier import build_classifier
from pipeline.recipe.schema import Data, Splits
from tests.stage_parts import run_stage
from tests.conftest import make_colour_images
from tests.pipeline.training.test_training import TRAIN, MODEL, recipe
from dataclasses import replace
from pipeline.recipe.schema import FineTunePhase
folder = make_colour_images(Path({str(tmp_path)!r}) / "images", 24)
images = load_image_set(Data(path=str(folder), splits=Splits(0.6, 0.2, 0.1, 0.1)))
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    built = build_classifier(MODEL, 4)
toy = recipe(replace(TRAIN, fine_tune=FineTunePhase(1)))
history = loop.fit(toy, built, images, Pixels(DecodeSpec((32, 32), "stretch"), 0), None, strategy)
assert len(history) == 3, history
print(strategy.num_replicas_in_sync, history[-1].val_accuracy)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.startswith("2 ")
