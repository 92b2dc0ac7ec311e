"""Which file is fastest on a GPU, as the benchmark measured it: ``serves`` in ``benchmark/benchmark.json``.

The benchmark compares every pair of files that a GPU runs, at each batch size: which of them passed verification may
change after the measurement. Standard library only.
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

if TYPE_CHECKING:  # else the report would depend on the code of options that only runners read
    from pipeline.recipe.runtime import RuntimeOptions

MARGIN = 0.02  # a smaller speed-up is ignored, even where it is statistically certain


@dataclass(frozen=True)
class Contender:
    """A file that a GPU runs, and everything besides the GPU that its speed depends on.

    Attributes:
        file: Path relative to ``artifacts/<recipe>/``, such as "build/rtx/fp16.plan".
        backend: Backend that runs it.
        precision: "fp32", "fp16" or "int8".
        onnx_sha256: sha256 of the ONNX file that an engine was built from, or of the ONNX file itself.
        version: Version of the TensorRT that built it, or of ONNX Runtime.
        plan_sha256: sha256 of an engine; None for an ONNX file.
        flavour: "tensorrt" or "rtx"; None for an ONNX file.
        profile: Smallest, optimal and largest batch size of an engine; None: any batch size.
        options: Build options of an engine.
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
        """This contender without the plan's digest, which differs in a rebuilt plan that is as fast."""
        return replace(self, plan_sha256=None)

    def differences(self, other: Contender) -> list[str]:
        """List the fields in which the sources differ; if there are none, measurements of one hold for the other."""
        return [name for name, value in vars(self.source).items() if value != getattr(other.source, name)]

    @property
    def batches(self) -> BatchProfile | None:
        """Batch sizes of an engine; None: any."""
        return BatchProfile(*self.profile) if self.profile else None

    def runs_at_once(self, batch: int) -> bool:
        """Return whether a batch takes one run, with or without padding."""
        return self.profile is None or batch <= self.profile[2]


def engine_contender(artifacts: Artifacts, name: str) -> Contender:
    """Describe an engine among a recipe's artifacts from its sidecar.

    Raises:
        ProjectError: The sidecar is missing or damaged.
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
    """Describe an ONNX file among a recipe's artifacts on ONNX Runtime's CUDA provider."""
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
    """Comparison of two files that were timed in the same rounds.

    Attributes:
        first: A contender's file.
        second: Another contender's file.
        rounds: Number of rounds compared.
        ratio: Time of the second over time of the first; above 1, the first is faster. None where there is nothing
            to compare.
        interval: 95 % confidence interval of the ratio, from the spread of the rounds; None with too few of them.
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
        """The faster file; "" where neither is decidedly faster.

        A file is decidedly faster if the interval excludes 1 and the ratio, as the best estimate of the speed-up,
        exceeds `MARGIN`. The near end of the interval may be a smaller speed-up.
        """
        if self.ratio is None or self.interval is None:
            return ""
        if self.interval[0] > 1 and self.ratio > 1 + MARGIN:
            return self.first
        return self.second if self.interval[1] < 1 and 1 / self.ratio > 1 + MARGIN else ""

    @property
    def words(self) -> str:
        """Speed of the first relative to the second, such as "1.31x (1.28 to 1.34)"."""
        if self.ratio is None:
            return "not known how"
        return f"{self.ratio:.3g}x" + (f" ({self.interval[0]:.3g} to {self.interval[1]:.3g})" if self.interval else "")

    def turned(self, first: str) -> Pair:
        """Return the same comparison with the given file first."""
        if first == self.first:
            return self
        ratio = None if self.ratio is None else 1 / self.ratio
        interval = None if self.interval is None else (1 / self.interval[1], 1 / self.interval[0])
        return Pair(self.second, self.first, self.rounds, ratio, interval)


@dataclass(frozen=True)
class Contest:
    """Pairwise comparison of the files that run one batch size without splitting it.

    Attributes:
        batch: Images per call.
        serves: File that runs batches of this size, if all passed verification.
        contenders: Files in order of preference where none is decidedly faster.
        pairs: Comparison of every pair of contenders; the earlier one comes first.
    """

    batch: int
    serves: str
    contenders: tuple[Contender, ...]
    pairs: tuple[Pair, ...]

    def __post_init__(self) -> None:
        files = [contender.file for contender in self.contenders]
        compared = {frozenset((pair.first, pair.second)) for pair in self.pairs}
        expected = {frozenset((first, second)) for first in files for second in files if first != second}
        if len(set(files)) != len(files) or compared != expected or len(compared) != len(self.pairs):
            raise ValueError("pairs that are not every two of its contenders, once")
        if self.batch < 1:
            raise ValueError(f"a batch of {self.batch}")
        if not all(contender.runs_at_once(self.batch) for contender in self.contenders):
            raise ValueError("a contender that runs the batch in pieces")
        if self.serves != fastest(files, self.decided):
            raise ValueError(f"{self.serves} serves, which does not follow from its pairs")

    def pair(self, first: str, second: str) -> Pair:
        """Return the comparison of two contenders."""
        return next(pair for pair in self.pairs if {pair.first, pair.second} == {first, second}).turned(first)

    def decided(self, first: str, second: str) -> bool:
        """Return whether the first is decidedly faster than the second."""
        return self.pair(first, second).faster == first


