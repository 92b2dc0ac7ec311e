"""A deployment answers as `infer` does, in any process, with the bytes that were selected alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from export.errors import ProjectError
from pipeline.inference.deployment import Deployment
from tests.pipeline.inference.deployments import make_deployment, make_photos


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return make_deployment(tmp_path)


def test_files_and_their_bytes_get_the_same_answers(deployment: Deployment, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    with pickle.loads(pickle.dumps(deployment)).open() as classifier:
        by_path = classifier.files(photos)
        by_bytes = classifier.contents([path.read_bytes() for path in photos], [str(path) for path in photos])
    assert by_path == by_bytes
    assert [row.path for row in by_path] == [str(path) for path in photos]
    assert len({row.classes[0] for row in by_path}) > 1  # or all would agree on nothing
    assert [(row.width, row.height) for row in by_path] == [(24, 20 + index) for index in range(len(photos))]


def test_what_has_no_answer_keeps_its_row(deployment: Deployment, tmp_path: Path) -> None:
    photo = make_photos(tmp_path, 1)[0].read_bytes()
    with deployment.open() as classifier:
        rows = classifier.contents([photo, b"text", None, photo[:60], photo])
    assert [row.status for row in rows] == ["ok", "not_an_image", "missing", "damaged", "ok"]
    assert rows[0].classes == rows[4].classes
    assert [row.path for row in rows] == ["0", "1", "2", "3", "4"]


def test_no_images_have_no_rows(deployment: Deployment) -> None:
    with deployment.open() as classifier:
        assert classifier.files([]) == classifier.contents([]) == []


def test_an_altered_file_does_not_answer(deployment: Deployment) -> None:
    deployment.choice.path.write_bytes(deployment.choice.path.read_bytes() + b"\0")
    with (
        pytest.raises(ProjectError, match=r"as it was when it was selected, sha256 \w{12}\. Received"),
        deployment.open(),
    ):
        pass


def test_a_bundle_of_names_and_contents_has_to_fit(deployment: Deployment) -> None:
    with deployment.open() as classifier, pytest.raises(ValueError, match="zip"):
        classifier.contents([b"", b""], ["one"])
