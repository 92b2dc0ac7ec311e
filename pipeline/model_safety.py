"""Finds what would run or reach outside when a Keras model is built from its architecture. Imports no Keras.

Keras has had several holes here (CVE-2025-1550, -8747, -9905, -9906), all of one kind: the architecture names a
function or class, and Keras calls it. So names are checked against what Keras' own layers need, before Keras sees them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ModelError

# Class names of layers in Keras 1, 2 and 3 that are no program. Others (TFSMLayer, TorchModuleWrapper, JaxLayer,
# FlaxLayer, Pipeline ...) load or run what is not in the architecture.
KNOWN_LAYERS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling2D AdaptiveMaxPooling2D Add AdditiveAttention AlphaDropout
    AtrousConvolution2D Attention AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D
    AvgPool2D BatchNormalization BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding CenterCrop
    Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D
    Convolution1D Convolution2D Convolution3D Cropping1D Cropping2D Cropping3D Deconvolution2D Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten Functional GRU GRUCell
    GRUV1 GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalAvgPool2D GlobalMaxPool2D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
    GroupQueryAttention HashedCrossing Hashing Highway Identity InputLayer IntegerLookup LSTM LSTMCell LSTMV1
    LayerNormalization LeakyReLU LocallyConnected1D LocallyConnected2D Masking MaxPool2D MaxPooling1D MaxPooling2D
    MaxPooling3D Maximum MelSpectrogram Merge Minimum MixUp Model MultiHeadAttention Multiply Normalization PReLU
    Permute RMSNormalization RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast
    RandomCrop RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing ReversibleEmbedding
    STFTSpectrogram SeparableConv1D SeparableConv2D SeparableConvolution2D Sequential SimpleRNN SimpleRNNCell Softmax
    Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells StringLookup
    Subtract SyncBatchNormalization TFOpLambda SlicingOpLambda TextVectorization ThresholdedReLU TimeDistributed
    UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()  # noqa: SIM905 - a list of 150 lines is not easier to read
)
# TFOpLambda layers of Keras 2 name any function of TensorFlow, io.write_file included; these only compute.
_OPERATION = re.compile(
    r"_?(__operators__|math|nn|image)\.\w+|(compat\.v1\.)?(transpose|reshape|cast|concat|stack|split|squeeze|"
    r"expand_dims|identity|clip_by_value|convert_to_tensor|pad|tile|reverse|shape|gather|slice|strided_slice|unstack|"
    r"keras\.\w+\.\w+|ones_like|zeros_like|where|abs|add|subtract|multiply|divide|truediv|square|sqrt|matmul|"
    r"nn\.\w+|math\.\w+|image\.\w+|shape|rank|size)|split|linalg\.\w+"
)
# Where Keras' own classes live, in its several ages; what a layer, an initializer or an operation may come from.
_MODULE = re.compile(
    r"(builtins|tf_keras|keras(_core)?|tensorflow\.keras|tensorflow\.python\.keras)"
    r"(\.src)?(\.engine)?(\.(layers|initializers|regularizers|constraints|activations|models|ops|dtype_policies|"
    r"optimizers|losses|metrics|saving\.legacy|mixed_precision)(\..+)?|\.(functional|sequential|training|input_layer))?"
)
_ACTIVATION_MODULE = re.compile(r"(builtins|(tf_)?keras(\.src)?\.activations(\.activations)?)")
_NO_CODE = ("compile_config", "training_config", "build_config", "quantization_config")  # not built for inference

SAVED_MODEL = "SavedModel"  # as model.allow
FROZEN_GRAPH = "keras_resnet_to_tensorrt>FrozenGraph"  # our own layer, see pipeline.frozen_graph


@dataclass(frozen=True)
class Finding:
    """A part of a model file that runs code, or that no installed code can build.

    Attributes:
        kind: "Lambda", "SavedModel", "operation", "custom" or "code".
        name: of the layer, class or operation.
        why: what it does, in words.
        allowable: whether the recipe can let it run by name.
    """

    kind: str
    name: str
    why: str
    allowable: bool


def scan_config(config: Any) -> list[Finding]:
    """Everything in an architecture that is not one of Keras' own parts, each name once."""
    found = {(f.kind, f.name): f for f in _scan(config, is_layer=False)}
    return list(found.values())