def fastest(files: Sequence[str], faster: Callable[[str, str], bool]) -> str:
    """Return the file to run: the first, unless another is decidedly faster.

    Another file is chosen only if it is decidedly faster than the first and than the one chosen so far.

    Args:
        files: Files in order of preference; at least one.
        faster: Whether a file is decidedly faster than another.
    """
    best = files[0]
    for file in files[1:]:
        if faster(file, files[0]) and (best == files[0] or faster(file, best)):
            best = file
    return best


def make_contest(batch: int, contenders: Sequence[Contender], pairs: Iterable[Pair]) -> Contest:
    """Build a contest; its pairs decide which file serves."""
    pairs = tuple(pairs)
    won = {(pair.faster, pair.second if pair.faster == pair.first else pair.first) for pair in pairs if pair.faster}
    files = [contender.file for contender in contenders]
    return Contest(batch, fastest(files, lambda *files: files in won), tuple(contenders), pairs)


@dataclass(frozen=True)
class Serves:
    """The fastest files on one GPU.

    Attributes:
        gpu: Name of the GPU.
        compute_capability: Such as "9.0".
        runtime: How the files were run, as returned by `runtime_part`.
        contests: One per batch size.
    """

    gpu: str
    compute_capability: str
    runtime: Mapping[str, Any]
    contests: tuple[Contest, ...]

    def beats_others(self, backend: str) -> bool:
        """Return whether any file on a backend was decidedly faster than any file on another backend."""
        backends = [
            {contender.file: contender.backend for contender in contest.contenders} for contest in self.contests
        ]
        return any(
            files.get(pair.faster) == backend and not files[pair.first] == files[pair.second] == backend
            for contest, files in zip(self.contests, backends)
            for pair in contest.pairs
        )

    def deciding(self) -> dict[str, object] | None:
        """Return what can change which file is chosen, without the times, which differ in every run of the benchmark.

        None where no file is decidedly faster, which has the same effect as no measurement.
        """
        if not any(pair.faster for contest in self.contests for pair in contest.pairs):
            return None
        return {
            "gpu": [self.gpu, self.compute_capability],
            "runtime": dict(sorted(self.runtime.items())),
            "contests": [
                {
                    "batch": contest.batch,
                    "contenders": [
                        to_json(item.source) for item in sorted(contest.contenders, key=lambda item: item.file)
                    ],
                    "faster": sorted(
                        (pair.faster, *{pair.first, pair.second} - {pair.faster})
                        for pair in contest.pairs
                        if pair.faster
                    ),
                }
                for contest in sorted(self.contests, key=lambda contest: contest.batch)
            ],
        }


def speed_options(options: RuntimeOptions) -> dict[str, object]:
    """Return the runtime options that affect speed; the GPU is identified by its name."""
    return {"cuda": options.cuda, "graphs": options.graphs, "contexts": options.contexts}


@dataclass(frozen=True)
class Nearest:
    """Comparison of two files at the measured batch size nearest to a request."""

    batch: int
    pair: Pair


def nearest(contests: Sequence[Contest], first: Contender, second: Contender, batch_size: int) -> Nearest | None:
    """Return the comparison of two files that applies to a batch size; None if they were not timed together.

    Among the measured batch sizes that both run without splitting, this is the nearest by ratio, or the larger of two
    equally near ones. A request beyond the largest size is split, and the largest size is the nearest.

    Args:
        contests: Contests of one GPU.
        first: A file in its present state.
        second: Another file in its present state.
        batch_size: Images in the request.
    """
    both = [
        contest
        for contest in contests
        if all(any(now.source == then.source for then in contest.contenders) for now in (first, second))
    ]
    best = min(both, key=lambda contest: (abs(math.log(contest.batch / batch_size)), -contest.batch), default=None)
    return Nearest(best.batch, best.pair(first.file, second.file)) if best else None
