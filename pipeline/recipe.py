"""What a recipe says: one frozen dataclass a section. Comments beside the fields are what a user needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.runners.options import RuntimeOptions

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


@dataclass(frozen=True)
class Splits:
    """Shares of the images; each image's own hash decides where it goes. They need not sum to 1 exactly.

    With a finished model nothing is trained: only calibration and test count, in their proportion; unless it is given,
    half and half.
    """

    train: float = 0.6
    validation: float = 0.1
    calibration: float = 0.1
    test: float = 0.2


@dataclass(frozen=True)
class Shares:
    """Where the images of one ready-made split go. All 0: see ``Divide``."""

    train: float = 0.0
    validation: float = 0.0
    calibration: float = 0.0
    test: float = 0.0


@dataclass(frozen=True)
class Divide:
    """Ready-made splits (folders train/, val/, test/, calibration/; a split column; x_train and x_test of an .npz).

    By default each stays what it is, and train gives up images for the splits that are missing, in the proportions of
    ``data.splits``. With a finished model nothing is trained: see ``pipeline.roles``.
    """

    train: Shares = field(default_factory=Shares)
    validation: Shares = field(default_factory=Shares)
    calibration: Shares = field(default_factory=Shares)
    test: Shares = field(default_factory=Shares)


@dataclass(frozen=True)
class Columns:
    """Names of a CSV file's columns."""

    image: str = "path"
    label: str = "label"
    split: str = "split"  # not needed


@dataclass(frozen=True)
class Data:
    """Labelled images."""

    source: Literal["folder", "csv", "npz", "tfds", "digits"] = "folder"
    path: str | None = (
        None  # folder; .csv, or a folder of <split>.csv; .npz as of keras.datasets; tfds: its data folder
    )
    download: Literal["flowers", "mnist"] | None = None  # what to fetch where path is null
    tfds: str | None = None  # a name of tensorflow-datasets
    label_pattern: str | None = None  # folder: a regular expression whose group finds the class in the file's name
    columns: Columns = field(default_factory=Columns)
    classes: str | None = None  # a file with the names of all classes in the order of the outputs, or imagenet
    ready_splits: bool = True  # false: the images of ready-made splits are pooled and dealt out again
    divide: Divide = field(default_factory=Divide)
    splits: Splits = field(default_factory=Splits)
    duplicates_across_classes: Literal["error", "drop"] = "error"  # one picture in two classes
    # crop: the largest centred part of the input's shape; imagenet: short side to 8/7 of the input size (256 for 224),
    # then the centre; pad: black around, never enlarged
    resize: Literal["stretch", "crop", "imagenet", "pad"] = "stretch"
    max_bad_images: int = 0  # so many unreadable images are named and left out; more are refused
    salt: str = ""  # another salt, another split


@dataclass(frozen=True)
class Preprocessing:
    """What a model's training did to RGB pixels, where no mode says it: (pixels - mean) * scale."""

    channel_order: Literal["RGB", "BGR"] = "RGB"  # of the model's input, of mean and of scale
    mean: tuple[float, ...] | str = (0.0, 0.0, 0.0)  # three numbers, or a .npy file: (3,) or (height, width, 3)
    scale: tuple[float, ...] | float = 1.0
    mean_of: Literal["pixels", "scaled"] = "pixels"  # scaled: pixels * scale - mean, a mean of scaled pixels


