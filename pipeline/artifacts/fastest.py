"""Which file is faster on a GPU, as the benchmark measured it: ``serves`` in ``benchmark/benchmark.json``.

The benchmark compares every two files that a GPU runs, at each batch size, because which of them may serve is known
only when one is to serve: a verdict may come or go later. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from export.records import to_json
from export.tensorrt.sidecar import BatchProfile, Precision, read_sidecar
from pipeline.artifacts.engines import plan_precision
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.paths import Artifacts

if TYPE_CHECKING:
    from pipeline.recipe.runtime import RuntimeOptions

MARGIN = 0.02  # a smaller gain changes nothing, however sure it is


@dataclass(frozen=True)
class Contender:
    """A file that a GPU runs, and all that its speed depends on besides the GPU.

    Attributes:
        file: below the artifacts, such as "build/rtx/fp16.plan".
        backend: that runs it.
        precision: "fp32", "fp16" or "int8".
        onnx_sha256: of the ONNX file: of what an engine was built from, or of the file itself.
        version: of the TensorRT that built it, or of ONNX Runtime.
        plan_sha256: of an engine; None for an ONNX file.
        flavour: of its TensorRT; None for an ONNX file.
        profile: smallest, best and largest batch of an engine; None: any batch.
        options: that an engine was built with.
    """

    file: str
    backend: Literal["tensorrt", "onnxruntime-cuda"]
    precision: Precision
    onnx_sha256: str
    version: str
    plan_sha256: str | None = None
    flavour: str | None = None
    profile: tuple[int, int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> Contender:
        """What a rebuilt plan has in common with this one: what was measured of the one holds for the other."""
        return replace(self, plan_sha256=None)

    def differences(self, other: Contender) -> list[str]:
        """In what another one is not of the same source; none: what was measured of the one holds for the other."""
        return [name for name, value in vars(self.source).items() if value != getattr(other.source, name)]

    @property
    def batches(self) -> BatchProfile | None:
        """The batch sizes of an engine; None: any."""
        return BatchProfile(*self.profile) if self.profile else None

    def runs_at_once(self, batch: int) -> bool:
        """Whether a batch is one run, filled up or not."""
        return self.profile is None or batch <= self.profile[2]


def engine_contender(artifacts: Artifacts, name: str) -> Contender:
    """An engine below a recipe's artifacts, by its sidecar.

    Raises:
        ProjectError: the sidecar is missing or damaged.
    """
    sidecar = read_sidecar(artifacts.path(name))
    return Contender(
        name,
        "tensorrt",
        plan_precision(name),
        sidecar.onnx_sha256,
        sidecar.tensorrt_version,
        sidecar.plan_sha256,
        sidecar.flavour,
        astuple(sidecar.profile),
        sidecar.options,
    )


def onnx_contender(artifacts: Artifacts, name: str, precision: str) -> Contender:
    """An ONNX file below a recipe's artifacts, on ONNX Runtime's CUDA provider."""
    import onnxruntime

    return Contender(
        name,
        "onnxruntime-cuda",
        cast(Precision, precision),
        sha256_file(artifacts.path(name)),
        str(onnxruntime.__version__),
    )


@dataclass(frozen=True)
class Pair:
    """Two files, timed in the same rounds.

    Attributes:
        first: a contender's file.
        second: another's.
        rounds: that were compared.
        ratio: the second's times over the first's: above 1, the first is faster; None where nothing could be compared.
        interval: of the ratio, 95 %, by the spread of the rounds; None with too few of them.
    """

    first: str
    second: str
    rounds: int
    ratio: float | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        numbers = [value for value in (self.ratio, *(self.interval or ())) if value is not None]
        if any(not (math.isfinite(value) and value > 0) for value in numbers):
            raise ValueError("a ratio of times that is not positive")
        if self.interval and not (self.ratio and self.interval[0] <= self.ratio <= self.interval[1]):
            raise ValueError("an interval that does not hold its ratio")

    @property
    def faster(self) -> str:
        """The file that is faster; "" where that is not decided.

        Decided is what is sure and worth it: the interval lies on one side of 1, whatever its width, and the ratio
        itself, the best guess at the gain, says more than `MARGIN`. The interval's near end may be a smaller gain.
        """
        if self.ratio is None or self.interval is None:
            return ""
        if self.interval[0] > 1 and self.ratio > 1 + MARGIN:
            return self.first
        return self.second if self.interval[1] < 1 and 1 / self.ratio > 1 + MARGIN else ""

    @property
    def words(self) -> str:
        """How fast the first is against the second, such as "1.31x (1.28 to 1.34)"."""
        if self.ratio is None:
            return "not known how"
        return f"{self.ratio:.3g}x" + (f" ({self.interval[0]:.3g} to {self.interval[1]:.3g})" if self.interval else "")

    def turned(self, first: str) -> Pair:
        """The same comparison with this file first."""
        if first == self.first:
            return self
        ratio = None if self.ratio is None else 1 / self.ratio
        interval = None if self.interval is None else (1 / self.interval[1], 1 / self.interval[0])
        return Pair(self.second, self.first, self.rounds, ratio, interval)


@dataclass(frozen=True)
class Contest:
    """The files that were timed at one batch size, which they run at once, each against each.

    Attributes:
        batch: images a call.
        serves: the file that answers batches of this size, if all passed verification.
        contenders: in the order that holds where nothing is decided.
        pairs: every two of them; an earlier one is first.
    """

    batch: int
    serves: str
    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        files = [one.file for one in self.contenders]
        couples = {frozenset((pair.first, pair.second)) for pair in self.pairs}
        wanted = {frozenset((one, other)) for one in files for other in files if one != other}
        if len(set(files)) != len(files) or couples != wanted or len(couples) != len(self.pairs):
            raise ValueError("pairs that are not every two of its contenders, once")
        if self.batch < 1:
            raise ValueError(f"a batch of {self.batch}")
        if not all(one.runs_at_once(self.batch) for one in self.contenders):
            raise ValueError("a contender that runs the batch in pieces")
        if self.serves != fastest(files, self.decided):
            raise ValueError(f"{self.serves} serves, which does not follow from its pairs")

    def pair(self, first: str, second: str) -> Pair:
        """The comparison of two of its contenders."""
        return next(pair for pair in self.pairs if {pair.first, pair.second} == {first, second}).turned(first)

    def decided(self, first: str, second: str) -> bool:
        """Whether the first is faster than the second."""
        return self.pair(first, second).faster == first


def fastest(files: Sequence[str], faster: Callable[[str, str], bool]) -> str:
    """The file that answers: the first, unless another one is decidedly faster.

    Another one takes its place only if it is decidedly faster than the first and than whatever had taken it before.

    Args:
        files: in the order that holds where nothing is decided; one at least.
        faster: whether a file is decidedly faster than another.
    """
    best = files[0]
    for file in files[1:]:
        if faster(file, files[0]) and (best == files[0] or faster(file, best)):
            best = file
    return best


def make_contest(batch: int, contenders: Sequence[Contender], pairs: Iterable[Pair]) -> Contest:
    """A contest with the file that serves by its pairs."""
    pairs = tuple(pairs)
    won = {(pair.faster, pair.second if pair.faster == pair.first else pair.first) for pair in pairs if pair.faster}
    files = [one.file for one in contenders]
    return Contest(batch, fastest(files, lambda *files: files in won), tuple(contenders), pairs)


@dataclass(frozen=True)
class Serves:
    """What answers fastest on a GPU.

    Attributes:
        gpu: its name.
        compute_capability: such as "9.0".
        runtime: how the files were run, as `runtime_part` gives it.
        contests: one a batch size.
    """

    gpu: str
    compute_capability: str
    runtime: Mapping[str, Any]
    contests: tuple[Contest, ...]

    def beats_others(self, backend: str) -> bool:
        """Whether anything on a backend was decidedly faster than anything on another."""
        for contest in self.contests:
            own = {one.file for one in contest.contenders if one.backend == backend}
            if any(pair.faster in own and not {pair.first, pair.second} <= own for pair in contest.pairs):
                return True
        return False

    def deciding(self) -> dict[str, object] | None:
        """What of it can change which file answers, without the numbers, which differ at every run of the benchmark.

        None where nothing is decided: then it is as if nothing had been measured.
        """
        if not any(pair.faster for contest in self.contests for pair in contest.pairs):
            return None
        return {
            "gpu": [self.gpu, self.compute_capability],
            "runtime": dict(sorted(self.runtime.items())),
            "contests": [
                {
                    "batch": contest.batch,
                    "contenders": [to_json(one.source) for one in sorted(contest.contenders, key=lambda one: one.file)],
                    "faster": sorted(
                        (pair.faster, *{pair.first, pair.second} - {pair.faster})
                        for pair in contest.pairs
                        if pair.faster
                    ),
                }
                for contest in sorted(self.contests, key=lambda one: one.batch)
            ],
        }


def runtime_part(options: RuntimeOptions) -> dict[str, object]:
    """Of how engines are run, what their speed depends on; which of several GPUs it is, its name says."""
    return {"cuda": options.cuda, "graphs": options.graphs, "contexts": options.contexts}


@dataclass(frozen=True)
class Nearest:
    """The comparison that counts for a request: two files, at the measured batch that is most like it."""

    batch: int
    pair: Pair


def nearest(contests: Sequence[Contest], first: Contender, second: Contender, batch_size: int) -> Nearest | None:
    """The comparison of two files that decides for batches of a size; None if they were not timed together.

    Of the measured batch sizes that both run at once, it is the one nearest to the request by ratio, and of two equally
    near ones the larger. Larger requests than any are run in pieces, and the largest size is the nearest then.

    Args:
        contests: of one GPU.
        first: as it is now.
        second: as it is now.
        batch_size: of the request, in images.
    """
    found = [
        contest
        for contest in contests
        if all(any(now.source == then.source for then in contest.contenders) for now in (first, second))
    ]
    if not found:
        return None
    best = min(found, key=lambda contest: (abs(math.log(contest.batch / batch_size)), -contest.batch))
    return Nearest(best.batch, best.pair(first.file, second.file))
