"""Compare how this project loads image files with how Keras loads them: file, pixels, logits.

Where a recipe was trained elsewhere, Keras' own loading is what the model saw. Keras has no EXIF orientation, drops
transparency, and has one of the four resize modes to the bit, "stretch"; the other three are computed here by Pillow
from what Keras decoded, apart from `pipeline.data.resize`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from export.words import count, listed
from pipeline.artifacts.diagnosis import Decoding, Hint
from pipeline.artifacts.parity_report import CONSISTENCY, FAIL, PASS, Hop
from pipeline.artifacts.paths import CARD
from pipeline.data.decode import DecodeSpec
from pipeline.data.image_files import image_file
from pipeline.data.jpeg import FORMATS
from pipeline.data.sample import Sample
from pipeline.models.model_card import ModelCard

log = logging.getLogger(__name__)

LOADER = "Keras' own loading of the files"
_BILINEAR = Image.Resampling.BILINEAR
_NAMES = {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "MPO": "JPEG"}
_EXACT = ("JPEG", "PNG", "BMP")
_UPRIGHT = "The EXIF orientation is applied; Keras ignores it."
_ALPHA = "Transparency is composited on black; Keras drops it and shows the colours below."
_DEEP = "The high byte of a 16-bit grey value is used; Keras cuts off what is above 255."
_SCALED = "data.jpeg_scaling: a JPEG is made smaller while it is decoded; Keras decodes all of it."
_OTHER = "Decoded as the model card says; Keras decodes it otherwise."


class _Kind(NamedTuple):
    """A kind of image file: its name, whether its pixels have to be Keras', and the rule where they are not."""

    name: str
    required: bool
    rule: str


class _Pair(NamedTuple):
    """A file as this project and as Keras loads it, and the step that made a difference."""

    own: np.ndarray
    keras: np.ndarray
    step: str


def compare_decoding(
    samples: Sequence[Sample], card: ModelCard, logits_of: Callable[[np.ndarray], np.ndarray | None] | None
) -> tuple[Decoding, ...]:
    """Load image files as this project does and as Keras does, and compare pixels and logits by kind of file.

    Args:
        samples: images; those that are no files are left out, as are files that Keras cannot open.
        card: of the model; its `DecodeSpec` is this project's way.
        logits_of: gives Keras' logits, float32 (N, C), of uint8 pixels (N, height, width, 3); None where it cannot.
            None: pixels alone.

    Returns:
        tuple[Decoding, ...]: one for each kind of file, by name. Kinds are read from the content of the files.
    """
    pairs: dict[_Kind, list[_Pair]] = defaultdict(list)
    left_out: dict[str, str] = {}
    for sample in samples:
        if sample.path is None:
            continue
        try:
            with image_file(sample.path) as data:
                pair, kind = _load_both(data, card.decode), _kind_of(data, card.decode)
        except Exception as error:  # Keras opens fewer formats, and raises what Pillow does
            left_out[sample.name] = " ".join(str(error).split())
        else:
            pairs[kind].append(pair)
    if left_out:
        first, why = next(iter(left_out.items()))
        log.info("%s not compared with Keras' loading, such as %s: %.200s", count(len(left_out), "file"), first, why)
    return tuple(_compared(kind, pairs[kind], logits_of) for kind in sorted(pairs))


def decoding_hop(decodings: Sequence[Decoding]) -> Hop | None:
    """Return the verdict on decoding as a comparison of the report; None where nothing was compared.

    It fails where a kind of file whose pixels have to be Keras' has others. The hop is that of the model card, which
    says how files are decoded.
    """
    if not decodings:
        return None
    wrong = [one for one in decodings if one.required and not one.equal]
    files = sum(one.files for one in decodings)
    hop = Hop(CONSISTENCY, LOADER, CARD, "", "fp32", files, FAIL if wrong else PASS)
    if not wrong:
        exact = [one.kind for one in decodings if one.required]
        return replace(hop, certainty=f"the pixels of {listed(exact, separator='; ')} are Keras'" if exact else "")
    return replace(hop, why="; ".join(map(_difference, wrong)))


def explain_decoding(decodings: Sequence[Decoding]) -> tuple[Hint, ...]:
    """Return why decoding fails, as a hint of the hop of `decoding_hop`; empty where it passes."""
    wrong = [one for one in decodings if one.required and not one.equal]
    if not wrong:
        return ()
    resized = all(one.step == "resizing" for one in wrong)
    text = (
        "Files are decoded as Keras does and then resized otherwise, by another filter or another mode."
        if resized
        else "Files are decoded to other pixels than by Keras, before anything is resized."
    )
    remedy = (
        "Set data.resize to how the model's images were resized, and compare the versions of Pillow."
        if resized
        else "Compare the versions of Pillow and of simplejpeg with requirements.txt."
    )
    evidence = "; ".join(map(_difference, wrong))
    return (Hint(CARD, LOADER, "resize" if resized else "preprocessing", text, evidence, remedy),)


