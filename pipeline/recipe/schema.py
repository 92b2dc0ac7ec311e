"""What a recipe says: one frozen dataclass a section, whose fields carry their limits and help.

In the ``Annotated`` of a field stand what its values are held to (``pipeline.recipe.limits``) and, as a text, what a
user needs to know; the tables in README.md and docs/recipe.md are made from them (``make key-tables``). A section that
such a text describes is one key of those tables. Standard library only, Python 3.10 syntax.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from export.tensorrt.sidecar import PRECISIONS, Precision
from pipeline.recipe.limits import (
    DENSE,
    EACH_ONCE,
    NAMED,
    ORDERED,
    VARIANT_NAMED,
    AboveZero,
    BatchSize,
    BelowOne,
    Limit,
    Positive,
    Seconds,
    Share,
    Whole,
    at_least,
    within,
)
from pipeline.recipe.runtime import RuntimeOptions

TRAINED_WITH = ("train", "validation")


# Where the same picture stands in several splits, the first of these keeps it. Hash ranges are dealt in this order too.
SPLITS = ("test", "validation", "calibration", "train")


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "calib": "calibration",
    "calibration": "calibration",
}


BACKBONES = Literal[
    "resnet18", "resnet20", "resnet34", "resnet50-blocks",  # written out from blocks
    "resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2",  # keras.applications, and below
    "efficientnetb0", "efficientnetb1", "efficientnetb2", "efficientnetb3",
    "efficientnetb4", "efficientnetb5", "efficientnetb6", "efficientnetb7",
    "efficientnetv2b0", "efficientnetv2b1", "efficientnetv2b2", "efficientnetv2b3",
    "efficientnetv2s", "efficientnetv2m", "efficientnetv2l",
    "mobilenet", "mobilenetv2", "mobilenetv3small", "mobilenetv3large",
    "densenet121", "densenet169", "densenet201",
    "convnexttiny", "convnextsmall", "convnextbase", "convnextlarge", "convnextxlarge",
    "inceptionv3", "inceptionresnetv2", "xception", "nasnetmobile", "nasnetlarge", "vgg16", "vgg19",
]  # fmt: skip
IMAGENET = "imagenet"  # as model.weights: what keras.applications publishes, downloaded and checked by Keras
PREPROCESSING = Literal["auto", "caffe", "tf", "torch", "unit", "none"]
METHODS = Literal["auto", "minmax", "percentile_99.9", "percentile_99.99", "percentile_99.999", "entropy", "mse"]


@dataclass(frozen=True)
class Splits:
    """Shares of the images; each image's own hash decides where it goes. They need not sum to 1 exactly.

    With a finished model nothing is trained: only calibration and test count, in their proportion; unless it is given,
    half and half.
    """

    train: Share = 0.6
    validation: Share = 0.1
    calibration: Share = 0.1
    test: Share = 0.2


@dataclass(frozen=True)
class Shares:
    """Where the images of one ready-made split go. All 0: see ``Divide``."""

    train: Share = 0.0
    validation: Share = 0.0
    calibration: Share = 0.0
    test: Share = 0.0


@dataclass(frozen=True)
class Divide:
    """Ready-made splits (folders train/, val/, test/, calibration/; a split column; x_train and x_test of an .npz).

    By default each stays what it is, and train gives up images for the splits that are missing, in the proportions of
    ``data.splits``. With a finished model nothing is trained: see ``pipeline.data.splits``.
    """

    train: Annotated[Shares, "where the images of a ready-made train/ go"] = field(default_factory=Shares)
    validation: Annotated[Shares, "of val/"] = field(default_factory=Shares)
    calibration: Annotated[Shares, "of calibration/"] = field(default_factory=Shares)
    test: Annotated[Shares, "of test/"] = field(default_factory=Shares)


@dataclass(frozen=True)
class Columns:
    """Names of a CSV file's columns."""

    image: Annotated[str, "csv: the column with the paths of the images"] = "path"
    label: Annotated[str, "with their classes"] = "label"
    split: Annotated[str, "with their ready-made splits; it may be missing"] = "split"


