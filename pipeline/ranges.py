"""The ranges of a recipe's values: what the types of ``pipeline.recipe`` do not say."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any

from export.sidecar import LARGEST_BATCH
from pipeline.backbones import BACKBONES, LARGEST_INPUT
from pipeline.bounded_yaml import shown
from pipeline.errors import RecipeError
from pipeline.model_settings import check_model
from pipeline.pattern_work import takes_too_long
from pipeline.recipe import Profile, Recipe
from pipeline.unread_keys import refuse_unread

SMALLEST_INPUT = 32
MOST_DENSE, LARGEST_DENSE = 16, 65_536  # more is a slip of the keyboard, and fills the memory
VARIANT_NAME = re.compile(r"[a-z0-9_]{1,100}")  # a part of a file's name
# <name>[/<config>][:<version>], without the namespaces whose code that package would fetch from elsewhere and run
TFDS_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}(/[A-Za-z0-9_.+-]{1,100})?(:(\d+|\*)(\.(\d+|\*)){2})?")
RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # it names a folder


def _check_pattern(pattern: str) -> None:
    try:
        groups, slow = re.compile(pattern).groups, takes_too_long(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(
            f"data.label_pattern: expected a regular expression. Received: {shown(pattern)} ({error})."
        ) from error
    if groups < 1:
        raise RecipeError(
            f"data.label_pattern: expected a regular expression with a group. Received: {shown(pattern)}."
        )
    if slow:
        raise RecipeError(
            "data.label_pattern: expected a regular expression that is searched for in little time: no repetition "
            "inside a repetition, and up to three (four behind a ^) side by side. "
            f"Received: {shown(pattern)}. Repeat a set instead of a group, as [a-z_]+ for ([a-z]+_)+, and leave out "
            "what follows the class."
        )


def _named_profiles(recipe: Recipe) -> dict[str, Profile]:
    return {f"build.variants.{name}": profile for name, profile in recipe.build.variants.items()}


THRESHOLDS = {  # from, to, in words
    "relative_error": (0.0, 100.0, "0 to 100, as a share of the largest logit"),
    "top1_agreement": (0.0, 1.0, "a share from 0 to 1 (0.99 is 99 %)"),
    "sqnr_db": (0.0, 1000.0, "0 to 1000 dB"),
    "accuracy_drop": (-1.0, 1.0, "a share from -1 to 1 (0.01 is one point)"),
}


def check_ranges(recipe: Recipe) -> None:
    """Refuse values that the types allow and no stage can use.

    Raises:
        RecipeError: with the key, what was expected and what was received.
        ModelError: the same, of a backbone and what does not go with it.
    """

    def require(condition: bool, where: str, expected: str, received: Any) -> None:
        if not condition:
            raise RecipeError(f"{where}: expected {expected}. Received: {shown(received)}.")

    require(
        RECIPE_NAME.fullmatch(recipe.name) is not None,
        "name", "up to 100 letters, digits, '.', '_' and '-' (it names a folder)", recipe.name,
    )  # fmt: skip
    shares = asdict(recipe.data.splits)
    for name, share in shares.items():
        require(0 <= share <= 1, f"data.splits.{name}", "a share from 0 to 1", share)
    require(sum(shares.values()) > 0, "data.splits", "at least one share above 0", shares)
    for split, part in asdict(recipe.data.divide).items():
        for name, share in part.items():
            require(0 <= share <= 1, f"data.divide.{split}.{name}", "a share from 0 to 1", share)
    if recipe.data.source in ("folder", "csv", "npz"):
        received = recipe.data.path or recipe.data.download
        require(received is not None, "data.path", f"a path (data.source is {recipe.data.source})", None)
    if recipe.data.source == "tfds":
        name = recipe.data.tfds or ""
        form = "a data set of tensorflow-datasets itself, as name, name/config or name:1.0.0"
        require(TFDS_NAME.fullmatch(name) is not None, "data.tfds", form, recipe.data.tfds)
    if recipe.data.label_pattern is not None:
        _check_pattern(recipe.data.label_pattern)
    size, smallest, whose = recipe.model.input_size, SMALLEST_INPUT, ""
    if recipe.model.path is None:
        smallest, whose = BACKBONES[recipe.model.backbone].smallest, f" for {recipe.model.backbone}"
    require(smallest <= size <= LARGEST_INPUT, "model.input_size", f"{smallest} to {LARGEST_INPUT}{whose}", size)
    require(0 <= recipe.model.dropout < 1, "model.dropout", "0 to below 1", recipe.model.dropout)
    dense = list(recipe.model.dense)
    sizes_fit = all(0 < n <= LARGEST_DENSE for n in dense) and len(dense) <= MOST_DENSE
    require(sizes_fit, "model.dense", f"up to {MOST_DENSE} sizes from 1 to {LARGEST_DENSE:,}", dense)
    for name, profile in {"build.profile": recipe.build.profile, **_named_profiles(recipe)}.items():
        sizes = (1, profile.min, profile.opt, profile.max, LARGEST_BATCH)
        require(list(sizes) == sorted(sizes), name, f"1 <= min <= opt <= max <= {LARGEST_BATCH:,}", asdict(profile))
    for name in recipe.build.variants:
        letters = "names of lower-case letters, digits and '_' (they name files)"
        require(VARIANT_NAME.fullmatch(name) is not None, "build.variants", letters, name)
    level, streams = recipe.build.optimization_level, recipe.build.max_aux_streams
    require(level is None or 0 <= level <= 5, "build.optimization_level", "0 to 5", level)
    require(streams is None or 0 <= streams <= 64, "build.max_aux_streams", "0 to 64", streams)
    threads = recipe.build.builder_threads
    require(threads is None or 1 <= threads <= 1024, "build.builder_threads", "1 to 1024", threads)
    require(
        not (recipe.build.strip_weights and recipe.build.version_compatible),
        "build", "strip_weights or version_compatible", "both: a lean runtime cannot put weights back",
    )  # fmt: skip
    chosen = list(recipe.build.precisions)
    once = bool(chosen) and len(set(chosen)) == len(chosen)
    require(once, "build.precisions", "at least one precision, each once", chosen)
    for where, count in {
        "quantize.min_images": recipe.quantize.min_images,
        "quantize.sensitivity_images": recipe.quantize.sensitivity_images,
        "verify.min_images": recipe.verify.min_images,
        "infer.top_k": recipe.infer.top_k,
        "benchmark.min_samples": recipe.benchmark.min_samples,
    }.items():
        require(count >= 1, where, "at least 1", count)
    for name in ("train", "quantize", "verify", "infer"):
        size = getattr(recipe, name).batch_size
        require(1 <= size <= LARGEST_BATCH, f"{name}.batch_size", f"1 to {LARGEST_BATCH:,}", size)
    share = recipe.quantize.held_out
    require(0 < share <= 0.5, "quantize.held_out", "above 0, up to 0.5", share)
    for name in ("max_kept", "max_kept_fp32"):
        share = getattr(recipe.quantize, name)
        require(0 <= share <= 1, f"quantize.{name}", "0 to 1", share)
    for where, (low, high) in {
        "quantize": (recipe.quantize.min_images, recipe.quantize.max_images),
        "verify": (recipe.verify.min_images, recipe.verify.max_images),
    }.items():
        require(low <= high, f"{where}.max_images", f"at least {where}.min_images ({low})", high)
    for name in ("head", "fine_tune"):
        phase = getattr(recipe.train, name)
        require(phase.epochs >= 0, f"train.{name}.epochs", "0 or more", phase.epochs)
        rate = phase.learning_rate
        require(0 < rate < math.inf, f"train.{name}.learning_rate", "a number above 0", rate)
    augment = recipe.train.augment
    require(0 <= augment.rotation <= 180, "train.augment.rotation", "0 to 180 degrees", augment.rotation)
    require(0 <= augment.zoom < 1, "train.augment.zoom", "0 to below 1", augment.zoom)
    require(recipe.train.early_stopping >= 0, "train.early_stopping", "0 or more", recipe.train.early_stopping)
    cache = recipe.train.feature_cache_mib
    require(cache >= 0, "train.feature_cache_mib", "0 or more", cache)
    pause = recipe.train.checkpoint_seconds
    require(0 <= pause < math.inf, "train.checkpoint_seconds", "0 or more", pause)
    require(0 <= recipe.train.seed < 2**32, "train.seed", "0 to 2**32 - 1", recipe.train.seed)
    for where, seconds in {
        "benchmark.seconds": recipe.benchmark.seconds,
        "benchmark.warmup_seconds": recipe.benchmark.warmup_seconds,
    }.items():
        require(0 <= seconds < 3600, where, "0 to below 3600", seconds)
    workspace = recipe.build.workspace_mib
    require(workspace is None or 0 < workspace <= 1 << 24, "build.workspace_mib", "1 to 16777216", workspace)
    require(
        all(b >= 1 for b in recipe.benchmark.batches),
        "benchmark.batches",
        "sizes from 1",
        recipe.benchmark.batches,
    )
    for precision, limits in asdict(recipe.verify.thresholds).items():
        for name, (least, most, expected) in THRESHOLDS.items():
            limit = limits[name]
            fits = limit is None or isinstance(limit, str) or least <= limit <= most
            require(fits, f"verify.thresholds.{precision}.{name}", expected, limit)
    require(recipe.export.top_k >= 0, "export.top_k", "0 (none) or more", recipe.export.top_k)
    require(recipe.infer.samples >= 0, "infer.samples", "0 or more", recipe.infer.samples)
    require(recipe.data.max_bad_images >= 0, "data.max_bad_images", "0 or more", recipe.data.max_bad_images)
    refuse_unread(recipe)
    check_model(recipe.model)
