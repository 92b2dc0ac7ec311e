"""The same, against the real bindings of every version; they are fetched once, and `make contract` shares them."""

import pytest

from tests.contract import check, names
from tests.contract.bindings import ALL, ROOT, Bindings, Unavailable, read
from tests.contract.flow import analyse, read_sources
from tests.contract.test_names import LIBRARIES, PROPERTIES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bindings", ALL, ids=lambda one: one.version)
def test_the_real_bindings(bindings: Bindings) -> None:
    try:
        found = read(bindings)
    except Unavailable as error:
        pytest.skip(str(error))
    assert f"{found['version']}.".startswith(f"{bindings.version.removeprefix('rtx')}.")
    table = names.table_of({bindings.version: found["api"]})
    [library] = table.libraries
    wanted = analyse(read_sources(ROOT), table.returns)
    assert check.wrong_uses(wanted, library) == []
    assert check.wrong_capabilities(library) == []
    assert check.wrong_answers(bindings.version, found["capabilities"], PROPERTIES) == []
    column = LIBRARIES[bindings.version].names
    stale = {name: had for name, had in column.items() if had is not None and had != library.has(name)}
    assert not stale, f"tests/contract/names.txt says otherwise of TensorRT {bindings.version}; make contract: {stale}"
