"""Whether the splits hold enough images, and if not, what would: more images in all, other shares, lower minima."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.config import to_dict
from pipeline.errors import DataError
from pipeline.folders import named
from pipeline.recipe import Recipe, Shares
from pipeline.samples import SPLITS
from pipeline.words import count

if TYPE_CHECKING:
    from pipeline.data import ImageSet

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