@dataclass(frozen=True)
class Data:
    """Labelled images."""

    source: Annotated[Literal["folder", "csv", "npz", "tfds", "digits"], "where they come from"] = "folder"
    path: Annotated[
        str | None,
        "folder; `.csv`, or a folder of `<split>.csv`; `.npz` as of keras.datasets; tfds: its data folder",
    ] = None
    download: Annotated[Literal["flowers", "mnist"] | None, "what to fetch where `path` is null"] = None
    tfds: Annotated[str | None, "a name of tensorflow-datasets"] = None
    label_pattern: Annotated[
        str | None, "folder: a regular expression whose group finds the class in the file's name"
    ] = None
    columns: Columns = field(default_factory=Columns)
    classes: Annotated[
        str | None, "a file with the names of all classes in the order of the outputs, or `imagenet`"
    ] = None
    ready_splits: Annotated[bool, "false: the images of ready-made splits are pooled and dealt out again"] = True
    divide: Divide = field(default_factory=Divide)
    splits: Annotated[
        Splits,
        Limit("at least one share above 0", lambda splits: any(vars(splits).values())),
        "shares of the images, by their own content; with a finished model calibration and test alone",
    ] = field(default_factory=Splits)
    duplicates_across_classes: Annotated[Literal["error", "drop"], "one picture in two classes"] = "error"
    resize: Annotated[
        Literal["stretch", "crop", "imagenet", "pad"],
        "crop: the largest centred part of the input's shape; imagenet: short side to 8/7 of the input size (256 for "
        "224), then the centre; pad: black around, never enlarged",
    ] = "stretch"
    max_bad_images: Annotated[Whole, "so many unreadable images are named and left out; more are refused"] = 0
    salt: Annotated[str, "another salt, another split"] = ""


@dataclass(frozen=True)
class Preprocessing:
    """What a model's training did to RGB pixels, where no mode says it: (pixels - mean) * scale."""

    channel_order: Annotated[Literal["RGB", "BGR"], "of the model's input, of mean and of scale"] = "RGB"
    mean: Annotated[tuple[float, ...] | str, "three numbers, or a `.npy` file: (3,) or (height, width, 3)"] = (
        0.0,
        0.0,
        0.0,
    )
    scale: Annotated[tuple[float, ...] | float, "one number, or three"] = 1.0
    mean_of: Annotated[Literal["pixels", "scaled"], "scaled: pixels * scale - mean, a mean of scaled pixels"] = "pixels"


@dataclass(frozen=True)
class Model:
    """A backbone with a new head, or (``path``) a finished Keras classifier."""

    path: Annotated[
        str | None, "a `.keras` or `.h5` file or a SavedModel folder, deployed as it is; `inspect` describes it"
    ] = None
    output: Annotated[Literal["auto", "logits", "softmax", "sigmoid"], "what the model of `path` ends with"] = "auto"
    allow: Annotated[tuple[str, ...], "what in `path` may run code: names of Lambda layers, SavedModel"] = ()
    called_in_training: Annotated[
        Literal["refuse", "inference"],
        "layers that Keras 2 calls with training=True, so that answers depend on the batch or on chance: inference "
        "takes them as at inference, with other answers than the file's, which the verdict says then",
    ] = "refuse"
    classes: Annotated[
        tuple[str, ...] | str | None, "names in the order of the outputs, or a `.txt` or `.json` file of them"
    ] = None
    backbone: Annotated[BACKBONES, "a network of keras.applications, or one that is written out from blocks"] = (
        "resnet50"
    )
    weights: Annotated[
        str | None, "a file with the backbone's pretrained weights, or `imagenet`; null: from scratch"
    ] = None
    input_size: Annotated[int, "height and width in pixels: 32 to 600, from the smallest that the backbone takes"] = 224
    preprocessing: Annotated[
        PREPROCESSING | Preprocessing,
        "auto: what belongs to the backbone; or `{channel_order, mean, scale, mean_of}`",
    ] = "auto"
    padding: Annotated[
        Literal["same", "valid"], "stem of resnet18, resnet34, resnet50-blocks; valid: 3 zeros around"
    ] = "same"
    head: Annotated[
        Literal["new", "published"], "published: the 1,000 ImageNet classes as they are, nothing is trained"
    ] = "new"
    pooling: Annotated[Literal["avg", "max", "avg2x2", "flatten"], "avg2x2: AveragePooling (2,2), then flatten"] = "avg"
    dense: Annotated[tuple[int, ...], DENSE, "hidden Dense layers of the head, ReLU"] = ()
    dropout: Annotated[BelowOne, "before the last Dense layer"] = 0.0

    @property
    def finished(self) -> bool:
        """Whether the model is deployed as it is: nothing is trained."""
        return self.path is not None or self.head == "published"


