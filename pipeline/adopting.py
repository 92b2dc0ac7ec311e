"""Makes any Keras 3 image classifier one that the rest of the chain takes as it is.

What people save differs in its outside: a dictionary of one input, any image size, uint8 or greyscale input, half
precision, augmentation layers, a single sigmoid unit. Here all that becomes: float32 (N, height, width, 3) in,
one float32 (N, classes) out, at least two classes. The layers in between stay, with their names and weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.logits import final_activation
from pipeline.errors import ModelError

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

AUGMENTATION = (  # at inference they hand on their input
    "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomElasticTransform",
    "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert",
    "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear",
    "RandomTranslation", "RandomZoom", "RandAugment", "AugMix", "AutoContrast", "CutMix", "MixUp",
)  # fmt: skip
LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as Pillow converts to greyscale
SMALLEST = 8  # pixels; below this a (N, height, width, channels) input is no image


@dataclass(frozen=True)
class Adopted:
    """A classifier in the form that every later stage takes."""

    model: keras.Model
    output: str  # for the card: what the model ends with now
    changes: tuple[str, ...]  # what was done to it, for people


def adopt(model: keras.Model, where: Path, output: str = "auto", free_size: int = 224) -> Adopted:
    """Bring a model into the form that every later stage takes, its answers unchanged.

    Args:
        model: as it was loaded.
        where: its file, for messages.
        output: what the recipe says of its end: "auto", "logits", "softmax" or "sigmoid".
        free_size: height and width for a model that takes any size.

    Raises:
        ModelError: it is no image classifier, or its end must be named.
    """
    height, width, channels = _image_input(model, where)
    units = _class_output(model, where)
    activation = _activation(model, where, output, units)
    changes: list[str] = []
    if height is None or width is None:
        height, width = height or free_size, width or free_size
        changes.append(f"takes any size, and {height}x{width} from now on (model.input_size)")
    swaps = _swaps(model, changes)
    binary = units == 1
    ends_in_sigmoid = activation is not None and activation[1] == "sigmoid"
    if ends_in_sigmoid and activation is not None:
        swaps[id(activation[0])] = _without_activation(activation[0])
        changes.append("its sigmoid was taken off, what is before it are the logits")
    if binary:
        changes.append("one unit, two classes: logits 0 and z, whose softmax is 1 - sigmoid(z) and sigmoid(z)")
    if channels == 1:
        changes.append("takes greyscale: a 1x1 convolution makes it of RGB")
    functional = getattr(model, "_functional", model)  # of a Sequential
    plain = (
        tuple(model.inputs[0].shape) == (None, height, width, 3)
        and model.inputs[0].dtype == "float32"
        and all(_is_tensor(getattr(functional, f"_{side}_struct", None)) for side in ("inputs", "outputs"))
    )
    if plain and not swaps and not binary:
        return Adopted(model, output, ())
    return Adopted(
        _outside(model, (height, width, channels), swaps, binary, where),
        _card(output, ends_in_sigmoid or binary),
        tuple(changes),
    )


def _card(output: str, became_logits: bool) -> str:
    return "logits" if became_logits else output


def _outside(
    model: keras.Model, shape: tuple[int, int, int], swaps: dict[int, Any], binary: bool, where: Path
) -> keras.Model:
    import keras

    height, width, channels = shape
    inputs = keras.Input((height, width, 3), name="pixels")
    x: Any = inputs
    if channels == 1:
        x = _fixed(keras.layers.Conv2D(1, 1, use_bias=False, trainable=False, name="to_greyscale"), x, LUMA)
    try:
        x = _flat(_run(model, x, swaps))
        if binary:
            x = _fixed(keras.layers.Dense(2, use_bias=False, trainable=False, name="two_classes"), x, (0.0, 1.0))
        return keras.Model(inputs, x, name=model.name)
    except Exception as error:  # Keras raises many types on shapes that do not fit
        raise ModelError(
            f"Expected a model that takes (N, {height}, {width}, 3). Received: {where}: {error}"
        ) from error


def _image_input(model: keras.Model, where: Path) -> tuple[int | None, int | None, int]:
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ModelError(
            f"Expected a Functional or Sequential model with a known input size. Received: {where}, a "
            f"{type(model).__name__} without one. Call it once on an image, and save it again."
        )
    shapes = [tuple(t.shape) for t in inputs]
    if len(inputs) > 1:
        raise ModelError(f"Expected one input, an image. Received: {where} with {len(inputs)}: {_list(inputs)}.")
    shape = shapes[0]
    found = f"{where} takes {shape}"
    if len(shape) != 4:
        kind = {2: "rows of numbers", 3: "sequences", 5: "videos or volumes"}.get(len(shape), "something else")
        raise ModelError(f"Expected an image classifier, input (N, height, width, 3). Received: {found}, {kind}.")
    _, height, width, channels = shape
    if channels not in (1, 3):
        first = shape[1] in (1, 3) and (channels is None or channels > 4)
        why = "channels come first; save it with data_format='channels_last'" if first else f"{channels} channels"
        raise ModelError(f"Expected an image classifier, input (N, height, width, 3 or 1). Received: {found}: {why}.")
    if channels == 1 and len(model.outputs) == 1 and len(model.outputs[0].shape) > 2:
        return height, width, channels  # its output says better what it is
    if min(height or SMALLEST, width or SMALLEST) < SMALLEST:
        raise ModelError(f"Expected an image classifier. Received: {found}, which is too small for an image.")
    return height, width, channels


def _class_output(model: keras.Model, where: Path) -> int:
    taken, given = _list(model.inputs), _list(model.outputs)
    if len(model.outputs) > 1:
        raise ModelError(f"Expected one output of shape (N, classes). Received: {where} gives {given}.")
    shape = tuple(model.outputs[0].shape)
    if len(shape) == 4:
        same = "a picture or a map for each input, as in denoising or segmentation"
        features = shape[1] is None or (model.inputs[0].shape[1] or 10**9) > 4 * shape[1]
        what = "a feature map: a backbone without its head" if features and (shape[3] or 0) > 4 else same
        raise ModelError(
            f"Expected an image classifier, output (N, classes). Received: {where} takes {taken} and gives {given}: "
            f"{what}."
        )
    if len(shape) != 2 or shape[1] is None:
        raise ModelError(
            f"Expected an image classifier, output (N, classes). Received: {where} takes {taken} and gives {given}."
        )
    return int(shape[1])


def _activation(model: keras.Model, where: Path, output: str, units: int) -> tuple[Any, str] | None:
    """The layer and name of the final activation, after the recipe's word on it was compared with what is there."""
    layer, name = final_activation(model)
    if output == "sigmoid" and name != "sigmoid":
        raise ModelError(
            f"model.output: expected logits, softmax or auto, because {where} ends with {name or 'no activation'}. "
            "Received: sigmoid."
        )
    if units == 1:
        if name == "sigmoid":
            return layer, name
        if name in (None, "linear") and output == "logits":
            return None
        raise ModelError(
            f"Expected at least two outputs, or one with a sigmoid. Received: {where} with one unit and "
            f"{name or 'linear'!r}. If it is the logit of the second of two classes, say so: --set "
            "model.output=logits; a regression is no classifier."
        )
    if name == "sigmoid":
        if output != "sigmoid":
            raise ModelError(
                f"model.output: expected to be told what {units} sigmoids mean, in {where}. Received: {output}. If "
                "exactly one class is right for each image: --set model.output=sigmoid (the order of the classes "
                "stays, the probabilities become a softmax). A model that gives several labels to one image is not "
                "supported."
            )
        return layer, name
    return (layer, name) if name is not None else None


