"""What the host does to a picture before the model sees it, as a part of the model.

It is written once, into the model card, and from there into the ONNX files, the sidecars and ``reference.npz``.
Training, calibration, verification, inference and thumbnails decode by it and by nothing else, so that a verdict
holds for what is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from export.records import to_json


@dataclass(frozen=True)
class DecodeSpec:
    """From a file, or an array, to the pixels that the graph takes: uint8, (height, width, 3).

    The fields with one possible value are the rules of `pipeline.preprocess`. A card with others was made by another
    version, whose pixels are not these, and is refused.

    Attributes:
        size: height and width of the model's input in pixels.
        resize: see `pipeline.preprocess.resize_image`.
        colour: order of the channels.
        filter: of every resize, Pillow's.
        orientation: the EXIF tag is applied.
        transparency: what lies behind it.
        sixteen_bit: what of a 16-bit grey value counts.
        animation: which frame.
    """

    size: tuple[int, int]
    resize: Literal["stretch", "crop", "imagenet", "pad"]
    colour: Literal["RGB"] = "RGB"
    filter: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    orientation: Literal["as EXIF says"] = "as EXIF says"
    transparency: Literal["on black"] = "on black"
    sixteen_bit: Literal["high byte"] = "high byte"
    animation: Literal["first frame"] = "first frame"

    def __post_init__(self) -> None:
        if not all(1 <= side <= 4096 for side in self.size):
            raise ValueError(f"a size of {self.size[0]}x{self.size[1]} pixels")

    def pixels(self, source: Path | str | bytes | np.ndarray) -> np.ndarray:
        """Decode and resize one image.

        Args:
            source: an image file, its bytes, or uint8 pixels of shape (height, width[, 1 or 3]).

        Returns:
            uint8 of shape (height, width, 3).

        Raises:
            ImageError: the file cannot be read or decoded; the message says why.
        """
        from pipeline.preprocess import array_to_image, load_image, resize_image  # a card is read without Pillow

        if isinstance(source, np.ndarray):
            return resize_image(array_to_image(source), self.size, self.resize)
        return load_image(Path(source) if isinstance(source, str) else source, self.size, self.resize)

    def to_json(self) -> dict[str, object]:
        """Plain JSON types."""
        return to_json(self)
