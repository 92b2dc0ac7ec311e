"""The schema of a recipe: one frozen dataclass per section, whose fields carry their limits and help texts.

``Annotated`` holds a field's limits (``pipeline.recipe.limits``) and, as a string, its help text; ``make key-tables``
writes the tables in README.md and docs/recipe.md from them. A section with a help text is one key of those tables.
Standard library only, Python 3.10 syntax.
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
# If the same picture is in several splits, the first of these keeps it. Hash ranges are assigned in this order too.
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
IMAGENET = "imagenet"  # as model.weights: the weights that keras.applications publishes, downloaded and checked
PREPROCESSING = Literal["auto", "caffe", "tf", "torch", "unit", "none"]
METHODS = Literal[
    "auto", "minmax", "percentile_99.9", "percentile_99.99", "percentile_99.999", "entropy", "mse", "lp_2.4", "lp_3",
]  # fmt: skip


@dataclass(frozen=True)
class Splits:
    """Shares of the images; each image's hash decides its split. They need not sum to 1 exactly.

    With a finished model nothing is trained: only calibration and test count, in their proportion, by default half and
    half.
    """

    train: Share = 0.6
    validation: Share = 0.1
    calibration: Share = 0.1
    test: Share = 0.2


@dataclass(frozen=True)
class Shares:
    """Splits that the images of one ready-made split go to. All 0: see ``Divide``."""

    train: Share = 0.0
    validation: Share = 0.0
    calibration: Share = 0.0
    test: Share = 0.0


@dataclass(frozen=True)
class Divide:
    """Ready-made splits (folders train/, val/, test/, calibration/; a split column; x_train and x_test of an .npz).

    By default each stays as it is, and train gives images to the missing splits, in the proportions of
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

    source: Annotated[Literal["folder", "csv", "npz", "tfds", "digits"], "where the images come from"] = "folder"
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
    ready_splits: Annotated[bool, "false: the images of ready-made splits are pooled and split again"] = True
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
    jpeg_scaling: Annotated[
        Literal["none", "dct"],
        "dct: a JPEG is made smaller while it is decoded, where twice the input's sides remain: other pixels, in "
        "training, calibration and verification too, and much sooner for photographs of a camera",
    ] = "none"
    max_bad_images: Annotated[Whole, "up to so many unreadable images are reported and left out; more are an error"] = 0
    salt: Annotated[str, "another salt gives another split"] = ""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of RGB pixels in the model's training, where no mode describes it: (pixels - mean) * scale."""

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
    """A backbone with a new head, or, with ``path``, a finished Keras classifier."""

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
    """First phase: the backbone is frozen, only the head is trained."""

    epochs: Annotated[Whole, "the backbone is frozen, only the head is trained"] = 5
    learning_rate: Annotated[AboveZero, "of Adam"] = 1e-3


@dataclass(frozen=True)
class FineTunePhase:
    """Second phase: all layers are trained at a small learning rate."""

    epochs: Annotated[Whole, "all layers are trained, at a small learning rate"] = 5
    learning_rate: Annotated[AboveZero, "of Adam"] = 1e-4
    freeze_batchnorm: Annotated[bool, "keep the pretrained BatchNorm statistics; false when training from scratch"] = (
        True
    )


@dataclass(frozen=True)
class Augment:
    """Random changes of training images, which are not part of the model and not exported."""

    flip: Annotated[bool, "left to right, with probability 1/2"] = False
    rotation: Annotated[float, within(0, 180, "0 to 180 degrees"), "by up to so many degrees in either direction"] = 0.0
    zoom: Annotated[BelowOne, "by up to this share, in or out"] = 0.0


@dataclass(frozen=True)
class Train:
    """Two-phase transfer learning."""

    batch_size: Annotated[BatchSize, "images in a step"] = 32
    head: HeadPhase = field(default_factory=HeadPhase)
    fine_tune: FineTunePhase = field(default_factory=FineTunePhase)
    schedule: Annotated[
        Literal["cosine", "constant"], "cosine: each phase's learning rate falls to 0 along a half wave"
    ] = "cosine"
    early_stopping: Annotated[Whole, "a phase ends after so many epochs without a better one; 0: never"] = 0
    class_weights: Annotated[Literal["none", "balanced"], "balanced: rare classes weigh as much as common ones"] = (
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
        float, at_least(0, "0 or more"), "least time between two writes of the state to resume from"
    ] = 60.0
    seed: Annotated[
        int, within(0, 2**32 - 1, "0 to 2**32 - 1"), "for new weights, and the order and augmentation of images"
    ] = 1
    save_backbone: Annotated[bool, "also write the backbone's weights, for another recipe to start from"] = False


