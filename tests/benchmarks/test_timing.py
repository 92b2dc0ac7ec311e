import numpy as np
import pytest
from scipy.stats.mstats import mquantiles

from benchmarks.timing import Measurement, measure
from pipeline.artifacts.benchmark_report import Summary


class Machine:
    """A clock that only calls move forward, and that can run slower over time."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now = 0.0
        self.drift = drift
        self.order: list[str] = []

    def clock(self) -> int:
        return round(self.now)

    def candidate(self, name: str, milliseconds: float) -> object:
        def call() -> None:
            self.order.append(name)
            self.now += milliseconds * 1e6 * (1 + self.drift * self.now / 1e9)

        return call


def run(machine: Machine, costs: dict[str, float], **options: object) -> dict[str, Measurement]:
    calls = {name: machine.candidate(name, cost) for name, cost in costs.items()}
    return measure(calls, clock=machine.clock, **{"warmup_seconds": 0, "min_samples": 1, **options})  # type: ignore[arg-type]


def test_turns_alternate_and_every_other_round_goes_backwards() -> None:
    machine = Machine()
    samples = run(machine, {"a": 10, "b": 10, "c": 10}, seconds_each=0.04, rounds=4)
    warmup, measured = "".join(machine.order[:3]), "".join(machine.order[3:])
    assert warmup == "abc"
    assert measured == "abccbaabccba"
    assert samples == dict.fromkeys("abc", Measurement((10.0,) * 4, (1,) * 4))


def test_a_fast_candidate_gets_as_much_time_in_a_turn_as_a_slow_one() -> None:
    machine = Machine()
    samples = run(machine, {"slow": 10, "fast": 2}, seconds_each=0.02, rounds=2)
    assert "".join(name[0] for name in machine.order[2:]) == "sffffffffffs"
    assert {name: len(one.samples_ms) for name, one in samples.items()} == {"slow": 2, "fast": 10}


def test_drift_hits_all_alike() -> None:
    machine = Machine(drift=1.0)  # twice as slow after a second
    samples = run(machine, {"a": 1, "b": 1}, seconds_each=1.0, rounds=20)
    a, b = (float(np.mean(samples[name].samples_ms)) for name in "ab")
    assert samples["a"].samples_ms[-1] > 1.5 * samples["a"].samples_ms[0]
    assert abs(a - b) / a < 0.02


def test_warmup_is_not_counted() -> None:
    machine = Machine()
    samples = run(machine, {"a": 10}, seconds_each=0.05, warmup_seconds=0.1, rounds=5)
    assert len(machine.order) == 10 + 5
    assert len(samples["a"].samples_ms) == 5


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"seconds_each": 0.001, "min_samples": 7}, 7),  # the minimum goes beyond the time
        ({"seconds_each": 10.0, "max_samples": 13}, 13),  # the maximum ends before it
        ({"seconds_each": 0.2}, 20),
        ({"seconds_each": 0.0, "min_samples": 3}, 3),
    ],
)
def test_sample_counts(options: dict[str, float], count: int) -> None:
    samples = run(Machine(), {"a": 10, "b": 10}, **options)
    assert {name: len(one.samples_ms) for name, one in samples.items()} == {"a": count, "b": count}


@pytest.mark.parametrize("fails_at", [1, 4])
def test_a_failing_candidate_is_left_out_and_the_others_go_on(fails_at: int) -> None:
    machine, calls = Machine(), []

    def bad() -> None:
        calls.append(1)
        machine.now += 1e6
        if len(calls) == fails_at:
            raise RuntimeError("out of memory")

    errors: list[tuple[str, str]] = []
    samples = measure(
        {"bad": bad, "good": machine.candidate("good", 1)},  # type: ignore[dict-item]
        seconds_each=0.01,
        warmup_seconds=0,
        rounds=10,
        clock=machine.clock,
        on_error=lambda name, error: errors.append((name, str(error))),
    )
    assert errors == [("bad", "out of memory")]
    assert {name: len(one.samples_ms) for name, one in samples.items()} == {"good": 10}
    assert len(calls) == fails_at


def test_without_a_handler_the_error_goes_through() -> None:
    def bad() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure({"bad": bad})


def test_progress_ends_at_a_hundred() -> None:
    told: list[tuple[str, int, int]] = []
    run(Machine(), {"a": 10, "b": 10}, seconds_each=0.1, rounds=4, progress=lambda *one: told.append(one))
    for name in "ab":
        done = [percent for who, percent, _ in told if who == name]
        assert done == sorted(done)
        assert done[-1] == 100
        assert done.count(100) == 1


@pytest.mark.parametrize(
    "options", [{"seconds_each": -1}, {"min_samples": 0}, {"min_samples": 5, "max_samples": 4}, {"rounds": 0}]
)
def test_senseless_numbers_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected seconds_each"):
        run(Machine(), {"a": 1}, **options)


def test_nothing_to_measure() -> None:
    assert measure({}) == {}


def summarize(samples: list[float], images: int) -> Summary:
    return Measurement.of_turns([samples]).summary(images)


def test_summary_against_numpy() -> None:
    samples = list(np.random.default_rng(0).gamma(2.0, 3.0, 500))
    found = summarize(samples, 8)
    assert found.n == 500
    for key, expected in (
        ("p50_ms", np.percentile(samples, 50)),
        ("p90_ms", np.percentile(samples, 90)),
        ("p99_ms", np.percentile(samples, 99)),
        ("mean_ms", np.mean(samples)),
        ("images_per_second", 8000 / np.median(samples)),
    ):
        assert getattr(found, key) == pytest.approx(expected, rel=6e-4)
    assert found.p99_is_near_max is False
    assert found.percentile_method == "linear"


@pytest.mark.parametrize("number", [1, 2, 19, 100, 137])
def test_percentiles_are_those_of_another_implementation(number: int) -> None:
    samples = np.random.default_rng(number).lognormal(size=number)
    expected = mquantiles(samples, (0.5, 0.9, 0.99), alphap=1, betap=1)  # interpolates linearly, R's type 7
    found = summarize(list(samples), 1)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx(expected, rel=1e-3)


def test_summary_of_known_numbers() -> None:
    found = summarize([4.0, 1.0, 3.0, 2.0, 5.0], 6)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (3.0, 4.6, 4.96)
    assert (found.mean_ms, found.images_per_second) == (3.0, 2000.0)
    assert found.p99_is_near_max is True


@pytest.mark.parametrize(("value", "rounded"), [(1234.567, 1235.0), (0.00123456, 0.001235), (98765.4, 98770.0)])
def test_four_significant_digits(value: float, rounded: float) -> None:
    assert summarize([value], 1).p50_ms == rounded


def test_a_clock_too_coarse_gives_no_throughput() -> None:
    assert summarize([0.0, 0.0], 4).images_per_second is None


@pytest.mark.parametrize(("samples", "batch"), [([], 1), ([1.0], 0)])
def test_nothing_to_summarize_is_refused(samples: list[float], batch: int) -> None:
    with pytest.raises(ValueError, match="one sample or more"):
        summarize(samples, batch)
