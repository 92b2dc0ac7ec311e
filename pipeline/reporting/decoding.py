"""The report's section on how image files are decoded: by this project, and by Keras' own loading."""

from pipeline.artifacts.diagnosis import Decoding
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, PASS
from pipeline.artifacts.paths import DIAGNOSIS
from pipeline.reporting.html import Cell, Section, Table, badge, number, section, share
from pipeline.reporting.records import Explanations

TITLE = "How files are decoded"
HEAD = (
    "pixels",
    "kind of file",
    "*files",
    "*largest difference",
    "*values that differ",
    "*effect on logits",
    "begins in",
    "rule here",
)


def decoding_sections(explanations: Explanations) -> list[Section]:
    """Make the section; none where no file was compared."""
    if why := explanations.why_not.get(DIAGNOSIS):
        return [section(TITLE, "left_out.html.j2", why=why)]
    kinds = explanations.diagnosis.decoding if explanations.diagnosis else ()
    if not kinds:
        return []
    table = Table(HEAD, [_row(kind) for kind in kinds], "decoding")
    return [section(TITLE, "decoding.html.j2", kinds=table, differ=sum(not kind.equal for kind in kinds))]


def _row(kind: Decoding) -> tuple[str | Cell, ...]:
    return (
        badge(PASS, "equal") if kind.equal else badge(FAIL if kind.required else INCONCLUSIVE, "differ"),
        kind.kind,
        f"{kind.files:,}",
        f"{kind.most:,} of 255",
        share(kind.share),
        number(kind.relative_error, ".1e"),
        kind.step,
        kind.rule,
    )
