"""The preprocessing of pixels before the first convolution, as data.

The exported graph contains it (`export.onnx_passes.signature.prepend_preprocessing`), so training, calibration and
verification must do exactly the same: `PreprocessingSpec.apply` is the NumPy reference. The constants of the modes are
those of ``keras.applications.imagenet_utils.preprocess_input``.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import ProjectError
from export.words import count

Triple = tuple[float, float, float]

_ZERO: Triple = (0.0, 0.0, 0.0)
_ONE: Triple = (1.0, 1.0, 1.0)
_ORDERS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}

LUMA = (19595, 38470, 7471)  # weights of red, green and blue in units of 1/65,536: Rec. 601 as in Pillow

# mode -> (channel order, mean, scale); means are in grey levels 0..255
_MODES: dict[str, tuple[str, Triple, Triple]] = {
    "caffe": ("BGR", (103.939, 116.779, 123.68), _ONE),
    "tf": ("RGB", (127.5, 127.5, 127.5), (1 / 127.5, 1 / 127.5, 1 / 127.5)),
    "torch": (
        "RGB",
        (255 * 0.485, 255 * 0.456, 255 * 0.406),
        (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
    ),
    "unit": ("RGB", _ZERO, (1 / 255, 1 / 255, 1 / 255)),
    "none": ("RGB", _ZERO, _ONE),
}


def grey_levels(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 RGB (..., 3) as grey levels, equal in the three channels, as Pillow's ``convert("L")`` does."""
    weighted = pixels.astype(np.int32) @ np.asarray(LUMA, np.int32)
    return np.repeat(((weighted + 32768) >> 16).astype(np.uint8)[..., None], 3, axis=-1)


@dataclass(frozen=True)
class MeanImage:
    """A mean for every pixel, as some trainings on CIFAR subtract it.

    Args:
        shape: Height, width, 3.
        data: float32 values in grey levels, C order, little-endian, channels in the spec's channel order.

    Raises:
        ProjectError: If the number of bytes does not match the shape.
    """

    shape: tuple[int, int, int]
    data: bytes

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or len(self.data) != 4 * math.prod(self.shape):
            raise ProjectError(
                f"Expected the float32 values of a mean image of shape {self.shape}. Received: "
                f"{count(len(self.data), 'byte')}."
            )

    @classmethod
    def from_array(cls, values: np.ndarray) -> MeanImage:
        """Return the mean image of an array of shape (height, width, 3).

        Raises:
            ProjectError: If the shape is another one, or a value is not finite.
        """
        if values.ndim != 3 or values.shape[2] != 3 or not np.all(np.isfinite(values)):
            raise ProjectError(
                f"Expected a finite mean image of shape (height, width, 3). Received: {values.dtype} {values.shape}."
            )
        height, width, channels = values.shape
        return cls((height, width, channels), np.ascontiguousarray(values, dtype="<f4").tobytes())

    @property
    def array(self) -> np.ndarray:
        """Return the values, float32 (height, width, 3)."""
        return np.frombuffer(self.data, dtype="<f4").reshape(self.shape)

    def to_dict(self, values: bool) -> dict[str, object]:
        """Return the mean image as plain JSON types; without `values` only its shape and hash."""
        return {
            "shape": list(self.shape),
            "sha256": hashlib.sha256(self.data).hexdigest(),
            **({"float32": base64.b64encode(self.data).decode()} if values else {}),
        }


