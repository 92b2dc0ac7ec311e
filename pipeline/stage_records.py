"""What the train and quantize stages say of their work, for the report: epochs, calibration, placement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.placement_row import Placement
from export.records import read_record, read_records

CALIBRATION_SCHEMA = 1
Rounding = Literal["nearest", "mean"]


@dataclass(frozen=True)
class Epoch:
    """An epoch of a training; validation is None where there were no such images."""

    phase: str
    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    learning_rate: float | None = None


@dataclass(frozen=True)
class Distances:
    """How far from the float model on held-out images; SQNR in dB, None: equal."""

    sqnr_db: float | None
    top1_agreement: float
    accuracy_drop: float | None


@dataclass(frozen=True)
class BiasCorrection:
    """What taking the mean error out of the biases brought."""

    used: bool
    before: Distances
    after: Distances


@dataclass(frozen=True)
class Fp16Rounding:
    """How the weights of the FP16 graph were rounded."""

    chosen: Rounding
    nearest: Distances
    mean: Distances


@dataclass(frozen=True)
class Fp16Report:
    """How the FP16 graph came about.

    Attributes:
        rounding: of its weights.
        kept_fp32: nodes that stay FP32, and why.
        budget: what was asked of it on held-out images, in words.
        budget_met: whether the result does.
        kept: the first node of each layer that stays FP32 to meet it.
        mixed: with these layers in FP32; None where there are none.
    """

    rounding: Fp16Rounding
    kept_fp32: Mapping[str, str]
    budget: str = "nothing"
    budget_met: bool = True
    kept: tuple[str, ...] = ()
    mixed: Distances | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """``quantize/calibration.json``.

    Attributes:
        fp16: the FP16 graph.
        equalized_activations: how many.
        held_out_images: that judged every choice.
        scale_images: that gave the scales.
        int8_convolutions: of ``convolutions``.
        convolutions: in the graph.
        budget: what was asked of INT8, in words.
        method: of the scales.
        methods: what each came to.
        all_int8: INT8 throughout.
        kept: nodes that stay in float.
        budget_met: whether the result does what was asked.
        bias_correction: None where the recipe turned it off.
        mixed: with the kept nodes in float.
        schema: of this file.
    """

    fp16: Fp16Report
    equalized_activations: int
    held_out_images: int
    scale_images: int
    int8_convolutions: int
    convolutions: int
    budget: str
    method: str
    methods: Mapping[str, Distances]
    all_int8: Distances
    kept: tuple[str, ...]
    budget_met: bool
    bias_correction: BiasCorrection | None = None
    mixed: Distances | None = None
    schema: int = CALIBRATION_SCHEMA


def read_history(path: Path) -> tuple[Epoch, ...]:
    """The epochs of ``train/history.json``.

    Raises:
        PipelineError: missing or damaged; with the file and the key.
    """
    return read_records(Epoch, path, remedy="Run the train stage again.", what="training history")


def read_calibration(path: Path) -> CalibrationReport:
    """``quantize/calibration.json``.

    Raises:
        PipelineError: missing or damaged; with the file and the key.
    """
    remedy = "Run the quantize stage again."
    return read_record(CalibrationReport, path, remedy=remedy, what="calibration report")


def read_placement(path: Path) -> tuple[Placement, ...]:
    """What each node of the INT8 graph computes in, from ``quantize/placement.json``.

    Raises:
        PipelineError: missing or damaged; with the file and the key.
    """
    return read_records(Placement, path, remedy="Run the quantize stage again.", what="placement")
