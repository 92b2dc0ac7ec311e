"""The table against the real bindings of every version; they are fetched once, and `make contract` shares them."""

import pytest

from tests.contract.bindings import ALL, Bindings, Unavailable, read
from tests.contract.capability_table import wrong_answers, wrong_capabilities
from tests.contract.test_names import PROPERTIES, TABLE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bindings", ALL, ids=lambda one: one.version)
def test_the_real_bindings(bindings: Bindings) -> None:
    try:
        found = read(bindings)
    except Unavailable as error:
        pytest.skip(str(error))
    assert f"{found['version']}.".startswith(f"{bindings.version.removeprefix('rtx')}.")
    real, column = set(found["names"]), TABLE[bindings.version]
    assert wrong_capabilities(bindings.version, {name: name in real for name in column}) == []
    assert wrong_answers(bindings.version, found["capabilities"], PROPERTIES) == []
    stale = {name: had for name, had in column.items() if had is not None and had != (name in real)}
    assert not stale, f"tests/contract/names.txt says otherwise of TensorRT {bindings.version}; make contract: {stale}"