def refuse_unsafe(findings: Sequence[Finding], allow: Sequence[str], where: str) -> None:
    """Refuse what is not allowed by name.

    Args:
        findings: of ``scan_config``.
        allow: names that the recipe lets run (``model.allow``).
        where: the file, for the message.

    Raises:
        ModelError: something runs code and is not allowed, or cannot be allowed.
    """
    if final := [f for f in findings if not f.allowable]:
        listed = "; ".join(f"{f.name}: {f.why}" for f in final[:4])
        more = f" (and {len(final) - 4} more)" if len(final) > 4 else ""
        raise ModelError(
            f"Expected a model of Keras' own layers. Received: {where} with {listed}{more}. Its author can rebuild it "
            "from Keras' layers, or save it whole with model.export('folder') and name that folder as model.path."
        )
    if refused := [f for f in findings if f.name not in allow]:
        names = list(dict.fromkeys([*allow, *(f.name for f in refused)]))
        listed = "; ".join(f"{f.name}: {f.why}" for f in refused[:4])
        raise ModelError(
            f"Expected a model without code in it. Received: {where} with {_what(refused)} {listed}. "
            f"If you trust its author: --set 'model.allow=[{', '.join(names)}]'."
        )


def _what(findings: Sequence[Finding]) -> str:
    lambdas = [f for f in findings if f.kind == "Lambda"]
    return ("Lambda layers" if len(lambdas) > 1 else "a Lambda layer") if len(lambdas) == len(findings) else "code:"


def _scan(node: Any, is_layer: bool) -> Iterator[Finding]:
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _scan(item, is_layer)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class_name")
    inner = node.get("config")
    if isinstance(kind, str):
        found = _judge(node, kind, inner, is_layer)
        if found is not None:
            yield found
            if found.kind == "Lambda":
                return  # the function it carries is part of it
    for key, value in node.items():
        if key in _NO_CODE:
            continue
        # In Keras 1 and 2 a Sequential's config is the list of its layers itself.
        layers = key == "layers" or (key == "config" and kind == "Sequential" and isinstance(value, list))
        yield from _scan(value, layers or (key == "layer" and isinstance(value, dict)))


def _judge(node: dict[str, Any], kind: str, inner: Any, is_layer: bool) -> Finding | None:
    label = inner.get("name", kind) if isinstance(inner, dict) else kind
    module, registered = node.get("module"), node.get("registered_name")
    if kind == "Lambda":
        return Finding("Lambda", str(label), "runs whatever Python its author wrote", True)
    if kind == "__lambda__":
        return Finding("Lambda", "__lambda__", "a function saved as Python bytecode, runs whatever it holds", True)
    if kind in ("__tensor__", "__numpy__", "__keras_tensor__", "__ellipsis__", "__slice__", "__tuple__", "__bytes__"):
        return None
    if kind == FROZEN_GRAPH or registered == FROZEN_GRAPH:
        return Finding("SavedModel", SAVED_MODEL, "a TensorFlow graph, taken from a SavedModel", True)
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        function = inner.get("function") if isinstance(inner, dict) else None
        if isinstance(function, str) and _OPERATION.fullmatch(function):
            return None
        return Finding("operation", str(function), "a TensorFlow function that may reach outside the model", False)
    if kind == "function":
        activation = isinstance(inner, str) and (module is None or _ACTIVATION_MODULE.fullmatch(str(module)))
        if activation and (registered is None or registered == inner):
            return None
        return Finding("code", str(registered or inner), f"a function of {module or 'its author'}", False)
    if isinstance(registered, str) and ">" in registered and registered.partition(">")[0] != "keras":
        return Finding("custom", registered, "a class whose code is not in the file", False)
    if module is not None and not _MODULE.fullmatch(str(module)):
        return Finding("custom", f"{module}.{kind}", "a class whose code is not in the file", False)
    if module is not None and not kind[:1].isupper() and kind != "slice":
        return Finding("code", f"{module}.{kind}", "a function, where a class is due", False)
    operation = module is not None and ".ops" in str(module)
    if is_layer and not operation and kind not in KNOWN_LAYERS:
        return Finding("custom", kind, f"{label!r} is no layer of Keras, and its code is not in the file", False)
    return None
