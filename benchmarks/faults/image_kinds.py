"""An image file of each kind that decoding is compared for, drawn here, so that it needs no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

SIZE = (93, 70)  # width and height: no multiple of a JPEG's blocks


def write_image_kinds(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Write one file of each kind, under a name that does not tell it.

    Args:
        folder: is made.
        seed: of the pictures. Defaults to 0.

    Returns:
        dict[str, Path]: the files, by the kind as `pipeline.verification.checks.decoding` names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture = _draw(np.random.default_rng(seed))
    grey = picture.convert("L")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    transparent = picture.convert("RGBA")
    transparent.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    files: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "JPEG, RGB": (picture, "JPEG", {"quality": 90}),
        "JPEG, RGB, progressive": (picture, "JPEG", {"progressive": True}),
        "JPEG, RGB, EXIF-turned": (picture, "JPEG", {"exif": turned}),
        "JPEG, grey": (grey, "JPEG", {}),
        "JPEG, CMYK": (picture.convert("CMYK"), "JPEG", {}),
        "PNG, RGB": (picture, "PNG", {}),
        "PNG, grey": (grey, "PNG", {}),
        "PNG, palette": (picture.quantize(64), "PNG", {}),
        "PNG, alpha": (transparent, "PNG", {}),
        "PNG, 16 bit": (deep, "PNG", {}),
        "WebP, RGB": (picture, "WEBP", {}),
        "WebP, alpha": (transparent, "WEBP", {}),
        "BMP, RGB": (picture, "BMP", {}),
        "BMP, grey": (grey, "BMP", {}),
    }
    paths = {}
    for index, (kind, (image, name, options)) in enumerate(files.items()):
        paths[kind] = folder / f"{index:02d}.jpg"
        image.save(paths[kind], name, **options)
    return paths


def _draw(random: np.random.Generator) -> Image.Image:
    """Return a picture with detail on every scale, so that another filter or another order gives other pixels."""
    coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8))
