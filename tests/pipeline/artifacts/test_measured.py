"""What a measurement decides: which of two is faster, which file of many, and which batch size counts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from export.errors import ProjectError
from export.records import from_json, to_json
from pipeline.artifacts.fastest import Contender, Contest, Pair, Serves, fastest, make_contest, nearest
from pipeline.serving.candidates import PREFERENCE

A, B, C = "build/rtx/int8.plan", "build/rtx/fp16.plan", "build/rtx/fp32.plan"


def contender(file: str, largest: int = 64, **changes: Any) -> Contender:
    precision = file.rpartition("/")[2].partition(".")[0].partition("-")[0]
    made = Contender(file, "tensorrt", precision, "0" * 64, "1.7.1", "p" * 64, "rtx", (1, 8, largest))  # type: ignore[arg-type]
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("ratio", "interval", "faster"),
    [
        (1.31, (1.28, 1.34), A),
        (0.76, (0.74, 0.79), B),
        (1.021, (1.0001, 1.05), A),  # sure, and the gain itself is more than 2 %; its near end may be less
        (1.02, (1.015, 1.025), ""),  # sure, and not worth a change
        (1 / 1.02, (0.97, 0.99), ""),
        (1 / 1.021, (0.97, 0.99), B),
        (1.5, (0.99, 2.3), ""),  # much, and not sure
        (1.5, (1.0, 2.3), ""),
        (0.6, (0.4, 1.0), ""),
        (1.5, None, ""),  # too few rounds
        (None, None, ""),
    ],
)
def test_decided_is_what_is_sure_and_worth_it(ratio: float | None, interval: Any, faster: str) -> None:
    pair = Pair(A, B, 20, ratio, interval)
    assert pair.faster == faster
    assert pair.turned(B).faster == faster
    assert (pair.turned(B).first, pair.turned(A)) == (B, pair)


def test_words() -> None:
    assert Pair(A, B, 20, 1.312, (1.281, 1.3449)).words == "1.31x (1.28 to 1.34)"
    assert Pair(A, B, 3, 2.0).words == "2x"
    assert Pair(A, B, 0).words == "not known how"


@pytest.mark.parametrize(
    ("ratio", "interval"), [(0.0, None), (-1.0, None), (1.0, (1.1, 1.2)), (1.0, (0.8, 0.9)), (None, (0.9, 1.1))]
)
def test_numbers_that_do_not_go_together_are_refused(ratio: float | None, interval: Any) -> None:
    with pytest.raises(ValueError, match="ratio"):
        Pair(A, B, 20, ratio, interval)


@pytest.mark.parametrize(
    ("wins", "best"),
    [
        (set(), "a"),
        ({"ba"}, "b"),
        ({"ba", "ca"}, "b"),  # nothing says that c is faster than b, which comes before it
        ({"ba", "ca", "cb"}, "c"),
        ({"cb"}, "a"),  # what is not faster than the first does not take its place
        ({"ba", "cb"}, "b"),
        ({"ab", "ac"}, "a"),
        ({"ba", "cb", "ac"}, "b"),  # each beats the next: c does not beat the first
        ({"ca", "ab", "bc"}, "c"),
    ],
)
def test_the_first_answers_unless_another_is_decidedly_faster(wins: set[str], best: str) -> None:
    assert fastest("abc", lambda one, other: one + other in wins) == best


def contest(batch: int, ratio: float, *files: str, **changes: Any) -> Contest:
    """The first file takes ``ratio`` times as long as the second, surely."""
    files = files or (A, B)
    pairs = [Pair(files[0], files[1], 20, 1 / ratio, (0.99 / ratio, 1.01 / ratio))] if files[1:] else []
    return make_contest(batch, [contender(file, **changes) for file in files], pairs)


def test_a_contest_says_what_serves() -> None:
    assert contest(8, 1.3).serves == B
    assert contest(8, 0.7).serves == A
    assert contest(8, 1.005).serves == A
    assert contest(8, 1.0, A).serves == A


@pytest.mark.parametrize(
    "change",
    [
        {"serves": A},
        {"serves": C},
        {"pairs": ()},
        {"pairs": (Pair(A, C, 20), Pair(A, B, 20))},
        {"pairs": (Pair(A, B, 20, 0.7, (0.6, 0.8)),) * 2},
        {"contenders": (contender(A), contender(A))},
        {"batch": 65},
        {"batch": 0},
        {"batch": -8},
    ],
)
def test_a_contest_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pair|pieces|a batch of"):
        replace(contest(8, 1.3), **change)


def serves(*contests: Contest) -> Serves:
    return Serves("Fake GPU", "8.9", {"graphs": True}, contests)


def test_it_survives_the_way_through_a_file() -> None:
    tree = json.loads(json.dumps(to_json(serves(contest(8, 1.3), contest(1, 1.0, A)))))
    assert from_json(Serves, tree, "x", remedy="") == serves(contest(8, 1.3), contest(1, 1.0, A))
    tree["contests"][0]["serves"] = A
    with pytest.raises(ProjectError, match="does not follow from its pairs"):
        from_json(Serves, tree, "x", remedy="")


def test_numbers_alone_decide_nothing_anew() -> None:
    before = serves(contest(8, 1.30), contest(1, 1.01)).deciding()
    assert before is not None
    assert serves(contest(8, 1.35), contest(1, 0.99)).deciding() == before
    assert serves(contest(8, 1.30, plan_sha256="q" * 64), contest(1, 1.0)).deciding() == before
    assert serves(contest(1, 1.01), contest(8, 1.30)).deciding() == before


@pytest.mark.parametrize(
    "other",
    [
        serves(contest(8, 0.7), contest(1, 1.01)),
        serves(contest(8, 1.3), contest(1, 1.3)),
        serves(contest(8, 1.3)),
        serves(contest(16, 1.3), contest(1, 1.01)),
        serves(contest(8, 1.3, onnx_sha256="1" * 64), contest(1, 1.01)),
        replace(serves(contest(8, 1.3), contest(1, 1.01)), gpu="Other GPU"),
        replace(serves(contest(8, 1.3), contest(1, 1.01)), runtime={"graphs": False}),
    ],
)
def test_whatever_can_change_the_choice_is_in_what_decides(other: Serves) -> None:
    assert other.deciding() not in (None, serves(contest(8, 1.3), contest(1, 1.01)).deciding())


def test_every_decided_pair_decides() -> None:
    def of_three(last: float) -> dict[str, Any] | None:
        ratios = {(A, B): 0.5, (A, C): 0.7, (B, C): last}
        pairs = [Pair(*files, 20, ratio, (0.99 * ratio, 1.01 * ratio)) for files, ratio in ratios.items()]
        return serves(make_contest(8, [contender(file) for file in (A, B, C)], pairs)).deciding()

    assert len({str(of_three(last)) for last in (0.8, 1.0, 1.2)}) == 3


def test_where_nothing_is_decided_it_is_as_if_nothing_was_measured() -> None:
    assert serves(contest(8, 1.0), contest(1, 1.0, A)).deciding() is None


@pytest.mark.parametrize(
    ("asked", "counts"),
    [(1, 1), (2, 1), (3, 8), (8, 8), (22, 8), (23, 64), (64, 64), (1000, 64)],
)
def test_the_measured_batch_nearest_by_ratio_counts(asked: int, counts: int) -> None:
    contests = [contest(batch, 1.3) for batch in (1, 8, 64)]
    found = nearest(contests, contender(A), contender(B), asked)
    assert found is not None
    assert (found.batch, found.pair.first) == (counts, A)


def test_of_two_batches_equally_near_the_larger_counts() -> None:
    found = nearest([contest(2, 1.3), contest(8, 1.3)], contender(B), contender(A), 4)
    assert found is not None
    assert (found.batch, found.pair.first) == (8, B)


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "1" * 64},
        {"version": "1.8.0"},
        {"flavour": "tensorrt"},
        {"profile": (1, 4, 64)},
        {"options": {"optimization_level": 5}},
        {"backend": "onnxruntime-cuda"},
    ],
)
def test_what_was_measured_of_another_source_counts_for_nothing(change: dict[str, Any]) -> None:
    contests = [contest(8, 1.3)]
    assert nearest(contests, contender(A), contender(B), 8) is not None
    assert nearest(contests, contender(A, plan_sha256="q" * 64), contender(B), 8) is not None
    assert nearest(contests, contender(A, **change), contender(B), 8) is None
    assert nearest(contests, contender(A), contender(B, **change), 8) is None
    assert contender(B).differences(contender(B, **change)) == list(change)


def test_the_default_order_is_what_it_was() -> None:
    assert PREFERENCE["tensorrt"] == ("int8", "fp16", "fp32")
    assert PREFERENCE["onnxruntime-cuda"] == ("fp16", "fp32", "int8")
    assert PREFERENCE["onnxruntime"] == ("fp32", "fp16", "int8")