def _swaps(model: keras.Model, changes: list[str]) -> dict[int, Any]:
    """Layers that are replaced: None means that the layer is left out."""
    import keras

    swaps: dict[int, Any] = {}
    augmentation, half = [], []
    for layer in all_layers(model):
        if type(layer).__name__ in AUGMENTATION:
            swaps[id(layer)] = None
            augmentation.append(layer.name)
        elif getattr(layer, "compute_dtype", "float32") not in ("float32", None) and not hasattr(layer, "layers"):
            if not str(layer.compute_dtype).startswith(("float", "bfloat")) or isinstance(
                layer, keras.layers.InputLayer
            ):
                continue
            swaps[id(layer)] = _in_float32(layer)
            half.append(layer.name)
    if augmentation:
        changes.append(f"augmentation left out: {', '.join(augmentation)}")
    if half:
        changes.append(f"{len(half)} layers compute in float32 instead of half precision")
    return swaps


def all_layers(model: Any) -> list[Any]:
    """All layers, those of nested models included."""
    found = []
    for layer in model.layers:
        found += [layer, *(all_layers(layer) if hasattr(layer, "layers") else [])]
    return found


def _in_float32(layer: Any) -> Any:
    config = layer.get_config()
    config["dtype"] = "float32"
    return _remade(layer, config)


