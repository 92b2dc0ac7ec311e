"""The options of the evidence command: what makes no sense is refused before a GPU is looked for."""

from pathlib import Path

import pytest

from benchmarks.gpu.command import main
from benchmarks.gpu.options import Options, build_parser, read_options
from export.errors import ProjectError
from tests.benchmarks.visits import make_artifacts


def taken(words: list[str]) -> Options:
    return read_options(build_parser().read(words))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--batch", "1"),
            "Expected --batch of at least 2 (a batch of 1 is the variant latency), and of 65,536 at most. Received: 1.",
        ),
        (("--batch", "-4"), "Received: -4."),
        (("--batch", "9" * 60), "and of 65,536 at most. Received: 999"),
        (("--cycles", "9" * 60), "Expected --cycles from 1 to 1,000,000. Received: 999"),
        (("--cycle-seconds", "inf"), "Expected --cycle-seconds above 0 and below 1,000,000. Received: inf."),
        (("--cycle-seconds", "nan"), "--cycle-seconds above 0"),
        (("--seconds", "1e300"), "Expected --seconds above 0 and below 1,000,000. Received: 1e+300."),
        (("--minutes", "0"), "--minutes above 0"),
        (("--minutes", "inf"), "--minutes above 0 and below 100,000"),
        (("--precisions", "int4"), "Expected --precisions of fp32,fp16,int8, separated by commas. Received: int4,"),
        (("--precisions", "fp16,"), "where '' is not one of them. Correct it."),
        (("--precisions", "FP16"), "where 'FP16' is not one of them. Did you mean 'fp16'?"),
        (("--checks", "al"), "Expected --checks of none, quick, all. Received: al. Did you mean 'all'?"),
        (("--flavour", "trt"), "Expected --flavour of tensorrt, rtx. Received: trt. Did you mean 'tensorrt'?"),
        (("--minutes", "eight"), "Expected a number after --minutes. Received: 'eight'."),
        (("--minutse", "8"), "Received: --minutse too. Did you mean '--minutes'? See --help."),
        (("--min", "8"), "Expected one folder, and options of this command. Received: --min too."),
        (("another",), "Received: another too. See --help."),
        (("-o",), "Expected a value after -o/--output. Received: none."),
        (("--variants", "fast"), "Expected --variants of throughput,latency"),
        (("--peers", "jit"), "Expected --peers of none alone, or eager,graphs,compile"),
        (("--peers", "none,graphs"), "where 'none' is not one of them."),
        (("--cycles", "0"), "--cycles from 1"),
        (("--cycle-seconds", "0"), "--cycle-seconds above 0"),
        (("--seconds", "0"), "--seconds above 0"),
        (("--seconds", "nan"), "--seconds above 0"),
        (("--minutes", "-1"), "--minutes above 0"),
        (("--level", "6"), "--level from 0 to 5"),
        (("--flavour", "tensorrt", "--targets", "SM89"), "Received: --targets SM89 and --flavour tensorrt."),
    ],
)
def test_options_that_make_no_sense(
    options: tuple[str, ...], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main([str(tmp_path), *options]) == 2
    assert said in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--checks", "none", "--cycles", "3"), ["--cycles has no effect with --checks none"]),
        (("--checks", "none", "--cycle-seconds", "3"), ["--cycle-seconds has no effect with --checks none"]),
        (
            ("--variants", "latency", "--batch", "8"),
            ["--batch 8 has no effect with --variants latency, whose batch is 1"],
        ),
        (("--checks", "quick", "--cycles", "3", "--batch", "8"), []),
    ],
)
def test_options_without_an_effect_stop_no_visit(
    options: tuple[str, ...], said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_options(build_parser().read([str(tmp_path), *options]))
    assert caplog.messages == said


def test_places_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    artifacts = make_artifacts(tmp_path / "model")
    (tmp_path / "file").write_text("")
    (artifacts / "evidence").write_text("")
    for *options, said in (
        ("--plans", str(tmp_path / "file"), f"where {tmp_path / 'file'} is no folder"),
        ("-o", str(tmp_path), f"such as {tmp_path / 'evidence.json'}"),
        ("-o", "x.txt", "ends in .json after -o, such as x.json"),
        ("Expected a place in a folder after -o (which is the folder of artifacts unless it is given)",),
    ):
        caplog.clear()
        assert main([str(artifacts), *options]) == 2
        assert said in caplog.text


def test_what_is_not_said(tmp_path: Path) -> None:
    options = taken([str(tmp_path)])
    assert (options.precisions, options.named) == (("fp32", "fp16", "int8"), False)
    assert (options.variants, options.peers) == (("throughput", "latency"), ("eager", "graphs", "compile"))
    assert (options.batch, options.minutes, options.level, options.checks) == (256, None, None, "all")
    assert (options.seconds, options.cycles, options.cycle_seconds) == (3, 1000, 60)


def test_lists_are_put_in_order_and_said_once(tmp_path: Path) -> None:
    options = taken([str(tmp_path), "--precisions", "int8,fp16,int8", "--peers", "none"])
    assert (options.precisions, options.named, options.peers) == (("fp16", "int8"), True, ())
    assert str(tmp_path) not in str(options.described())


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "gpu_evidence imagenet --minutes 8 --level 2" in capsys.readouterr().out


def test_nothing_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert main([]) == 2
    line = "python -m benchmarks.gpu_evidence FOLDER"
    assert caplog.messages == [f"Expected a folder of artifacts. Received: none. Write: {line}"]
    with pytest.raises(ProjectError):
        taken(["x", "--precisions", ""])