@dataclass(frozen=True)
class Export:
    """Keras to ONNX."""

    opset: Annotated[Literal[17], "the opset to which tf2onnx exports these models completely"] = 17
    top_k: Annotated[
        int,
        at_least(0, "0 (none) or more"),
        "best classes that the graph itself selects, so that only these are copied back; 0: the host selects",
    ] = 0


@dataclass(frozen=True)
class Quantize:
    """The typed FP16 graph and the INT8 Q/DQ graph."""

    method: Annotated[
        METHODS,
        "how the clipping point of each activation is chosen; auto: the method that is best on held-out images",
    ] = "auto"
    equalize: Annotated[
        bool, "equalize the ranges of an activation's channels, where that helps; the FP32 model computes the same"
    ] = True
    shift: Annotated[
        Literal["auto", "always", "conv", "never"],
        "the eighth bit behind a ReLU: a Clip lowers the activation by 128 scales, so that it has 256 levels, not 128; "
        "auto: where that is exact and helps, conv: only right behind a convolution, always: without trying",
    ] = "auto"
    rounding: Annotated[
        Literal["second_order", "nearest"],
        "how weights are rounded; second_order: the codes that change a convolution's output least, where that helps",
    ] = "second_order"
    rounding_images: Annotated[Positive, "calibration images that second-order rounding looks at"] = 192
    bias_correction: Annotated[bool, "correct the biases by the mean quantization error, where that helps"] = True
    trunk: Annotated[
        Literal["fp32", "fp16"], "the type of scales, biases and residual sums between INT8 layers; FP16 rounds them"
    ] = "fp32"
    effort: Annotated[
        Literal["full", "fast"],
        "fast: fewer methods, one strength of equalization, weights to nearest; full takes ResNet-50 minutes more",
    ] = "full"
    sensitivity: Annotated[
        Literal["auto", "always", "never"],
        "measure the error of each layer alone; auto: if INT8 or FP16 throughout misses `verify.thresholds`",
    ] = "auto"
    sensitivity_images: Annotated[
        Positive, "held-out images for measuring one layer; the whole model is judged on all of them"
    ] = 32
    max_kept: Annotated[
        float,
        within(0, 1),
        "share of the convolutions that may stay in FP16 to meet `verify.thresholds.int8`; 0: no layer is kept for it",
    ] = 0.1
    max_kept_fp32: Annotated[
        float,
        within(0, 1),
        "share of the convolutions that may stay in FP32 to meet `verify.thresholds.fp16`",
    ] = 0.75
    held_out: Annotated[
        float,
        Limit("above 0, up to 0.5", lambda share: 0 < share <= 0.5),
        "share of the calibration images that judges the scales instead of setting them",
    ] = 0.25
    min_images: Annotated[Positive, "fewer calibration images than this are refused"] = 128
    max_images: Annotated[int, "no more calibration images than this are used"] = 512
    batch_size: Annotated[
        BatchSize,
        "all activations of a batch are in memory at once: ResNet-50 at 224x224 takes 82 MB an image",
    ] = 8
    tensorrt8: Annotated[
        bool, "also write the files that TensorRT 8.6 builds from, `model.fp16-trt8.onnx` and `model.int8-trt8.onnx`"
    ] = False


@dataclass(frozen=True)
class Profile:
    """Batch sizes of an engine in a recipe; all other code uses `BatchProfile`."""

    min: int = 1
    opt: int = 8
    max: int = 32