@dataclass(frozen=True)
class Model:
    """A backbone with a new head, or (``path``) a finished Keras classifier."""

    path: str | None = None  # a .keras or .h5 file or a SavedModel folder, deployed as it is; `inspect` describes it
    output: Literal["auto", "logits", "softmax", "sigmoid"] = "auto"  # what the model of `path` ends with
    allow: tuple[str, ...] = ()  # what in `path` may run code: names of Lambda layers, SavedModel
    # Layers that Keras 2 calls with training=True, so that answers depend on the batch or on chance: inference takes
    # them as at inference, with other answers than the file's, which the verdict says then
    called_in_training: Literal["refuse", "inference"] = "refuse"
    classes: tuple[str, ...] | str | None = None  # names in the order of the outputs, or a .txt or .json file of them
    backbone: BACKBONES = "resnet50"
    weights: str | None = None  # a file with the backbone's pretrained weights, or imagenet; null: from scratch
    input_size: int = 224
    preprocessing: PREPROCESSING | Preprocessing = "auto"  # auto: what belongs to the backbone
    padding: Literal["same", "valid"] = "same"  # stem of resnet18, resnet34, resnet50-blocks; valid: 3 zeros around
    head: Literal["new", "published"] = "new"  # published: the 1,000 ImageNet classes as they are, nothing is trained
    pooling: Literal["avg", "max", "avg2x2", "flatten"] = "avg"  # avg2x2: AveragePooling (2,2), then flatten
    dense: tuple[int, ...] = ()  # hidden Dense layers of the head, ReLU
    dropout: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the model is deployed as it is: nothing is trained."""
        return self.path is not None or self.head == "published"


@dataclass(frozen=True)
class HeadPhase:
    """First phase: the backbone is frozen, only the head learns."""

    epochs: int = 5
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class FineTunePhase:
    """Second phase: everything learns, at a small rate."""

    epochs: int = 5
    learning_rate: float = 1e-4
    freeze_batchnorm: bool = True  # keep the pretrained BatchNorm statistics; false when training from scratch


@dataclass(frozen=True)
class Augment:
    """Random changes of training images. They are not part of the model, so they are not exported."""

    flip: bool = False  # left to right, every second image
    rotation: float = 0.0  # up to so many degrees either way
    zoom: float = 0.0  # by up to this share, in or out


@dataclass(frozen=True)
class Train:
    """Two-phase transfer learning."""

    batch_size: int = 32
    head: HeadPhase = field(default_factory=HeadPhase)
    fine_tune: FineTunePhase = field(default_factory=FineTunePhase)
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: each phase's rate falls to 0 along a half wave
    early_stopping: int = 0  # a phase ends after so many epochs without a better one; 0: never
    class_weights: Literal["none", "balanced"] = "none"  # balanced: rare classes count as much as common ones
    augment: Augment = field(default_factory=Augment)
    mixed_precision: Literal["auto", "always", "never"] = "auto"  # float16 arithmetic while training; auto: on GPUs
    feature_cache_mib: int = 1024  # features of a frozen backbone up to this size are computed once; 0: every epoch
    checkpoint_seconds: float = 60.0  # the state to resume from is written at most so often
    seed: int = 1
    save_backbone: bool = False  # also write the backbone's weights, for another recipe to start from


@dataclass(frozen=True)
class Export:
    """Keras to ONNX."""

    opset: Literal[17] = 17  # what tf2onnx exports this family of models to without leftovers
    top_k: int = 0  # best classes that the graph itself picks, so that only they travel back; 0: the host picks


@dataclass(frozen=True)
class Quantize:
    """The typed FP16 graph and the INT8 Q/DQ graph."""

    # How the clipping point of each activation is chosen; auto: all are tried, the best on held-out images is taken.
    method: Literal["auto", "minmax", "percentile_99.9", "percentile_99.99", "percentile_99.999", "entropy", "mse"] = (
        "auto"
    )
    equalize: bool = True  # give the channels of an activation alike ranges; the model's answers stay what they are
    bias_correction: bool = True  # take the mean error of quantization out of the biases, where that helps
    # What each layer costs alone: auto: where INT8 or FP16 throughout misses verify.thresholds on held-out images
    sensitivity: Literal["auto", "always", "never"] = "auto"
    sensitivity_images: int = 32  # held-out images that measure a layer; all of them judge the whole model
    max_kept: float = 0.1  # share of the convolutions that may stay in FP16 to meet verify.thresholds.int8
    max_kept_fp32: float = 0.75  # share of the convolutions that may stay in FP32 to meet verify.thresholds.fp16
    held_out: float = 0.25  # share of the calibration images that gives no scales but judges them
    min_images: int = 128  # fewer calibration images than this are refused
    max_images: int = 512
    batch_size: int = 8  # all activations of a batch are in memory at once: ResNet-50 at 224x224 takes 82 MB an image
    tensorrt8: bool = False  # also write what TensorRT 8.6 builds from, model.fp16-trt8.onnx and model.int8-trt8.onnx


@dataclass(frozen=True)
class Profile:
    """The batch sizes that an engine takes."""

    min: int = 1
    opt: int = 8
    max: int = 32


@dataclass(frozen=True)
class Build:
    """TensorRT engines."""

    flavour: Literal["auto", "tensorrt", "rtx"] = "auto"  # auto: tensorrt if it is installed, else rtx
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    profile: Profile = field(default_factory=Profile)
    # Several engines of each precision, each for its batch sizes, by name, such as {latency: {min: 1, opt: 1, max: 1}}
    variants: Mapping[str, Profile] = field(default_factory=dict)
    tf32: bool = False
    workspace_mib: int | None = None  # limit of scratch memory; null: the GPU's memory
    optimization_level: int | None = None  # 0 to 5, TensorRT's own default when null
    targets: tuple[str, ...] = ()  # rtx: GPUs to build for, such as SM86; empty: see the sidecar
    timing_cache: str | None = None  # a file that keeps what TensorRT timed, for the next build; shared by all engines
    version_compatible: bool = False  # engines run on later TensorRT versions too; they may be slower
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"  # or more GPUs; slower
    strip_weights: bool = False  # plans without weights, which come back from the ONNX file when they are loaded
    max_aux_streams: int | None = None  # further CUDA streams an inference may use; null: TensorRT's choice
    builder_threads: int | None = None  # null: TensorRT's choice

    @property
    def profiles(self) -> dict[str | None, Profile]:
        """The batch sizes of the engines of each precision by variant; None is the name where there are none."""
        named: dict[str | None, Profile] = dict(self.variants.items())
        return named or {None: self.profile}


@dataclass(frozen=True)
class Thresholds:
    """What a candidate must reach against its reference. A null is not asked for."""

    # At most: largest difference over the largest reference logit; auto: 1e-5, or, where rounding alone makes more of
    # it, four times what moving each pixel by a unit in the last place does to Keras itself
    relative_error: float | Literal["auto"] | None = None
    top1_agreement: float | None = None  # at least: share of images with the same top class
    sqnr_db: float | None = None  # at least: signal to quantization noise ratio of the logits
    accuracy_drop: float | None = None  # at most: accuracy lost, as a share (0.01: one point)


@dataclass(frozen=True)
class VerifyThresholds:
    """Thresholds by the precision of the candidate."""

    fp32: Thresholds = field(default_factory=lambda: Thresholds(relative_error="auto"))
    fp16: Thresholds = field(default_factory=lambda: Thresholds(top1_agreement=0.999, sqnr_db=50.0))
    int8: Thresholds = field(default_factory=lambda: Thresholds(top1_agreement=0.99, sqnr_db=20.0))


@dataclass(frozen=True)
class Verify:
    """Parity, hop by hop, on test images that selected nothing."""

    min_images: int = 50  # fewer test images than this are refused
    max_images: int = 1000
    batch_size: int = 32
    thresholds: VerifyThresholds = field(default_factory=VerifyThresholds)


@dataclass(frozen=True)
class Benchmark:
    """Latency and throughput."""

    batches: tuple[int, ...] = ()  # empty: 1 and the largest of each profile
    seconds: float = 1.5  # measured time for each backend, precision and batch
    warmup_seconds: float = 0.3
    min_samples: int = 20


@dataclass(frozen=True)
class Infer:
    """Batch inference. With no images named, ``samples`` test images are classified."""

    samples: int = 48
    batch_size: int = 32
    top_k: int = 3


@dataclass(frozen=True)
class Recipe:
    """One whole recipe: what runs, on which data, and what it must reach."""

    name: str
    description: str = ""
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
