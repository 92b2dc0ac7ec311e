"""What of the code and of the capability table does not fit a TensorRT version; every finding is a sentence."""

from __future__ import annotations

from collections.abc import Iterable

from tests.contract.capability_table import CAPABILITIES
from tests.contract.names import Library
from tests.contract.values import Guard, Result

CAPABILITIES_FILE = "export/capabilities.py"


def names_needed(result: Result) -> set[str]:
    """The names that have to be in the table: of the code and of the capabilities."""
    needed = {use.name for use in result.uses} | set(result.asked)
    for capability in CAPABILITIES.values():
        needed |= {*capability.names, *capability.without}
    classes = {name.rpartition(".")[0] for name in needed} - {"", "*"}
    return needed | classes


def wrong_uses(result: Result, library: Library) -> list[str]:
    """Names that the code uses in places that this TensorRT reaches, and that it does not have.

    A use is fine where the version has the name, where conditions around it keep the version away (``if
    trt.targets``), or where a capability asks for that very name and its answer is taken somewhere.
    """
    found = {}
    for use in result.uses:
        if library.has(use.name) is not False or _is_optional(use.name, result):
            continue
        if all(_holds(guard, library) for guard in use.guards):
            found[use.name] = (
                f"The name {use.name} used in {use.site} is not in the bindings of TensorRT {library.version}: make "
                f"it optional in {CAPABILITIES_FILE} (ask for it with hasattr or has, and use what that says), or "
                "correct it."
            )
    return [found[name] for name in sorted(found)]


def _is_optional(name: str, result: Result) -> bool:
    """Whether a capability asks for a name, and code outside takes its answer."""
    capabilities = {site.function for site in result.asked.get(name, ()) if site.path == CAPABILITIES_FILE}
    taken: set[str] = set()
    while capabilities - taken:  # one capability may rest on another
        taken |= capabilities
        for site in (site for one in taken for site in result.consulted.get(one.rpartition(".")[2], ())):
            if site.path != CAPABILITIES_FILE:
                return True
            capabilities = capabilities | {site.function}
    return False


def _holds(guard: Guard, library: Library) -> bool:
    kind, name, wanted = guard
    if kind == "name":
        had = library.has(name)
        return had is None or had == wanted
    return not isinstance(value := library.capability(name), bool) or value == wanted


def wrong_capabilities(library: Library) -> list[str]:
    """Rows of the capability table that this TensorRT contradicts."""
    found = []
    for name, row in CAPABILITIES.items():
        answers = {one: library.has(one) for one in (*row.names, *row.without)}
        if None in answers.values():
            continue
        has = all(answers[one] for one in row.names) and not any(answers[one] for one in row.without)
        if has != (library.version in row.versions):
            lacks = [f"no {one}" for one in row.names if not answers[one]] + [
                one for one in row.without if answers[one]
            ]
            had = ", ".join(lacks) or "every one of its names"
            found.append(
                f"Expected TensorRT {library.version} {'without' if has else 'with'} {name}, as "
                f"tests/contract/capability_table.py says. Received: {had}."
            )
    return found


def wrong_answers(version: str, answers: dict[str, object], properties: Iterable[str]) -> list[str]:
    """Properties of export.capabilities.TensorRT that say something else than the capability table."""
    found = []
    for name in properties:
        if name not in CAPABILITIES:
            found.append(f"Expected the capability {name} in tests/contract/capability_table.py. Received: no row.")
        elif bool(answers[name]) != (version in CAPABILITIES[name].versions):
            found.append(
                f"Expected trt.{name} to be {not answers[name]} with TensorRT {version}, as "
                f"tests/contract/capability_table.py says. Received: {answers[name]}."
            )
    return found
