"""``make contract``: fetch the bindings of every TensorRT, and write down which names of the fakes they have."""

from __future__ import annotations

import sys

from export.files import ROOT
from tests.contract.bindings import ALL, Unavailable, read
from tests.contract.capability_table import names_needed
from tests.contract.names import TABLE, write_table


def main() -> int:
    apis = {}
    for bindings in ALL:
        try:
            apis[bindings.version] = set(read(bindings)["names"])
        except Unavailable as error:
            print(f"TensorRT {bindings.version} keeps its answers: {error}", file=sys.stderr)
    names = names_needed()
    write_table(apis, names)
    print(f"{TABLE.relative_to(ROOT)}: {len(names)} names, {', '.join(apis)} read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
