import numpy as np
import pytest

from pipeline.errors import RunnerError
from pipeline.runners.base import top_of


def test_the_best_come_first_and_of_equal_ones_the_lower_class() -> None:
    probabilities = np.array([[0.1, 0.4, 0.1, 0.4], [0.0, 0.25, 0.5, 0.25]], np.float32)
    top = top_of(probabilities, 3)
    assert top.classes.tolist() == [[1, 3, 0], [2, 1, 3]]
    assert top.probabilities.tolist() == np.take_along_axis(probabilities, top.classes, axis=1).tolist()
    assert (top.classes.dtype, top.probabilities.dtype) == (np.int32, np.float32)


def test_more_than_there_are_gives_all_and_none_is_refused() -> None:
    assert top_of(np.eye(2, dtype=np.float32), 9).classes.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(RunnerError, match="Received: 0"):
        top_of(np.eye(2, dtype=np.float32), 0)
