"""Which split each image belongs to, and whether the splits have enough images.

An image's split follows from its own content, the shares in the recipe, and whether the recipe trains. Where a split
has too few images, the error says what would be enough: more images, other shares, lower minima.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from export.errors import DataError
from export.words import count
from pipeline.artifacts.files import sha256_bytes
from pipeline.data.folders import kinds_in_words
from pipeline.data.sample import Sample
from pipeline.recipe.load import to_dict
from pipeline.recipe.schema import SPLITS, Data, Recipe, Shares, Splits

if TYPE_CHECKING:
    from pipeline.data.dataset import ImageSet


DEPLOYED_WITH = ("calibration", "test")
# The ready-made split that a finished model is tested with, and calibrated with: the first that has images.
TESTS = ("test", "validation", "train", "calibration")
CALIBRATES = ("calibration", "train", "validation", "test")
NEAR_ONE = 0.02  # thirds to two digits sum to 0.99


@dataclass(frozen=True)
class Roles:
    """The shares by which images are divided into splits.

    Attributes:
        shares: the share of each split, by the ready-made split that images come in (None: in none of them). Where all
            are 0, the images are not used.
        salt: is hashed with each image; another salt gives other splits.
        keys: the recipe key that sets the shares, such as "data.splits", by ready-made split. A ready-made split that
            stays as it is has none.
    """

    shares: Mapping[str | None, Mapping[str, float]]
    salt: str = ""
    keys: Mapping[str | None, str] = field(default_factory=dict)

    def split_of(self, sample: Sample) -> str | None:
        """Return the split that an image's own hash puts it in; None where nothing uses it."""
        shares = self.shares[sample.ready]
        total = sum(shares.values())
        if not total:
            return None
        position = int(sha256_bytes(f"{self.salt}{sample.sha256}".encode())[:15], 16) / 16**15 * total
        for name in SPLITS:
            position -= shares[name]
            if position < 0:
                return name
        return next(name for name in reversed(SPLITS) if shares[name] > 0)

    def sources(self, split: str) -> dict[str | None, float]:
        """Return the ready-made splits that give images to a split, each with the fraction that it gives."""
        return {
            ready: shares[split] / sum(shares.values()) for ready, shares in self.shares.items() if shares.get(split)
        }

    def sum_warning(self) -> str | None:
        """Return a warning where the shares of a recipe that trains do not sum to 1; None where they do."""
        own = self.shares.get(None, {})
        shares = {name: own[name] for name in reversed(SPLITS) if name in own}
        total = sum(shares.values())
        if not total or abs(total - 1) <= NEAR_ONE:
            return None
        values = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        percentages = ", ".join(f"{name} {100 * share / total:.3g} %" for name, share in shares.items() if share)
        return (
            f"data.splits sum to {total:.4g} ({values}; one that is not set keeps its default), and are taken in "
            f"proportion: {percentages}"
        )


def roles_of(config: Data, present: Collection[str | None], trains: bool) -> Roles:
    """Decide which split each image of a recipe goes to.

    A recipe that trains keeps ready-made splits as they are; ``train`` gives images to those that are missing. A
    finished model needs only calibration and test. Images in no ready-made split are divided between those two in the
    proportion of ``data.splits``. The test images are those of the ready-made ``test``, else ``validation``, else
    ``train``; the calibration images are those of ``calibration``, else ``train``, else ``validation``, unless these
    are the test images; a single ready-made split is divided. In either case ``data.divide`` takes precedence.

    Args:
        config: the data section of the recipe.
        present: ready-made splits that images come in; None for images in none.
        trains: whether a model is trained on them.
    """
    ready_splits = {ready for ready in present if ready is not None}
    divided = {ready: _shares(vars(getattr(config.divide, ready))) for ready in ready_splits}
    decide = _with_training if trains else _without_training
    shares: dict[str | None, Mapping[str, float]] = dict(decide(config, ready_splits, divided).items())
    single = ready_splits if len(ready_splits) == 1 else set()
    keys: dict[str | None, str] = dict.fromkeys(ready_splits & {"train"} if trains else single, "data.splits")
    keys |= {ready: f"data.divide.{ready}" for ready in ready_splits if any(divided[ready].values())}
    if None in present:
        shares[None] = _shares(vars(config.splits) if trains else _deployed(config))
        keys[None] = "data.splits"
    return Roles(shares, config.salt, keys)


def _shares(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: shares.get(name, 0.0) for name in SPLITS}


def _deployed(config: Data) -> dict[str, float]:
    """The recipe's proportion of calibration and test; halves where it sets no shares, or none for those two."""
    shares = {name: getattr(config.splits, name) for name in DEPLOYED_WITH}
    return shares if config.splits != Splits() and any(shares.values()) else dict.fromkeys(DEPLOYED_WITH, 0.5)