@dataclass(frozen=True)
class HeadPhase:
    """First phase: the backbone is frozen, only the head learns."""

    epochs: Annotated[Whole, "the backbone is frozen, only the head learns"] = 5
    learning_rate: Annotated[AboveZero, "of Adam"] = 1e-3


@dataclass(frozen=True)
class FineTunePhase:
    """Second phase: everything learns, at a small rate."""

    epochs: Annotated[Whole, "everything learns, at a small rate"] = 5
    learning_rate: Annotated[AboveZero, "of Adam"] = 1e-4
    freeze_batchnorm: Annotated[bool, "keep the pretrained BatchNorm statistics; false when training from scratch"] = (
        True
    )


@dataclass(frozen=True)
class Augment:
    """Random changes of training images. They are not part of the model, so they are not exported."""

    flip: Annotated[bool, "left to right, every second image"] = False
    rotation: Annotated[float, within(0, 180, "0 to 180 degrees"), "up to so many degrees either way"] = 0.0
    zoom: Annotated[BelowOne, "by up to this share, in or out"] = 0.0


@dataclass(frozen=True)
class Train:
    """Two-phase transfer learning."""

    batch_size: Annotated[BatchSize, "images in a step"] = 32
    head: HeadPhase = field(default_factory=HeadPhase)
    fine_tune: FineTunePhase = field(default_factory=FineTunePhase)
    schedule: Annotated[Literal["cosine", "constant"], "cosine: each phase's rate falls to 0 along a half wave"] = (
        "cosine"
    )
    early_stopping: Annotated[Whole, "a phase ends after so many epochs without a better one; 0: never"] = 0
    class_weights: Annotated[Literal["none", "balanced"], "balanced: rare classes count as much as common ones"] = (
        "none"
    )
    augment: Augment = field(default_factory=Augment)
    mixed_precision: Annotated[
        Literal["auto", "always", "never"], "float16 arithmetic while training; auto: on GPUs"
    ] = "auto"
    feature_cache_mib: Annotated[
        Whole, "features of a frozen backbone up to this size are computed once; 0: every epoch"
    ] = 1024
    checkpoint_seconds: Annotated[
        float, at_least(0, "0 or more"), "the state to resume from is written at most so often"
    ] = 60.0
    seed: Annotated[
        int, within(0, 2**32 - 1, "0 to 2**32 - 1"), "of new weights and of the order and changes of images"
    ] = 1
    save_backbone: Annotated[bool, "also write the backbone's weights, for another recipe to start from"] = False


@dataclass(frozen=True)
class Export:
    """Keras to ONNX."""

    opset: Annotated[Literal[17], "what tf2onnx exports this family of models to without leftovers"] = 17
    top_k: Annotated[
        int,
        at_least(0, "0 (none) or more"),
        "best classes that the graph itself picks, so that only they travel back; 0: the host picks",
    ] = 0


