"""Which step of the way from Keras to a file cost how much of the answers: its error, and the answers it changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from export.words import count
from pipeline.artifacts.parity_report import FROM_KERAS, STEP, Hop
from pipeline.reporting.headline import short_name, step_words
from pipeline.reporting.html import Bar, Chart

MOST_DB = 300.0  # distances beyond count as this, so that a power of them is a number
NOTICEABLE_DB = 1.0  # between the sum of the steps and the way from end to end


@dataclass(frozen=True)
class Chain:
    """The way from Keras to a file.

    Attributes:
        steps: comparisons of each file on the way with the one before it, beginning with Keras.
        whole: comparison of the last file with Keras.
    """

    steps: tuple[Hop, ...]
    whole: Hop


@dataclass(frozen=True)
class StepCosts:
    """A chain as a page shows it.

    Attributes:
        chart: a bar a step.
        remark: how the steps together compare with the whole way, as a sentence.
    """

    chart: Chart
    remark: str


def chains(hops: Sequence[Hop]) -> list[Chain]:
    """Return the ways to the files that no other file was made from; only those of which every step was compared."""
    whole = {hop.run_name: hop for hop in hops if hop.kind == FROM_KERAS}
    steps = {hop.run_name: hop for hop in hops if hop.kind == STEP}
    sources = {hop.reference for hop in steps.values() if hop.compared}
    ways = []
    for last in (name for name, hop in whole.items() if name not in sources and hop.compared):
        way: list[Hop] = []
        name = last
        while name in steps and steps[name] not in way:
            way.insert(0, steps[name])
            name = steps[name].reference
        way[:0] = [whole[name]] if name in whole else []
        if len(way) > 1 and way[0].kind == FROM_KERAS and all(hop.compared for hop in way):
            ways.append(Chain(tuple(way), whole[last]))
    return ways


def step_costs(chain: Chain) -> StepCosts | None:
    """Draw each step's share of the noise energy of all steps; None where a step gave NaN or infinity, or none erred.

    Errors of different steps hardly have a direction in common, so their energies about add up; the remark says how
    far that is from the error from end to end.
    """
    if not all(step.equal or step.sqnr_db is not None for step in (*chain.steps, chain.whole)):
        return None
    energies = [_energy(step) for step in chain.steps]
    total = sum(energies)
    if total == 0:
        return None
    bars = []
    for step, energy in zip(chain.steps, energies):
        alone = "equal" if step.sqnr_db is None else f"{step.sqnr_db:.1f} dB"
        changed = count(step.changed_answers or 0, "answer")
        percent = 100 * energy / total
        bars.append(
            Bar(
                step_words(step.reference, step.run_name),
                percent,
                f"{percent:.1f} %",
                step.precision,
                more=f"{alone}, {changed} changed",
            )
        )
    chart = Chart(f"From Keras to {short_name(chain.whole.run_name)}: share of the error", bars, kind="plot steps")
    changed = count(chain.whole.changed_answers or 0, "answer")
    return StepCosts(chart, f"{_sum(total, chain.whole)}, {changed} changed.")


def _energy(step: Hop) -> float:
    """The energy of a step's error over that of the logits."""
    if step.sqnr_db is None:
        return 0.0
    return math.pow(10.0, -max(-MOST_DB, min(step.sqnr_db, MOST_DB)) / 10)


def _sum(total: float, whole: Hop) -> str:
    """The steps together against the whole way, as the beginning of a sentence."""
    together = -10 * math.log10(total)
    if whole.sqnr_db is None:
        return f"The errors of the steps cancel: together {together:.1f} dB, from end to end equal"
    words = f"From end to end {whole.sqnr_db:.1f} dB"
    if abs(difference := whole.sqnr_db - together) < NOTICEABLE_DB:
        return words
    how = "partly cancel" if difference > 0 else "add up to more"
    return f"{words}, the steps alone {together:.1f} dB: their errors {how}"
