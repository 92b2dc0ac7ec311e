"""How large the numbers in a model's architecture may be: what layers and calls make of them is as large.

By tables: most keys share one limit, and what a layer makes of its settings alone, whatever its input is, has one of
its own. Imports no Keras.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import ModelError

LARGEST_SIDE = 2**14  # of a picture, a kernel or a fixed batch
LARGEST_TENSOR = 2**27  # values of one image between two layers: half a GiB; EfficientNet-B7's largest has 6 million
LARGEST_CONSTANT = 2**24  # values that settings alone make, or times that they repeat what comes in
LARGEST_COUNT = 2**20
LARGEST_MATRIX = 2**12  # rows of a square one
MOST_ROUNDS = 2**10  # of a loop in Python
MOST_TILES = 2**7  # a side of a picture, with a histogram each
LONGEST_SHAPE = 8

_SIDES = """
    size padding paddings pad_width output_padding cropping kernel_size pool_size dilation_rate height width nb_row
    nb_col target_height target_width crop_height crop_width num_rows num_columns fft_length num_mel_bins frame_length
    frame_step sequence_length sequence_stride output_sequence_length output_size
"""
_COUNTS = (
    "num_tokens num_bins max_tokens depth num_classes minlength maxlength num num_oov_indices n repeats max_number"
)
_ROUNDS = "power_iterations num_ops num_chains chain_depth ngrams"
_MOST: Mapping[str, int] = {
    **dict.fromkeys(_SIDES.split(), LARGEST_SIDE),
    **dict.fromkeys(_COUNTS.split(), LARGEST_COUNT),
    **dict.fromkeys(_ROUNDS.split(), MOST_ROUNDS),
    "tile_grid_size": MOST_TILES,
}
_FACTORS = frozenset(("kernel_size", "pool_size", "size", "repeats", "reps", "multiples"))
_TOGETHER: Mapping[tuple[str, str], int] = {
    ("height", "width"): LARGEST_TENSOR,
    ("target_height", "target_width"): LARGEST_TENSOR,
    ("fft_length", "num_mel_bins"): LARGEST_CONSTANT,
    ("num_rows", "num_columns"): LARGEST_CONSTANT,
}
# Numbers that count nothing (positions, values, identities), and settings of a training that nobody resumes.
NO_SIZES = frozenset(
    {"vocabulary", "bin_boundaries", "start", "stop", "end", "step", "value", "mask_value", "max_value", "min_value"}
    | {"seed", "shared_object_id", "compile_config", "training_config"}
)
# Functions of Keras 2 (TFOpLambda) and operations of Keras 3 that make a tensor of the numbers in their call.
_SQUARES = frozenset(("eye", "linalg.eye"))
_RANGES = frozenset(("range", "Arange"))
_MAKERS = frozenset(
    """
    fill linspace one_hot ones zeros repeat tile broadcast_to sequence_mask Bincount BroadcastTo Full Geomspace Linspace
    Logspace MultiHot OneHot Repeat Tile Vander
    """.split()  # noqa: SIM905
)


def check_settings(node: Mapping[str, Any], described: str) -> None:
    """Refuse numbers in a dictionary of an architecture that ask for more memory or time than any model takes.

    Args:
        node: the dictionary; dictionaries in it are looked at by themselves.
        described: whose it is, for the message.

    Raises:
        ModelError: with the key and the number.
    """
    for key, value in node.items():
        if key not in NO_SIZES:
            _check_numbers(key, value, described)
    for keys, most in _TOGETHER.items():
        check_shape([node[key] for key in keys if key in node], f"{described} {' and '.join(keys)}", most)
    if isinstance(node.get("inbound_nodes"), list):
        _check_call(node, described)


def check_shape(shape: Sequence[Any], described: str, most: int = LARGEST_TENSOR) -> None:
    """Refuse a tensor that fits no memory; sizes that are not known count as one.

    Raises:
        ModelError: with the shape.
    """
    if math.prod(abs(n) or 1 for n in shape if isinstance(n, int)) > most:
        raise ModelError(
            f"Expected tensors of at most {most:,} values for an image. Received: {described} "
            f"{list(shape)}. It would fill the memory; do not use it."
        )


def _check_numbers(key: str, value: Any, described: str) -> None:
    if key in ("batch_shape", "batch_input_shape") and isinstance(value, list) and value:
        _check_numbers("size", value[0], f"{described} a fixed batch;")
    most, waiting = _MOST.get(key, LARGEST_TENSOR), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int):
            _check_number(value, most, f"{described} {key}")
        if isinstance(value, list):
            waiting += [item for item in value if isinstance(item, (int, list))]
            if len(value) <= LONGEST_SHAPE and all(n is None or isinstance(n, int) for n in value):
                check_shape(value, f"{described} {key}", LARGEST_CONSTANT if key in _FACTORS else LARGEST_TENSOR)


def _check_call(node: Mapping[str, Any], described: str) -> None:
    """The numbers in the calls of a function that makes a tensor of them."""
    settings, name = node.get("config"), node.get("class_name")
    if name == "TFOpLambda" and isinstance(settings, dict):
        name = settings.get("function")
    if not isinstance(name, str) or name not in _SQUARES | _RANGES | _MAKERS:
        return
    most = LARGEST_MATRIX if name in _SQUARES else LARGEST_COUNT
    numbers = list(_numbers(node["inbound_nodes"]))
    for number in numbers:
        if isinstance(number, int) or name in _RANGES:
            _check_number(number, most, f"{described} in a call of {name}")
    sizes = [abs(number) for number in numbers if number]
    if name in _RANGES and sizes and max(sizes) / min(sizes) > LARGEST_CONSTANT:
        raise ModelError(
            f"Expected ranges of at most {LARGEST_CONSTANT:,} values. Received: {described} in a call of {name} from "
            f"{min(sizes):g} to {max(sizes):g}. Do not use it."
        )


def _check_number(value: float, most: int, described: str) -> None:
    if not abs(value) <= most:
        raise ModelError(f"Expected sizes of at most {most:,}. Received: {described} {value:,}. Do not use it.")


def _numbers(value: Any) -> Iterator[float]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict) and value.get("class_name") != "__keras_tensor__":
            waiting += value.values()
        elif isinstance(value, (int, float)):
            yield value
