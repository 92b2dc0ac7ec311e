"""``make contract``: fetch the bindings of every TensorRT, and write down which names that our code wants they have."""

from __future__ import annotations

import sys

from tests.contract.bindings import ALL, ROOT, Unavailable, read
from tests.contract.check import names_needed
from tests.contract.flow import analyse, read_sources
from tests.contract.names import TABLE, Table, read_table, table_of, write_table


def main() -> int:
    apis = {}
    for bindings in ALL:
        try:
            apis[bindings.version] = read(bindings)["api"]
        except Unavailable as error:
            print(f"TensorRT {bindings.version} keeps its answers: {error}", file=sys.stderr)
    table = table_of(apis)
    old = read_table() if TABLE.exists() else Table([], {})
    names = names_needed(analyse(read_sources(ROOT), {**old.returns, **table.returns}))
    write_table(table, names, old)
    print(f"{TABLE.relative_to(ROOT)}: {len(names)} names, {', '.join(apis)} read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