@dataclass(frozen=True)
class Quantize:
    """The typed FP16 graph and the INT8 Q/DQ graph."""

    method: Annotated[
        METHODS,
        "how the clipping point of each activation is chosen; auto: the one that is best on held-out images",
    ] = "auto"
    equalize: Annotated[
        bool, "give the channels of an activation alike ranges; the model's answers stay what they are"
    ] = True
    bias_correction: Annotated[bool, "take the mean error of quantization out of the biases, where that helps"] = True
    sensitivity: Annotated[
        Literal["auto", "always", "never"],
        "what each layer costs alone; auto: where INT8 or FP16 throughout misses `verify.thresholds`",
    ] = "auto"
    sensitivity_images: Annotated[
        Positive, "held-out images that measure a layer; all of them judge the whole model"
    ] = 32
    max_kept: Annotated[
        float,
        within(0, 1),
        "share of the convolutions that may stay in FP16 to meet `verify.thresholds.int8`",
    ] = 0.1
    max_kept_fp32: Annotated[
        float,
        within(0, 1),
        "share of the convolutions that may stay in FP32 to meet `verify.thresholds.fp16`",
    ] = 0.75
    held_out: Annotated[
        float,
        Limit("above 0, up to 0.5", lambda share: 0 < share <= 0.5),
        "share of the calibration images that gives no scales but judges them",
    ] = 0.25
    min_images: Annotated[Positive, "fewer calibration images than this are refused"] = 128
    max_images: Annotated[int, "no more calibration images than this are used"] = 512
    batch_size: Annotated[
        BatchSize,
        "all activations of a batch are in memory at once: ResNet-50 at 224x224 takes 82 MB an image",
    ] = 8
    tensorrt8: Annotated[
        bool, "also write what TensorRT 8.6 builds from, `model.fp16-trt8.onnx` and `model.int8-trt8.onnx`"
    ] = False


@dataclass(frozen=True)
class Profile:
    """The batch sizes that an engine takes, as a recipe says them; everything else knows `BatchProfile`."""

    min: int = 1
    opt: int = 8
    max: int = 32


@dataclass(frozen=True)
class Build:
    """TensorRT engines."""

    flavour: Annotated[
        Literal["auto", "tensorrt", "rtx"],
        "`tensorrt` (10.0 to 11.x, 8.6) or `rtx` (TensorRT-RTX, builds without a GPU); auto: what can build here, for "
        "the GPU that is here",
    ] = "auto"
    precisions: Annotated[tuple[Precision, ...], EACH_ONCE, "an engine each"] = PRECISIONS
    profile: Annotated[
        Profile, ORDERED, "batch sizes the engine takes, tuned for `opt`; all three alike: a fixed batch"
    ] = field(default_factory=Profile)
    variants: Annotated[
        Mapping[Annotated[str, VARIANT_NAMED], Annotated[Profile, ORDERED]],
        "several engines of each precision instead of `profile`, by name: `{latency: {min: 1, opt: 1, max: 1}}`",
    ] = field(default_factory=dict)
    tf32: Annotated[bool, "TF32 in FP32 convolutions: faster, and parity with Keras is lost"] = False
    workspace_mib: Annotated[
        int | None, within(1, 1 << 24, "1 to 16777216"), "limit of scratch memory; null: the GPU's memory"
    ] = None
    optimization_level: Annotated[
        int | None, within(0, 5), "how long the builder searches; null: TensorRT's own choice"
    ] = None
    targets: Annotated[
        tuple[str, ...],
        "`rtx`: GPUs to build for, `[SM86, SM89]` or `[current]`; none: TensorRT-RTX's choice, which the sidecar says",
    ] = ()
    timing_cache: Annotated[
        str | None,
        "`tensorrt`: a file that keeps what was timed; the next build, and the other engines of this one, are faster",
    ] = None
    version_compatible: Annotated[
        bool,
        "`tensorrt`: the engine runs on later TensorRT versions too (8 on 10, 10 on 11, any later one of its own); it "
        "may be slower",
    ] = False
    hardware_compatibility: Annotated[
        Literal["none", "ampere_plus", "same_compute_capability"],
        "`tensorrt`: on more GPUs, and slower: every one from Ampere on, or every one of that generation",
    ] = "none"
    strip_weights: Annotated[
        bool,
        "10.x and later, with a GPU: plans without weights, which come back from the ONNX file when they are loaded",
    ] = False
    max_aux_streams: Annotated[
        int | None, within(0, 64), "further CUDA streams an inference may use; null: TensorRT's choice"
    ] = None
    builder_threads: Annotated[int | None, within(1, 1024, "1 to 1024"), "null: TensorRT's choice"] = None


