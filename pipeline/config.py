"""Reads a recipe: YAML into typed dataclasses, unknown keys refused with the closest match, ``--set a.b=c`` on top."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe

# Keys that hold a path. In a file they are relative to it, in --set to the working directory; what lies there enters
# a stage's inputs by content, so the path itself decides nothing.
PATH_KEYS = (
    "data.path",
    "data.classes",
    "model.path",
    "model.weights",
    "model.classes",
    "model.preprocessing.mean",
    "build.timing_cache",  # it spares time and decides nothing
)
RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it names a folder
IMAGENET = "imagenet"  # as model.weights: what keras.applications publishes, downloaded and checked by Keras


class _Loader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: YAML file.
        overrides: ``section.key=value`` strings; the value is YAML, so ``[1, 8]``, ``null`` and ``true`` work.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.
    """
    tree = _read_yaml(path)
    tree.setdefault("name", path.stem)
    _resolve_paths(tree, path.resolve().parent)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"Expected --set section.key=value. Received: --set {override!r}.")
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise RecipeError(f"--set {key}: expected a YAML value. Received: {text!r} ({error}).") from error
        branch: dict[str, Any] = {}
        _assign(branch, key.strip().split("."), value)
        _resolve_paths(branch, Path.cwd())
        _merge(tree, branch)
    recipe = _convert(Recipe, tree, "", Recipe(name=path.stem))
    _check(recipe)
    return recipe


def to_dict(section: Any) -> dict[str, Any]:
    """A recipe or a section of it as plain values (tuples become lists)."""
    return _plain(dataclasses.asdict(section))


def dump_yaml(recipe: Recipe) -> str:
    """The recipe in force as YAML, defaults filled in. It loads again to an equal recipe."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def recipe_slice(recipe: Recipe, sections: Sequence[str]) -> dict[str, Any]:
    """The sections that decide a stage's result, without paths (their content is hashed instead)."""
    whole = to_dict(recipe)
    part = {name: whole[name] for name in sections}
    for dotted in PATH_KEYS:
        section, key = _parent(part, dotted)
        if not isinstance(section.get(key), list):  # names and numbers in the recipe itself do decide
            section.pop(key, None)
    return part


def _parent(tree: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """The section that holds a dotted key (an empty one where there is none), and the key in it."""
    *sections, key = dotted.split(".")
    node: Any = tree
    for name in sections:
        node = node.get(name) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else {}), key


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f" Recipes there: {', '.join(known)}." if known else ""
        close = difflib.get_close_matches(path.stem, known, 1)
        hint += f" Did you mean {path.parent / close[0]}.yaml?" if close else ""
        raise RecipeError(f"Expected a recipe file. Received: {path}, which does not exist.{hint}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
        raise RecipeError(f"Expected YAML in {path}. Received: {error}.") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"Expected sections such as 'data:' and 'model:' in {path}. Received: {tree!r:.80}.")
    return tree


