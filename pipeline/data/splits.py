"""Which split an image belongs to, and whether the splits hold enough images.

Which split an image belongs to: by its own content, the recipe's shares and whether the recipe trains at all.

Whether the splits hold enough images, and if not, what would: more images in all, other shares, lower minima.
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
from pipeline.data.folders import named
from pipeline.data.sample import Sample
from pipeline.recipe.load import to_dict
from pipeline.recipe.schema import SPLITS, Data, Recipe, Shares, Splits

if TYPE_CHECKING:
    from pipeline.data.dataset import ImageSet


DEPLOYED_WITH = ("calibration", "test")
# Where a finished model's images come from, the first that is there: what its author kept apart tests it.
TESTS = ("test", "validation", "train", "calibration")
NEAR_ONE = 0.02  # thirds to two digits sum to 0.99
CALIBRATES = ("calibration", "train", "validation", "test")


@dataclass(frozen=True)
class Roles:
    """Where images go.

    Attributes:
        shares: for each ready-made split that images come in (None: in none of them), the shares of the splits.
            Where all are 0, its images are not used.
        salt: another salt, another split.
        keys: of the recipe, that say the shares, such as "data.splits"; none of ready-made splits that stay what they
            are.
    """

    shares: Mapping[str | None, Mapping[str, float]]
    salt: str = ""
    keys: Mapping[str | None, str] = field(default_factory=dict)

    def split_of(self, sample: Sample) -> str | None:
        """The split that an image's own hash puts it in; None where nothing uses it."""
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
        """The ready-made splits that give images to a split, with the part of theirs that they give."""
        return {
            ready: shares[split] / sum(shares.values()) for ready, shares in self.shares.items() if shares.get(split)
        }

    def told(self) -> str | None:
        """What is surprising about the shares of a recipe that trains: their sum, where defaults were forgotten."""
        own = self.shares.get(None, {})
        shares = {name: own[name] for name in reversed(SPLITS) if name in own}
        total = sum(shares.values())
        if not total or abs(total - 1) <= NEAR_ONE:
            return None
        given = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        dealt = ", ".join(f"{name} {100 * share / total:.3g} %" for name, share in shares.items() if share)
        return (
            f"data.splits sum to {total:.4g} ({given}; one that is not given keeps its value), and are taken in "
            f"proportion: {dealt}"
        )


def roles_of(config: Data, present: Collection[str | None], trains: bool) -> Roles:
    """Decide where the images of a recipe go.

    A recipe that trains keeps ready-made splits what they are, and ``train`` gives up images for those that are
    missing. With a finished model there is only calibration and test. Images in no ready-made split are divided
    between those two in the proportion of ``data.splits``. Of ready-made splits ``test`` tests, else ``validation``,
    else ``train``; ``calibration`` calibrates, else ``train``, else ``validation``, each where it does not test; the
    only one there is is divided. What ``data.divide`` says of them comes first in either case.

    Args:
        config: the data section of the recipe.
        present: ready-made splits that images come in; None for images in none.
        trains: whether a model is trained on them.
    """
    given = {ready for ready in present if ready is not None}
    divided = {ready: _shares(vars(getattr(config.divide, ready))) for ready in given}
    decide = _with_training if trains else _without_training
    shares: dict[str | None, Mapping[str, float]] = dict(decide(config, given, divided).items())
    by_splits = given & {"train"} if trains else given if len(given) == 1 else set()
    keys: dict[str | None, str] = dict.fromkeys(by_splits, "data.splits")
    keys |= {ready: f"data.divide.{ready}" for ready in given if any(divided[ready].values())}
    if None in present:
        shares[None] = _shares(vars(config.splits) if trains else _deployed(config))
        keys[None] = "data.splits"
    return Roles(shares, config.salt, keys)


def _shares(some: Mapping[str, float]) -> dict[str, float]:
    return {name: some.get(name, 0.0) for name in SPLITS}


def _deployed(config: Data) -> dict[str, float]:
    """The recipe's proportion of calibration and test; halves where it says nothing, or nothing of those two."""
    shares = {name: getattr(config.splits, name) for name in DEPLOYED_WITH}
    given = config.splits != Splits() and any(shares.values())
    return shares if given else dict.fromkeys(DEPLOYED_WITH, 0.5)