def _difference(decoding: Decoding) -> str:
    return (
        f"the pixels of {decoding.kind} are not Keras': {decoding.share:.1%} of the values of "
        f"{count(decoding.files, 'file')} differ by up to {count(decoding.most, 'grey level')}; it begins in the "
        f"{decoding.step}"
    )


def load_as_keras(data: bytes, decode: DecodeSpec) -> np.ndarray:
    """Load an image file with Keras' own functions, at the size and in the mode of a `DecodeSpec`.

    Args:
        data: the file's content.
        decode: its size and mode count, nothing else of it.

    Returns:
        np.ndarray: uint8 (height, width, 3).
    """
    import keras

    if decode.resize == "stretch":
        image = keras.utils.load_img(BytesIO(data), target_size=decode.size, interpolation="bilinear")
    else:
        image = _RESIZED[decode.resize](keras.utils.load_img(BytesIO(data)), decode.size[1], decode.size[0])
    return np.asarray(keras.utils.img_to_array(image, dtype="uint8"))


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    return ImageOps.fit(image, (width, height), _BILINEAR)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """Shrink the whole picture to 8/7 of the size, and take its centre."""
    scale = max(width / image.width, height / image.height) * 8 / 7
    whole = image.resize((round(image.width * scale), round(image.height * scale)), _BILINEAR)
    left, top = (whole.width - width) // 2, (whole.height - height) // 2
    return whole.crop((left, top, left + width, top + height))


def _pad(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(1.0, width / image.width, height / image.height)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), _BILINEAR)
    result = Image.new("RGB", (width, height))
    result.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return result


_RESIZED = {"crop": _fit, "imagenet": _centre, "pad": _pad}


def _load_both(data: bytes, decode: DecodeSpec) -> _Pair:
    own, keras = decode.pixels(data), load_as_keras(data, decode)
    if np.array_equal(own, keras):
        return _Pair(own, keras, "")
    # At the picture's own size nothing is resized, so a difference there is one of decoding.
    with Image.open(BytesIO(data)) as image:
        whole = replace(decode, size=(image.height, image.width), resize="stretch", jpeg_scaling="none")
    same = max(whole.size) <= 4096 and np.array_equal(whole.pixels(data), load_as_keras(data, whole))
    return _Pair(own, keras, "resizing" if same else "decoding")


def _compared(
    kind: _Kind, pairs: Sequence[_Pair], logits_of: Callable[[np.ndarray], np.ndarray | None] | None
) -> Decoding:
    own, keras = np.stack([pair.own for pair in pairs]), np.stack([pair.keras for pair in pairs])
    difference = np.abs(own.astype(np.int16) - keras)
    error = None
    equal = not difference.any()
    if logits_of is not None and equal:
        error = 0.0
    elif logits_of is not None and (logits := logits_of(np.concatenate([own, keras]))) is not None:
        received, reference = np.split(logits.astype(np.float64), 2)
        error = float(np.abs(received - reference).max() / max(np.abs(reference).max(), 1e-30))
    steps = {pair.step for pair in pairs}
    return Decoding(
        kind=kind.name,
        files=len(pairs),
        equal=equal,
        most=int(difference.max()),
        share=float((difference > 0).mean()),
        relative_error=error,
        rule="" if equal else kind.rule,
        required=kind.required,
        step="decoding" if "decoding" in steps else "resizing" if "resizing" in steps else "",
    )


def _kind_of(data: bytes, decode: DecodeSpec) -> _Kind:
    """Read the kind of a file from its content."""
    with Image.open(BytesIO(data)) as image:
        kind, mode = _NAMES.get(str(image.format), str(image.format)), image.mode
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        progressive = bool(image.info.get("progressive"))
        transparent = mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        scaled = image.format in FORMATS and decode.jpeg_scaling != "none"
    deep = mode.startswith("I")
    values = (
        "16 bit" if deep else "alpha" if transparent else {"P": "palette", "L": "grey", "1": "1 bit"}.get(mode, mode)
    )
    name = f"{kind}, {values}{', progressive' if progressive else ''}{', EXIF-turned' if turned else ''}"
    rules = {_UPRIGHT: turned, _DEEP: deep, _ALPHA: transparent, _SCALED: scaled}
    required = kind in _EXACT and mode in ("RGB", "L") and not any(rules.values())
    return _Kind(name, required, next((rule for rule, applies in rules.items() if applies), _OTHER))
