"""Which split an image belongs to: by its own content, the recipe's shares and whether the recipe trains at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipeline.files import sha256_bytes
from pipeline.recipe import Data, Splits
from pipeline.samples import SPLITS, Sample

TRAINED_WITH = ("train", "validation")
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
