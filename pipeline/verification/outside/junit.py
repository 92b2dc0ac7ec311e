"""A verdict as JUnit XML, which build servers show: a testcase for each comparison.

Element and attribute names are those of the Jenkins xUnit schema (junit-10.xsd). Nothing measures how long a comparison
took, so no time is written. Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from export.words import count
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.parity_report import (
    CONSISTENCY,
    FAIL,
    FROM_KERAS,
    INCONCLUSIVE,
    NOT_RUN,
    STEP,
    TOP_K,
    Hop,
    Parity,
    describe_distances,
)

NAMES = {
    FROM_KERAS: "answers like {}",
    STEP: "answers like {}",
    TOP_K: "its best classes are those of {}",
    CONSISTENCY: "is consistent with {}",
}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(parity: Parity, suite: str, properties: Mapping[str, str], hints: Sequence[Hint] = ()) -> str:
    """Return the XML of a verdict.

    A comparison that failed is a failure. One that is inconclusive is skipped, as one that did not run: both leave the
    exit status at 0, and their message says which it was.

    Args:
        parity: The verdict.
        suite: Name of the test suite.
        properties: What belongs to the verdict, such as versions and digests, by name.
        hints: Causes of failures. Defaults to none.
    """
    hops = parity.hops
    counts = {
        "tests": len(hops),
        "failures": sum(hop.verdict == FAIL for hop in hops),
        "errors": 0,
        "skipped": sum(hop.verdict in (INCONCLUSIVE, NOT_RUN) for hop in hops),
    }
    numbers = {name: str(number) for name, number in counts.items()}
    # The schema has no skipped among the attributes of the outer element.
    root = ElementTree.Element(
        "testsuites", {"name": "parity"} | {k: numbers[k] for k in ("tests", "failures", "errors")}
    )
    element = ElementTree.SubElement(root, "testsuite", {"name": _text(suite)} | numbers)
    held = ElementTree.SubElement(element, "properties")
    for name, value in ({"verdict": parity.verdict} | dict(properties)).items():
        ElementTree.SubElement(held, "property", {"name": _text(name), "value": _text(value)})
    for hop in hops:
        _add(element, hop, [hint for hint in hints if hint.run == hop.run_name])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add(suite: ElementTree.Element, hop: Hop, hints: Sequence[Hint]) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        {
            "classname": _text(f"parity.{hop.run_name.replace('.', '_')}"),
            "name": _text(NAMES[hop.kind].format(hop.reference)),
        },
    )
    if hop.verdict == FAIL:
        lines = [_numbers(hop), *(f"{hint.text} {hint.evidence} {hint.remedy}" for hint in hints)]
        failure = ElementTree.SubElement(case, "failure", {"type": "parity", "message": _text(hop.why)})
        failure.text = _text("\n".join([hop.why, *filter(None, lines)]))
        return
    if hop.verdict in (INCONCLUSIVE, NOT_RUN):
        what = "not judged" if hop.lacks_reference else "not run"
        message = hop.why if hop.verdict == INCONCLUSIVE else f"{what}: {hop.why or 'no reason is known'}"
        ElementTree.SubElement(case, "skipped", {"message": _text(message)})
    if text := "\n".join(filter(None, [hop.certainty, _numbers(hop), hop.note])):
        ElementTree.SubElement(case, "system-out").text = _text(text)


def _numbers(hop: Hop) -> str:
    """Return the distances of a hop in a line; "" where nothing was compared."""
    distances = describe_distances(hop)
    return f"{count(hop.images, 'image')}: {distances}" if distances else ""


def _text(value: str) -> str:
    r"""Return text without characters that XML has not: a control character becomes an escape such as ``\x1b``."""
    return _NOT_XML.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), value)