@dataclass(frozen=True)
class Build:
    """TensorRT engines."""

    flavour: Annotated[
        Literal["auto", "tensorrt", "rtx"],
        "`tensorrt` (10.0 to 11.x, 8.6) or `rtx` (TensorRT-RTX, builds without a GPU); auto: the one that can build on "
        "this machine, for its GPU",
    ] = "auto"
    precisions: Annotated[tuple[Precision, ...], EACH_ONCE, "an engine each"] = PRECISIONS
    profile: Annotated[
        Profile, ORDERED, "batch sizes of the engine, tuned for `opt`; three equal numbers: a fixed batch size"
    ] = field(default_factory=Profile)
    variants: Annotated[
        Mapping[Annotated[str, VARIANT_NAMED], Annotated[Profile, ORDERED]],
        "several engines of each precision instead of `profile`, by name: `{latency: {min: 1, opt: 1, max: 1}}`",
    ] = field(default_factory=dict)
    tf32: Annotated[bool, "TF32 in FP32 convolutions: faster, but without parity with Keras"] = False
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
        "`tensorrt`: a file that keeps the builder's timings; later builds, and other engines of this one, are faster",
    ] = None
    version_compatible: Annotated[
        bool,
        "`tensorrt`: the engine runs on later TensorRT versions too (8 on 10, 10 on 11, any later one of its own); it "
        "may be slower",
    ] = False
    hardware_compatibility: Annotated[
        Literal["none", "ampere_plus", "same_compute_capability"],
        "`tensorrt`: runs on more GPUs, but slower: all from Ampere on, or all of the same generation",
    ] = "none"
    strip_weights: Annotated[
        bool,
        "10.x and later, with a GPU: plans without weights, which are read from the ONNX file when a plan is loaded",
    ] = False
    max_aux_streams: Annotated[
        int | None, within(0, 64), "further CUDA streams an inference may use; null: TensorRT's choice"
    ] = None
    builder_threads: Annotated[int | None, within(1, 1024, "1 to 1024"), "null: TensorRT's choice"] = None


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of a candidate against its reference. With null a threshold is not checked."""

    relative_error: Annotated[
        float | Literal["auto"] | None,
        Limit("0 to 100, as a share of the largest logit", lambda error: error == "auto" or 0 <= error <= 100),
        "at most: largest difference over the largest reference logit; auto: 1e-5, or, if float noise is larger, four "
        "times the change in Keras' own logits when each pixel moves by a unit in the last place",
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
        "at most: loss of accuracy",
    ] = None


@dataclass(frozen=True)
class VerifyThresholds:
    """Thresholds by the precision of the candidate."""

    fp32: Thresholds = field(default_factory=lambda: Thresholds(relative_error="auto"))
    fp16: Thresholds = field(default_factory=lambda: Thresholds(top1_agreement=0.999, sqnr_db=50.0))
    int8: Thresholds = field(default_factory=lambda: Thresholds(top1_agreement=0.99, sqnr_db=20.0))


@dataclass(frozen=True)
class Verify:
    """Parity of each hop on test images that were not used to select anything."""

    min_images: Annotated[Positive, "fewer test images than this are refused"] = 50
    max_images: Annotated[int, "no more test images than this are used"] = 1000
    batch_size: Annotated[BatchSize, "images that are compared at once"] = 32
    layer_images: Annotated[Positive, "images by which layers are compared, with `verify --layers`"] = 64
    reduce: Annotated[bool, "`verify --layers` writes the smallest part of a file that fails, for a bug report"] = False
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
    min_samples: Annotated[Positive, "fewest samples, however long they take"] = 20


@dataclass(frozen=True)
class Infer:
    """Batch inference."""

    samples: Annotated[Whole, "test images that are classified where none are named"] = 48
    batch_size: Annotated[BatchSize, "images that are classified at once"] = 32
    top_k: Annotated[Positive, "best classes in each row"] = 3
    decode_threads: Annotated[
        int, within(0, 1024), "threads that decode images; 0: one for each CPU of this process"
    ] = 0
    max_file_mib: Annotated[int, within(1, 1 << 20), "a larger file is not read, its row is `too_large`"] = 512
    shard_rows: Annotated[
        int,
        within(1, 10_000_000),
        "rows of a shard, which is sealed when it is full; rounded up to whole batches",
    ] = 10_000


@dataclass(frozen=True)
class Recipe:
    """A recipe: what runs, on which data, and which thresholds hold."""

    name: Annotated[str, NAMED, "name of the folder in artifacts/; by default that of the recipe's file"]
    description: Annotated[str, "its purpose, in a sentence"] = ""
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
