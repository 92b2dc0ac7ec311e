"""A server that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipeline.server.servers import Running, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with short patience; a test may ask it anything."""
    with running(tmp_path_factory.mktemp("server")) as made:
        yield made