@dataclass(frozen=True)
class PreprocessingSpec:
    """``y[..., c] = (x[..., order[c]] - mean[c]) * scale[c]`` in float32, on RGB pixels.

    For a greyscale model x is the integer grey level, equal in the three channels, see `grey_levels`.

    Args:
        channel_order: The channel order of the network's training, ``"RGB"`` or ``"BGR"``. Pixels passed to `apply`
            are always RGB.
        mean: Subtracted from the pixels, in grey levels, one per channel in `channel_order`.
        scale: Factor of the difference, one per channel in `channel_order`.
        mode: A name for people; ``"custom"`` if it is none of `from_mode`. Defaults to ``"custom"``.
        mean_image: Subtracted instead of `mean`, which is then zero; images have its size. Defaults to None.
        grey: Whether RGB is converted to grey levels first. Defaults to False.

    Raises:
        ProjectError: If the order is unknown, or mean or scale are not three finite numbers.
    """

    channel_order: str
    mean: Triple
    scale: Triple
    mode: str = "custom"
    mean_image: MeanImage | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        if self.channel_order not in _ORDERS:
            raise ProjectError(
                f"Expected a channel order RGB or BGR. Received: {self.channel_order!r} (name one of the two)."
            )
        for name in ("mean", "scale"):
            values = getattr(self, name)
            if len(values) != 3 or not np.all(np.isfinite(np.asarray(values, dtype=np.float64))):
                raise ProjectError(f"Expected three finite numbers as {name}. Received: {values!r} (one per channel).")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if self.mean_image is not None and self.mean != _ZERO:
            raise ProjectError(f"Expected a mean or a mean image. Received: both, mean {self.mean} (leave out one).")

    @property
    def order(self) -> tuple[int, int, int]:
        """Return for each channel of the result its index in the RGB pixels."""
        return _ORDERS[self.channel_order]

    @classmethod
    def from_mode(cls, mode: str) -> PreprocessingSpec:
        """Return the spec of one of Keras' preprocessing modes.

        Args:
            mode: ``"caffe"`` (ResNet), ``"tf"`` (ResNetV2), ``"torch"``, ``"unit"`` (x / 255) or
                ``"none"`` (pixels as they are).

        Raises:
            ProjectError: If the mode is unknown.
        """
        if mode not in _MODES:
            raise ProjectError(
                f"Expected a preprocessing mode of {sorted(_MODES)}. Received: {mode!r} "
                "(name one of these, or build a PreprocessingSpec from channel order, mean and scale)."
            )
        return cls(*_MODES[mode], mode)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Preprocess pixels as the exported graph does.

        Args:
            pixels: uint8, (..., 3), RGB.

        Returns:
            float32 of the same shape, channels in `channel_order`.

        Raises:
            ProjectError: If the pixels are not uint8 or have not three channels.
        """
        if pixels.dtype != np.uint8 or pixels.ndim < 1 or pixels.shape[-1] != 3:
            raise ProjectError(
                f"Expected uint8 pixels of shape (..., 3). Received: {pixels.dtype} {pixels.shape} "
                "(hand in decoded RGB pixels before any scaling)."
            )
        x = (grey_levels(pixels) if self.grey else pixels)[..., list(self.order)].astype(np.float32)
        if self.mean_image is not None and pixels.shape[-3:] != self.mean_image.shape:
            raise ProjectError(
                f"Expected pixels of the mean image's shape {self.mean_image.shape}. Received: {pixels.shape}."
            )
        x -= np.asarray(self.mean, dtype=np.float32) if self.mean_image is None else self.mean_image.array
        x *= np.asarray(self.scale, dtype=np.float32)
        return x

    def to_dict(self, values: bool = True) -> dict[str, object]:
        """Return the spec as plain JSON types.

        Args:
            values: Whether a mean image is included with its values, or by its hash alone. Defaults to True.
        """
        return {
            "mode": self.mode,
            "channel_order": self.channel_order,
            "mean": list(self.mean),
            "scale": list(self.scale),
            **({"grey": True} if self.grey else {}),
            **({} if self.mean_image is None else {"mean_image": self.mean_image.to_dict(values)}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PreprocessingSpec:
        """Return the spec that `to_dict` wrote.

        Raises:
            ProjectError: If a key is missing or a value is not valid.
        """
        try:
            image = None
            if "mean_image" in data:
                height, width, channels = data["mean_image"]["shape"]
                image = MeanImage((height, width, channels), base64.b64decode(data["mean_image"]["float32"]))
            return cls(
                str(data["channel_order"]),
                tuple(data["mean"]),
                tuple(data["scale"]),
                str(data.get("mode", "custom")),
                image,
                data.get("grey", False) is True,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProjectError(
                "Expected the keys channel_order, mean and scale of a preprocessing spec. "
                f"Received: {data!r} (export the model again)."
            ) from error