@dataclass(frozen=True)
class Thresholds:
    """What a candidate must reach against its reference. A null is not asked for."""

    relative_error: Annotated[
        float | Literal["auto"] | None,
        Limit("0 to 100, as a share of the largest logit", lambda error: error == "auto" or 0 <= error <= 100),
        "at most: largest difference over the largest reference logit; auto: 1e-5, or, where rounding alone makes more "
        "of it, four times what moving each pixel by a unit in the last place does to Keras itself",
    ] = None
    top1_agreement: Annotated[
        float | None,
        within(0, 1, "a share from 0 to 1 (0.99 is 99 %)"),
        "at least: share of images with the same top class",
    ] = None
    sqnr_db: Annotated[
        float | None,
        within(0, 1000, "0 to 1000 dB"),
        "at least: signal to quantization noise ratio of the logits",
    ] = None
    accuracy_drop: Annotated[
        float | None,
        within(-1, 1, "a share from -1 to 1 (0.01 is one point)"),
        "at most: accuracy lost",
    ] = None


@dataclass(frozen=True)
class VerifyThresholds:
    """Thresholds by the precision of the candidate."""

    fp32: Thresholds = field(default_factory=lambda: Thresholds(relative_error="auto"))
    fp16: Thresholds = field(default_factory=lambda: Thresholds(top1_agreement=0.999, sqnr_db=50.0))
    int8: Thresholds = field(default_factory=lambda: Thresholds(top1_agreement=0.99, sqnr_db=20.0))


@dataclass(frozen=True)
class Verify:
    """Parity, hop by hop, on test images that selected nothing."""

    min_images: Annotated[Positive, "fewer test images than this are refused"] = 50
    max_images: Annotated[int, "no more test images than this are used"] = 1000
    batch_size: Annotated[BatchSize, "images that are compared at once"] = 32
    thresholds: VerifyThresholds = field(default_factory=VerifyThresholds)


@dataclass(frozen=True)
class Benchmark:
    """Latency and throughput."""

    batches: Annotated[
        tuple[int, ...],
        Limit("sizes from 1", lambda sizes: all(size >= 1 for size in sizes)),
        "none: 1 and the largest of each profile",
    ] = ()
    seconds: Annotated[Seconds, "measured time for each backend, precision and batch"] = 1.5
    warmup_seconds: Annotated[Seconds, "before them, not measured"] = 0.3
    min_samples: Annotated[Positive, "measured at least, however long they take"] = 20


@dataclass(frozen=True)
class Infer:
    """Batch inference."""

    samples: Annotated[Whole, "test images that are classified where none are named"] = 48
    batch_size: Annotated[BatchSize, "images that are classified at once"] = 32
    top_k: Annotated[Positive, "best classes in each row"] = 3


@dataclass(frozen=True)
class Recipe:
    """One whole recipe: what runs, on which data, and what it must reach."""

    name: Annotated[str, NAMED, "of the folder in artifacts/; without one, that of the recipe's file"]
    description: Annotated[str, "what it is for, in a sentence"] = ""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    export: Export = field(default_factory=Export)
    quantize: Quantize = field(default_factory=Quantize)
    build: Build = field(default_factory=Build)
    verify: Verify = field(default_factory=Verify)
    benchmark: Benchmark = field(default_factory=Benchmark)
    infer: Infer = field(default_factory=Infer)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