def _with_training(
    config: Data, given: Collection[str], divided: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    provided = {ready for ready in given if not any(divided[ready].values())}
    provided |= {name for shares in divided.values() for name in SPLITS if shares[name]}
    shares = {}
    for ready in given:
        own = divided[ready]
        if not any(own.values()) and ready == "train":
            own = _shares({n: s for n, s in vars(config.splits).items() if n == "train" or n not in provided})
        shares[ready] = own if any(own.values()) else _shares({ready: 1.0})
    return shares


def _without_training(
    config: Data, given: Collection[str], divided: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    shares = {ready: _shares({name: divided[ready][name] for name in DEPLOYED_WITH}) for ready in given}
    told = {name for own in shares.values() for name in DEPLOYED_WITH if own[name]}
    free = {ready for ready in given if not any(shares[ready].values())}
    tests = next((ready for ready in TESTS if ready in free), None) if "test" not in told else None
    others = free - {tests} or free
    calibrates = next((ready for ready in CALIBRATES if ready in others), None) if "calibration" not in told else None
    if tests is not None and tests == calibrates:
        return {**shares, tests: _shares(_deployed(config))}
    for split, ready in (("test", tests), ("calibration", calibrates)):
        if ready is not None:
            shares[ready] = _shares({split: 1.0})
    return shares


NEARLY_CERTAIN = 0.99  # how likely an advised number of images gives a split what it needs
BY_LITTLE = 0.75  # of a minimum: from here on the number that is there is offered as the new one
MINIMA = {"calibration": "quantize.min_images", "test": "verify.min_images"}
WORSE = {"calibration": "scales get less certain", "test": "the verdict gets less certain"}


def needed_images(recipe: Recipe, classes: int) -> dict[str, int]:
    """How many images each split of a recipe needs; 0 of those that a finished model does without."""
    trains = not recipe.model.finished
    return {
        "train": classes if trains else 0,
        "validation": 1 if trains and _needs_validation(recipe) else 0,
        "calibration": recipe.quantize.min_images,
        "test": recipe.verify.min_images,
    }


def _needs_validation(recipe: Recipe) -> bool:
    """Without validation images the last epoch counts; that must be said: a share of 0 for them, or divided splits."""
    if recipe.train.early_stopping:
        return True
    divided = [to_dict(part) for part in vars(recipe.data.divide).values() if part != Shares()]
    if any(part["train"] for part in divided):
        return any(part["validation"] for part in divided)
    return recipe.data.splits.validation > 0


def check_split_sizes(images: ImageSet, minimum: Mapping[str, int]) -> None:
    """Refuse data that later stages could not use, before the first stage spends time on it.

    Args:
        images: the image set.
        minimum: split to the number of images it needs.

    Raises:
        DataError: with every split that has too few, what lies unused, and what would be enough.
    """
    short = {split: needed for split, needed in minimum.items() if len(images.splits[split]) < needed}
    if short:
        raise DataError(" ".join([_what_is_missing(images, short), *_ways_out(images, short, minimum), _idle(images)]))
    if not minimum.get("train"):  # a finished model is not trained
        return
    if missing := sorted(set(range(len(images.classes))) - {s.label for s in images.splits["train"]}):
        raise DataError(
            "Expected training images of every class. Received: none of "
            f"{', '.join(images.classes[i] for i in missing)}. Add images of it."
        )


def _what_is_missing(images: ImageSet, short: Mapping[str, int]) -> str:
    sizes = {split: len(images.splits[split]) for split in reversed(SPLITS)}
    wanted = " and ".join(
        count(needed, f"{split} image") + (f" ({MINIMA[split]})" if split in MINIMA else "")
        for split, needed in short.items()
    )
    received = " and ".join(f"{sizes[split]:,}" for split in short)
    dealt = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    return f"Expected at least {wanted}. Received: {received} of {count(sum(sizes.values()), 'image')} ({dealt})."


def _ways_out(images: ImageSet, short: Mapping[str, int], minimum: Mapping[str, int]) -> list[str]:
    said = [_enough(images, split, needed) for split, needed in short.items()]
    keys = [key for split in short for key in _what_to_raise(images, split)]
    other = _other_share(images, *next(iter(short.items())), minimum) if len(short) == 1 else None
    advice = "Add images" + (f", or raise {' and '.join(keys)}" if keys else "") + (f" to {other:g}" if other else "")
    if not keys and any(images.crossed.get(split) for split in short):
        advice = "Add images that no other split holds, or take their copies out of the others"
    if not keys and minimum.get("train") and "train" in images.roles.shares and "train" not in short:
        part = ", ".join(f"{split}: 0.1" for split in short)
        advice += f", or give a part of the training images: --set 'data.divide.train={{train: 0.8, {part}}}'"
    for split, needed in short.items():
        received = len(images.splits[split])
        if split in MINIMA and received >= BY_LITTLE * needed:
            advice += f", or go on with --set {MINIMA[split]}={received} ({WORSE[split]})"
        elif split in MINIMA:
            advice += f", or lower {MINIMA[split]} ({WORSE[split]})"
    if any(share < 1 for split in short for share in images.roles.sources(split).values()):
        said.append("Each image's own content decides where it goes, so the numbers vary.")
    return [*said, f"{advice}."]


def _enough(images: ImageSet, split: str, needed: int) -> str:
    """How many images these shares would need to give a split its minimum."""
    sources = images.roles.sources(split)
    if not sources:
        return f"No image goes to {split}."
    if len(sources) > 1:
        return f"{split.capitalize()} wants {needed - len(images.splits[split]):,} more."
    ((ready, share),) = sources.items()
    pool = "the images" if ready is None else f"the ready-made {ready} images"
    here = sum(images.came_in.get(name, 0) for name in ([ready] if ready else images.came_in))
    if share == 1:
        lost, missing = images.crossed.get(split, 0), needed - len(images.splits[split])
        copies = count(lost, "is a copy", "are copies")
        why = f", but of those {copies} of images in another split, which keeps them" if lost else ""
        return f"{split.capitalize()} takes all of {pool}{why}: {count(missing, 'more is', 'more are')} missing there."
    certain = _rounded_up(here + images_for(needed - len(images.splits[split]), share))
    return (
        f"{split.capitalize()} takes {100 * share:.3g} % of {pool}: {needed:,} want about "
        f"{images_in_all(images, split, needed):,}, and {certain:,} to be nearly certain."
    )


def _what_to_raise(images: ImageSet, split: str) -> list[str]:
    """The keys that give a split more of the images that are there; none where it has all of them already."""
    roles, sources = images.roles, images.roles.sources(split)
    dealt = {ready for ready, share in sources.items() if share < 1} if sources else set(roles.keys)
    return list(dict.fromkeys(f"{roles.keys[ready]}.{split}" for ready in dealt if ready in roles.keys))


def images_in_all(images: ImageSet, split: str, needed: int) -> int | None:
    """About how many images give a split so many; None where it takes whole ready-made splits, or parts of several."""
    shares = list(images.roles.sources(split).values())
    return _rounded_up(needed / shares[0]) if len(shares) == 1 and shares[0] < 1 else None


def _other_share(images: ImageSet, split: str, needed: int, minimum: Mapping[str, int]) -> float | None:
    """The value of data.splits for a split that makes its minimum nearly certain and leaves the others theirs."""
    shares, total = images.roles.shares.get(None, {}), sum(map(len, images.splits.values()))
    rest = sum(value for name, value in shares.items() if name != split)
    if set(images.roles.shares) != {None} or not rest:
        return None
    values = (hundredths / 100 for hundredths in range(1, 101))
    value = next((v for v in values if chance(total, v / (v + rest), needed) >= NEARLY_CERTAIN), None)
    others = [name for name in minimum if name != split and minimum[name] and shares[name]]
    if value is None or any(chance(total, shares[n] / (value + rest), minimum[n]) < NEARLY_CERTAIN for n in others):
        return None
    return value


def _idle(images: ImageSet) -> str:
    """What is there and not used, which is the first place to look for more."""
    found = [f"{count(number, 'ready-made image')} of {ready}" for ready, number in images.unused.items()]
    found += [images.copies()] if images.duplicates else []
    found += [f"{count(len(images.conflicts), 'picture')} in two classes"] if images.conflicts else []
    found += [f"{len(images.unreadable):,} unreadable"] if images.unreadable else []
    found += [named(images.others)] if images.others else []
    return f"Not used: {', '.join(found)}." if found else "All images that are there are used."


def chance(images: int, share: float, needed: int) -> float:
    """How likely at least ``needed`` of so many images fall into a split that takes this share: binomial."""
    if needed <= 0 or share >= 1:
        return float(images >= needed)
    if share <= 0 or images < needed:
        return 0.0
    logs = math.log(share), math.log1p(-share), math.lgamma(images + 1)
    fewer = (
        math.exp(logs[2] - math.lgamma(k + 1) - math.lgamma(images - k + 1) + k * logs[0] + (images - k) * logs[1])
        for k in range(needed)
    )
    return max(0.0, 1 - math.fsum(fewer))


def images_for(needed: int, share: float) -> int:
    """The least number of images of which a split with this share gets what it needs, nearly certainly."""
    most = max(1, needed)
    while chance(most, share, needed) < NEARLY_CERTAIN:
        most *= 2
    return bisect_left(range(most), NEARLY_CERTAIN, lo=needed, key=lambda images: chance(images, share, needed))


def _rounded_up(number: float) -> int:
    """To two digits."""
    step = int(10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1))
    return math.ceil(round(number / step, 6)) * step