def _with_training(
    config: Data, ready_splits: Collection[str], divided: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    undivided = {ready for ready in ready_splits if not any(divided[ready].values())}
    provided = undivided | {name for shares in divided.values() for name in SPLITS if shares[name]}
    of_train = _shares({n: s for n, s in vars(config.splits).items() if n == "train" or n not in provided})
    whole = {ready: _shares({ready: 1.0}) for ready in undivided}
    return {**divided, **whole, **({"train": of_train} if "train" in undivided and any(of_train.values()) else {})}


def _without_training(
    config: Data, ready_splits: Collection[str], divided: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    shares = {ready: _shares({name: divided[ready][name] for name in DEPLOYED_WITH}) for ready in ready_splits}
    provided = {name for own in shares.values() for name in DEPLOYED_WITH if own[name]}
    free = {ready for ready in ready_splits if not any(shares[ready].values())}
    tests = next((ready for ready in TESTS if ready in free and "test" not in provided), None)
    others = free - {tests} or free
    calibrates = next((ready for ready in CALIBRATES if ready in others and "calibration" not in provided), None)
    if tests is not None and tests == calibrates:
        return {**shares, tests: _shares(_deployed(config))}
    whole = (("test", tests), ("calibration", calibrates))
    return shares | {ready: _shares({split: 1.0}) for split, ready in whole if ready is not None}


NEARLY_CERTAIN = 0.99  # the probability with which an advised number of images gives a split its minimum
NEARLY_ENOUGH = 0.75  # of a minimum: from this fraction on, the number received is suggested as the new minimum
MINIMA = {"calibration": "quantize.min_images", "test": "verify.min_images"}
CONSEQUENCES = {"calibration": "scales get less certain", "test": "the verdict gets less certain"}


def needed_images(recipe: Recipe, classes: int) -> dict[str, int]:
    """Return how many images each split of a recipe needs; 0 for those that a finished model does not need."""
    trains = not recipe.model.finished
    return {
        "train": classes if trains else 0,
        "validation": 1 if trains and _needs_validation(recipe) else 0,
        "calibration": recipe.quantize.min_images,
        "test": recipe.verify.min_images,
    }


def _needs_validation(recipe: Recipe) -> bool:
    """Whether the recipe wants validation images. Without them the last epoch is taken, so their share must be 0."""
    divided = [to_dict(part) for part in vars(recipe.data.divide).values() if part != Shares()]
    by_divide = any(part["train"] for part in divided)
    share = any(part["validation"] for part in divided) if by_divide else recipe.data.splits.validation > 0
    return recipe.train.early_stopping > 0 or share


def check_split_sizes(images: ImageSet, minimum: Mapping[str, int]) -> None:
    """Refuse data that later stages could not use, before the first stage spends time on it.

    Args:
        images: the image set.
        minimum: how many images each split needs.

    Raises:
        DataError: a split has too few images, or no training image of a class; with what is unused and what would be
            enough.
    """
    short = {split: needed for split, needed in minimum.items() if len(images.splits[split]) < needed}
    if short:
        raise DataError(" ".join([_shortage(images, short), *_remedies(images, short, minimum), _unused(images)]))
    # Without a minimum, the training images may not be declared, and so not readable.
    classes = set(range(len(images.classes)))
    present = {sample.label for sample in images.splits["train"]} if minimum.get("train") else classes
    if missing := sorted(classes - present):
        raise DataError(
            "Expected training images of every class. Received: none of "
            f"{', '.join(images.classes[i] for i in missing)}. Add images of it."
        )


def _shortage(images: ImageSet, short: Mapping[str, int]) -> str:
    """The splits that have too few images, as "Expected … Received: …"."""
    sizes = {split: len(images.splits[split]) for split in reversed(SPLITS)}
    expected = " and ".join(
        count(needed, f"{split} image") + (f" ({MINIMA[split]})" if split in MINIMA else "")
        for split, needed in short.items()
    )
    all_splits = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    return (
        f"Expected at least {expected}. Received: {' and '.join(f'{sizes[split]:,}' for split in short)} of "
        f"{count(sum(sizes.values()), 'image')} ({all_splits})."
    )


def _remedies(images: ImageSet, short: Mapping[str, int], minimum: Mapping[str, int]) -> list[str]:
    """What would be enough for the splits that have too few images, as sentences."""
    sentences = [_enough(images, split, needed) for split, needed in short.items()]
    keys = [key for split in short for key in _keys_to_raise(images, split)]
    share = _sufficient_share(images, *next(iter(short.items())), minimum) if len(short) == 1 else None
    advice = "Add images" + (f", or raise {' and '.join(keys)}" if keys else "") + (f" to {share:g}" if share else "")
    if not keys and any(images.crossed.get(split) for split in short):
        advice = "Add images that no other split holds, or take their copies out of the others"
    if not keys and minimum.get("train") and "train" in images.roles.shares and "train" not in short:
        parts = ", ".join(f"{split}: 0.1" for split in short)
        advice += f", or give a part of the training images: --set 'data.divide.train={{train: 0.8, {parts}}}'"
    for split in filter(MINIMA.get, short):
        received, key = len(images.splits[split]), MINIMA[split]
        way = f"go on with --set {key}={received}" if received >= NEARLY_ENOUGH * short[split] else f"lower {key}"
        advice += f", or {way} ({CONSEQUENCES[split]})"
    if any(share < 1 for split in short for share in images.roles.sources(split).values()):
        sentences.append("Each image's own content decides its split, so the numbers vary.")
    return [*sentences, f"{advice}."]


def _enough(images: ImageSet, split: str, needed: int) -> str:
    """How many images these shares would need to give a split its minimum."""
    sources, missing = images.roles.sources(split), needed - len(images.splits[split])
    if not sources:
        return f"No image goes to {split}."
    if len(sources) > 1:
        return f"{split.capitalize()} needs {missing:,} more."
    ((ready, share),) = sources.items()
    pool = "the images" if ready is None else f"the ready-made {ready} images"
    if share == 1:
        lost = images.crossed.get(split, 0)
        copies = f", but {count(lost, 'is a copy', 'are copies')} of images that another split keeps" if lost else ""
        return (
            f"{split.capitalize()} takes all of {pool}{copies}: {count(missing, 'more is', 'more are')} needed there."
        )
    present = sum(images.came_in.get(name, 0) for name in ([ready] if ready else images.came_in))
    on_average, certain = _rounded_up(needed / share), _rounded_up(present + images_for(missing, share))
    # A split that already has more than its share may be certain of its minimum with fewer than the average.
    about = f"about {on_average:,}, and " if on_average < certain else ""
    return (
        f"{split.capitalize()} takes {100 * share:.3g} % of {pool}: {needed:,} need {about}{certain:,} to be nearly "
        "certain."
    )


def _keys_to_raise(images: ImageSet, split: str) -> list[str]:
    """The recipe keys that give a split more of the present images; none where it has all of them already."""
    roles, sources = images.roles, images.roles.sources(split)
    divided = {ready for ready, share in sources.items() if share < 1} if sources else set(roles.keys)
    return list(dict.fromkeys(f"{roles.keys[ready]}.{split}" for ready in divided if ready in roles.keys))


def images_in_all(images: ImageSet, split: str, needed: int) -> int | None:
    """Return about how many images in all give a split so many.

    None where the split takes whole ready-made splits, or parts of several.
    """
    shares = list(images.roles.sources(split).values())
    return _rounded_up(needed / shares[0]) if len(shares) == 1 and shares[0] < 1 else None


def _sufficient_share(images: ImageSet, split: str, needed: int, minimum: Mapping[str, int]) -> float | None:
    """The value of data.splits that makes a split's minimum nearly certain, and the minima of the others too."""
    shares, total = images.roles.shares.get(None, {}), sum(map(len, images.splits.values()))
    rest = sum(value for name, value in shares.items() if name != split)
    if set(images.roles.shares) != {None} or not rest:
        return None
    values = (hundredths / 100 for hundredths in range(1, 101))
    value = next((v for v in values if probability_of_enough(total, v / (v + rest), needed) >= NEARLY_CERTAIN), None)
    others = [name for name in minimum if name != split and minimum[name] and shares[name]]
    sufficient = value and all(
        probability_of_enough(total, shares[n] / (value + rest), minimum[n]) >= NEARLY_CERTAIN for n in others
    )
    return value if sufficient else None


def _unused(images: ImageSet) -> str:
    """The present images that are not used, in a sentence."""
    unused = [
        *(f"{count(number, 'ready-made image')} of {ready}" for ready, number in images.unused.items()),
        images.copies() if images.duplicates else "",
        f"{count(len(images.conflicts), 'picture')} in two classes" if images.conflicts else "",
        f"{len(images.unreadable):,} unreadable" if images.unreadable else "",
        kinds_in_words(images.others),
    ]
    return f"Not used: {', '.join(filter(None, unused))}." if any(unused) else "All images found are used."


def probability_of_enough(images: int, share: float, needed: int) -> float:
    """Return the probability that a split with this share gets at least ``needed`` of the images (binomial)."""
    if needed <= 0 or share >= 1:
        return float(images >= needed)
    if share <= 0 or images < needed:
        return 0.0
    inside, outside, every = math.log(share), math.log1p(-share), math.lgamma(images + 1)
    fewer = (
        math.exp(every - math.lgamma(k + 1) - math.lgamma(images - k + 1) + k * inside + (images - k) * outside)
        for k in range(needed)
    )
    return max(0.0, 1 - math.fsum(fewer))


def images_for(needed: int, share: float) -> int:
    """Return the least number of images that nearly certainly gives a split with this share what it needs."""
    most = max(1, needed)
    while probability_of_enough(most, share, needed) < NEARLY_CERTAIN:
        most *= 2
    return bisect_left(
        range(most), NEARLY_CERTAIN, lo=needed, key=lambda images: probability_of_enough(images, share, needed)
    )


def _rounded_up(number: float) -> int:
    """Round up to two significant digits."""
    step = int(10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1))
    return math.ceil(round(number / step, 6)) * step
