"""What is shown of a run: a line every ten seconds off a terminal, a bar on one, nothing where nothing is wanted."""

from __future__ import annotations

import logging

import pytest

from pipeline.inference import progress as progress_module
from pipeline.inference.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_every_ten_seconds_and_the_first_after_ten(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    caplog.set_level(logging.INFO)
    with Progress(200_000, bar=False, clock=clock) as progress:
        for second in range(25):
            clock.now = 1000.0 + second
            progress.update(500 if second else 0, failed=second == 3)
    assert caplog.messages == [
        "  5,000 of 200,000 images, 1 failed, 500 images/s, 6 min 30 s left",
        "  10,000 of 200,000 images, 1 failed, 500 images/s, 6 min 20 s left",
    ]


def test_rows_of_an_earlier_run_are_done_but_make_it_no_faster(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    caplog.set_level(logging.INFO)
    with Progress(1000, 900, 7, bar=False, clock=clock) as progress:
        clock.now += 20
        progress.update(50, 2)
    assert caplog.messages == ["  950 of 1,000 images, 9 failed, 2.5 images/s, 20 s left"]


def test_nothing_is_left_at_the_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress(20, bar=False, clock=clock) as progress:
        clock.now += 10
        progress.update(20)
    assert caplog.messages == ["  20 of 20 images, 0 failed, 2.0 images/s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (231, "3 min 51 s"),
        (3599.6, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Bar:
    """tqdm's bar, as far as it is used."""

    def __init__(self, **options: object) -> None:
        self.options, self.rows, self.postfix, self.open = options, 0, "", True

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfix = text

    def update(self, rows: int) -> None:
        self.rows += rows

    def close(self) -> None:
        self.open = False


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    made: list[Bar] = []

    def make(**options: object) -> Bar:
        made.append(Bar(**options))
        return made[-1]

    monkeypatch.setattr(progress_module, "progress_bar", make)
    return made


def test_a_terminal_gets_a_bar_and_the_log_file_the_lines(
    bars: list[Bar], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pipeline")
    with Progress(1000, 100, 3, bar=True, clock=clock) as progress:
        (bar,) = bars
        assert (bar.options["total"], bar.options["initial"], bar.postfix) == (1000, 100, "3 failed")
        clock.now += 10
        progress.update(50, 1)
        assert (bar.rows, bar.postfix, bar.open) == (50, "4 failed", True)
    assert not bar.open
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_quiet_shows_no_bar(bars: list[Bar], clock: Clock) -> None:
    with Progress(10, bar=True, quiet=True, clock=clock) as progress:
        progress.update(1, 1)
    assert bars == []


def test_standard_error_of_a_test_is_no_terminal(bars: list[Bar]) -> None:
    with Progress(10) as progress:
        progress.update(1)
    assert bars == []


def test_the_real_bar_takes_what_is_given(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Progress(10, 2, 1, bar=True, clock=clock) as progress:
        progress.update(4, 2)
    assert "6/10" in (shown := capsys.readouterr().err)
    assert "3 failed" in shown