def _without_activation(layer: Any) -> Any:
    if type(layer).__name__ not in ("Dense", "Conv2D", "Activation"):
        return None  # a layer or operation that is the activation itself
    config = layer.get_config()
    config["activation"] = "linear"
    config["dtype"] = "float32"
    return _remade(layer, config)


def _remade(layer: Any, config: dict[str, Any]) -> Any:
    """A layer of the same class and weights with another configuration."""
    new = type(layer).from_config(config)
    if layer.weights:
        new.build(*_build_shapes(layer))
        new.set_weights([np.asarray(w) for w in layer.get_weights()])
    return new


def _build_shapes(layer: Any) -> list[Any]:
    config = layer.get_build_config() or {}
    if "input_shape" in config:
        return [tuple(config["input_shape"])]
    if "shapes_dict" in config:
        return [tuple(shape) for shape in config["shapes_dict"].values()]
    return [tuple(layer.input.shape)]


def _run(model: Any, x: Any, swaps: dict[int, Any]) -> Any:
    """Call a model on a tensor with some of its layers replaced; the others are shared, weights and all."""
    import keras
    from keras import tree

    def operation(layer: Any) -> Any:
        if id(layer) in swaps:
            new = swaps[id(layer)]
            return (lambda x, *args, **options: x) if new is None else new
        if isinstance(layer, keras.Model) and any(id(inner) in swaps for inner in all_layers(layer)):
            return _rebuilt(layer, swaps)
        return layer

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            x = operation(layer)(x)
        return x
    given = tree.pack_sequence_as(model._inputs_struct, [x])
    return model._run_through_graph(given, operation_fn=operation)


def _rebuilt(model: Any, swaps: dict[int, Any]) -> Any:
    import keras

    if id(model) not in swaps:
        if len(model.inputs) != 1:
            raise ModelError(f"Expected nested models of one input. Received: {model.name!r} of {len(model.inputs)}.")
        shape = tuple(model.inputs[0].shape)
        inner = keras.Input(shape[1:], name=f"{model.name}_input")
        swaps[id(model)] = keras.Model(inner, _flat(_run(model, inner, swaps)), name=model.name)
    return swaps[id(model)]


def _fixed(layer: Any, x: Any, kernel: Any) -> Any:
    y = layer(x)
    layer.set_weights([np.asarray(kernel, np.float32).reshape(layer.kernel.shape)])
    return y


def _flat(value: Any) -> Any:
    from keras import tree

    flat = tree.flatten(value)
    return flat[0] if len(flat) == 1 else value


def _is_tensor(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, list, tuple))


def _list(tensors: Any) -> str:
    return ", ".join(f"{t.name.split(':')[0]} {tuple(t.shape)}" for t in tensors)
