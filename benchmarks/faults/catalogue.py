"""The nineteen kinds of faults, each with its forms; `plant` draws the form, the layer and the magnitude."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.faults import calibrations, engines, layer_edits, resizing, shift_edits, whole_model
from benchmarks.faults import normalisation_edits as norms
from benchmarks.faults.planted import INHERITED, Fault, Planted, forms
from benchmarks.faults.specimen import Specimen
from export.errors import ProjectError

_FILES = ("fp32", "fp16", "int8")
_FLOAT = ("fp32", "fp16")

FAULTS: Mapping[str, Fault] = {
    "channels": Fault(
        "BGR/RGB swapped",
        forms({"pixels": whole_model.swap_channels, "weights": whole_model.swap_weights}, (*_FILES, INHERITED)),
    ),
    "mean": Fault(
        "mean missing",
        forms(
            {
                "none": whole_model.drop_mean,
                "twice": whole_model.double_mean,
                "other unit": whole_model.mean_of_unit_pixels,
                "no scale": whole_model.drop_scale,
            },
            (*_FILES, INHERITED),
        ),
    ),
    "resize": Fault("wrong resize", {**resizing.DECODINGS, **forms(resizing.EDITS, (*_FILES, INHERITED))}),
    "softmax": Fault(
        "softmax twice",
        forms({"in the logits": whole_model.softmax_in_logits, "behind": whole_model.softmax_of_probabilities}, _FILES),
    ),
    "classes": Fault(
        "class order permuted",
        forms(
            {
                "all": whole_model.permute_classes,
                "reversed": whole_model.reverse_classes,
                "two": whole_model.exchange_classes,
            },
            (*_FILES, INHERITED),
        ),
    ),
    "batch": Fault(
        "batch baked to 1",
        forms({"stated": whole_model.declare_batch_1, "reshape": whole_model.reshape_to_batch_1}, _FILES),
    ),
    "scale": Fault(
        "one convolution's scale off by 2",
        {
            **forms(
                {"weights": layer_edits.scale_weights, "weights and bias": layer_edits.scale_output},
                (*_FILES, INHERITED),
            ),
            **forms(
                {
                    "scale of the weights": layer_edits.scale_of_quantized_weights,
                    "scale of an activation": layer_edits.scale_of_quantized_activation,
                },
                ("int8",),
            ),
        },
    ),
    "overflow": Fault(
        "FP16 overflow in one layer",
        forms(
            {
                "activation": layer_edits.overflow_activation,
                "between": layer_edits.overflow_between,
                "weights": layer_edits.overflow_weights,
            },
            ("fp16",),
        ),
    ),
    "stale": Fault("stale engine", engines.STALE),
    "first-row": Fault(
        "an engine that returns the first row for all",
        {
            **engines.ROWS,
            **forms({"first": whole_model.repeat_row, "last": whole_model.repeat_last_row}, _FILES),
        },
    ),
    "nan": Fault(
        "a NaN in one row of many",
        {
            **forms({"one row": whole_model.nan_in_row, "one image": whole_model.nan_of_an_image}, _FILES),
            **forms({"in a layer": whole_model.nan_in_a_layer}, _FLOAT),  # a QuantizeLinear makes numbers of NaN
            **engines.NANS,
        },
    ),
    "training": Fault(
        "BatchNorm in training mode",
        forms(
            {
                "batch statistics": norms.training_mode,
                "attribute": norms.training_attribute,
            },
            _FLOAT,
        ),
    ),
    "calibration": Fault("INT8 calibrated on wrongly preprocessed images", calibrations.FORMS),
    "padding": Fault(
        "padding off by one",
        {
            **forms({"shifted": layer_edits.shift_padding}, (*_FILES, INHERITED)),
            **forms({"Pad_Fusion": layer_edits.forget_border}, _FLOAT),
        },
    ),
    "skips": Fault(
        "the skips of two residual blocks exchanged",
        forms({"exchanged": layer_edits.exchange_skips, "earlier": layer_edits.other_skip}, (*_FILES, INHERITED)),
    ),
    "pool": Fault(
        "an average pool that counts padding", forms({"turned": layer_edits.count_padding}, (*_FILES, INHERITED))
    ),
    "epsilon": Fault(
        "epsilon of BatchNorm changed",
        forms(
            {"one": norms.change_epsilon, "all": norms.change_every_epsilon},
            ("fp32", INHERITED),
        ),
    ),
    "weights": Fault(
        "a truncated weight",
        {
            **forms({"end": layer_edits.cut_weights, "channels": layer_edits.lose_channel}, (*_FILES, INHERITED)),
            **forms({"bits": layer_edits.fewer_bits}, (*_FLOAT, INHERITED)),
            **forms({"codes": shift_edits.change_codes}, ("int8",)),
        },
    ),
    "offset": Fault(
        "INT8's offset of an activation not made up for",
        forms(
            {
                "reader": shift_edits.forget_in_reader,
                "unrounded sums": shift_edits.sum_unrounded_weights,
                "minimum": shift_edits.raise_minimum,
                "scale": shift_edits.halve_lowered_scale,
                "border": shift_edits.pad_reader,
            },
            ("int8",),
        ),
    ),
}


def plant(name: str, specimen: Specimen, random: np.random.Generator, form: str | None = None) -> Planted:
    """Plant a fault into a folder of artifacts, which is changed.

    Args:
        name: of the fault, one of `FAULTS`.
        specimen: a copy.
        random: draws the layer and the magnitude, and the form where none is named.
        form: way to plant it. Defaults to None: drawn.

    Raises:
        NoSuchPartError: the model has no such part.
        ProjectError: there is no such fault or form.
    """
    if name not in FAULTS:
        raise ProjectError(f"Expected a fault of {', '.join(FAULTS)}. Received: {name!r}.")
    known = FAULTS[name].forms
    if form is None:
        form = str(random.choice(list(known)))
    if form not in known:
        raise ProjectError(f"Expected a form of {name!r}: {', '.join(known)}. Received: {form!r}.")
    return known[form](specimen, random)