def _assign(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _merge(tree: dict[str, Any], branch: Mapping[str, Any]) -> None:
    for key, value in branch.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _resolve_paths(tree: dict[str, Any], base: Path) -> None:
    for dotted in PATH_KEYS:
        section, key = _parent(tree, dotted)
        value = section.get(key)
        if isinstance(value, str) and value != IMAGENET:
            section[key] = str((base / Path(value).expanduser()).resolve())


def _convert(expected: Any, value: Any, where: str, default: Any = None) -> Any:
    """The value as the type that the field declares, or a RecipeError that says where and what."""
    if dataclasses.is_dataclass(expected):
        return _convert_section(expected, value, where, default)
    origin, args = get_origin(expected), get_args(expected)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert_union([a for a in args if a is not type(None)], value, where, default)
    if origin is Literal:
        for choice in args:
            if value == choice and type(value) is type(choice):
                return choice
        choices = ", ".join(map(str, args))
        raise RecipeError(f"{where}: expected one of {choices}. Received: {value!r}.{_closest(value, args)}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where}: expected a list. Received: {value!r}.")
        if args[0] is str:  # YAML reads the class name 0 as a number
            value = [str(item) if type(item) is int else item for item in value]
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if expected is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-3 as a string
    accepted = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[expected]
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise RecipeError(f"{where}: expected {expected.__name__}. Received: {value!r} ({type(value).__name__}).")
    if expected is float and not math.isfinite(float(value)):
        raise RecipeError(f"{where}: expected a finite number. Received: {value!r}.")
    return float(value) if expected is float else value


def _convert_union(choices: Sequence[Any], value: Any, where: str, default: Any) -> Any:
    """The value as the one of several types that its form stands for."""
    if len(choices) == 1:
        return _convert(choices[0], value, where)
    sections: list[Any] = [c for c in choices if dataclasses.is_dataclass(c)]
    lists = [c for c in choices if get_origin(c) is tuple]
    plain = [c for c in choices if c not in sections and c not in lists]
    if isinstance(value, dict) and sections:
        start = default if isinstance(default, sections[0]) else sections[0]()
        return _convert_section(sections[0], value, where, start)
    if isinstance(value, (list, tuple)) and lists:
        return _convert(lists[0], value, where)
    if isinstance(value, (list, tuple, dict)):
        raise RecipeError(f"{where}: expected a plain value{' or a list' if lists else ''}. Received: {value!r}.")
    return _convert(plain[0], value, where)


def _convert_section(section: Any, value: Any, where: str, default: Any) -> Any:
    """A section; keys that are not given keep what the section above says, not the type's own default."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise RecipeError(f"{where or 'recipe'}: expected keys and values. Received: {value!r}.")
    hints = get_type_hints(section)
    fields = {f.name: f for f in dataclasses.fields(section)}
    for key in value:
        if key not in fields:
            dotted = f"{where}.{key}" if where else str(key)
            raise RecipeError(f"Unknown key {dotted!r}.{_closest(key, list(fields))} Known here: {', '.join(fields)}.")
    prefix = f"{where}." if where else ""
    given = {key: _convert(hints[key], item, f"{prefix}{key}", getattr(default, key)) for key, item in value.items()}
    return dataclasses.replace(default, **given)


def _closest(value: Any, known: Sequence[Any]) -> str:
    match = difflib.get_close_matches(str(value), [str(k) for k in known], 1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as error:
        raise RecipeError(
            f"data.label_pattern: expected a regular expression. Received: {pattern!r} ({error})."
        ) from error


def _check(recipe: Recipe) -> None:
    """Ranges that types do not say."""

    def require(condition: bool, where: str, expected: str, received: Any) -> None:
        if not condition:
            raise RecipeError(f"{where}: expected {expected}. Received: {received!r}.")

    require(
        RECIPE_NAME.fullmatch(recipe.name) is not None,
        "name", "letters, digits, '.', '_' and '-' (it names a folder)", recipe.name,
    )  # fmt: skip
    shares = to_dict(recipe.data.splits)
    for name, share in shares.items():
        require(0 <= share <= 1, f"data.splits.{name}", "a share from 0 to 1", share)
    require(sum(shares.values()) > 0, "data.splits", "at least one share above 0", shares)
    for split, part in to_dict(recipe.data.divide).items():
        for name, share in part.items():
            require(0 <= share <= 1, f"data.divide.{split}.{name}", "a share from 0 to 1", share)
    if recipe.data.source in ("folder", "csv", "npz"):
        received = recipe.data.path or recipe.data.download
        require(received is not None, "data.path", f"a path (data.source is {recipe.data.source})", None)
    if recipe.data.source == "tfds":
        require(bool(recipe.data.tfds), "data.tfds", "a name of tensorflow-datasets", recipe.data.tfds)
    if recipe.data.label_pattern is not None:
        groups = _groups(recipe.data.label_pattern)
        require(groups >= 1, "data.label_pattern", "a regular expression with a group", recipe.data.label_pattern)
    require(32 <= recipe.model.input_size <= 512, "model.input_size", "32 to 512", recipe.model.input_size)
    require(0 <= recipe.model.dropout < 1, "model.dropout", "0 to below 1", recipe.model.dropout)
    require(all(n > 0 for n in recipe.model.dense), "model.dense", "positive sizes", list(recipe.model.dense))
    profile = recipe.build.profile
    require(
        1 <= profile.min <= profile.opt <= profile.max,
        "build.profile", "1 <= min <= opt <= max", to_dict(profile),
    )  # fmt: skip
    level, streams = recipe.build.optimization_level, recipe.build.max_aux_streams
    require(level is None or 0 <= level <= 5, "build.optimization_level", "0 to 5", level)
    require(streams is None or 0 <= streams <= 64, "build.max_aux_streams", "0 to 64", streams)
    threads = recipe.build.builder_threads
    require(threads is None or 1 <= threads <= 1024, "build.builder_threads", "1 to 1024", threads)
    require(
        not (recipe.build.strip_weights and recipe.build.version_compatible),
        "build", "strip_weights or version_compatible", "both: a lean runtime cannot put weights back",
    )  # fmt: skip
    require(bool(recipe.build.precisions), "build.precisions", "at least one precision", [])
    for where, count in {
        "train.batch_size": recipe.train.batch_size,
        "quantize.batch_size": recipe.quantize.batch_size,
        "quantize.min_images": recipe.quantize.min_images,
        "quantize.sensitivity_images": recipe.quantize.sensitivity_images,
        "verify.batch_size": recipe.verify.batch_size,
        "verify.min_images": recipe.verify.min_images,
        "infer.batch_size": recipe.infer.batch_size,
        "infer.top_k": recipe.infer.top_k,
        "benchmark.min_samples": recipe.benchmark.min_samples,
    }.items():
        require(count >= 1, where, "at least 1", count)
    share = recipe.quantize.held_out
    require(0 < share <= 0.5, "quantize.held_out", "above 0, up to 0.5", share)
    share = recipe.quantize.max_kept
    require(0 <= share <= 1, "quantize.max_kept", "0 to 1", share)
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
    require(recipe.export.top_k >= 0, "export.top_k", "0 (none) or more", recipe.export.top_k)
    require(recipe.infer.samples >= 0, "infer.samples", "0 or more", recipe.infer.samples)
    require(recipe.data.max_bad_images >= 0, "data.max_bad_images", "0 or more", recipe.data.max_bad_images)
