"""``make result-tables``: the tables of INT8's measurements in README.md and docs/int8.md, made from the records.

A table stands between ``<!-- INT8 of RECIPE: VIEW -->`` and ``<!-- end of table -->``, and its numbers are those of
``benchmarks/results/int8-RECIPE.json``; of the view ``noise`` those of ``noise-RECIPE.json``, and of the view
``networks`` those of ``int8-networks.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy_row, int8_noise
from benchmarks.int8 import record as networks_record
from export.files import ROOT

PAGES = ("README.md", "docs/int8.md")
RESULTS = ROOT / "benchmarks" / "results"
TABLE = re.compile(r"(<!-- INT8 of (\w+): (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
Row = Mapping[str, Any]
Cells = tuple[str, ...]

NOT_MEASURED = "Not measured yet with the search as it is now: `make accuracy`."
STEPS = {  # name of a row in the record -> what the page calls it
    "INT8, before": "none of the three",
    "INT8, + shift": "the eighth bit alone",
    "INT8, + rounding": "second-order rounding alone",
    "INT8, + norms": "the norms alone",
    "INT8, all three": "all three",
}
QUANTIZERS = {"modelopt": "modelopt", "ort": "quantize_static"}  # beginning of a peer's name -> what it is called


def with_tables(page: str, results: Path = RESULTS) -> str:
    """A page with every table of measurements as the records say now.

    Args:
        page: its Markdown.
        results: the folder of the records.
    """

    def table(found: re.Match[str]) -> str:
        kind = "noise" if found[3] == "noise" else "int8"
        record = json.loads((results / f"{kind}-{found[2]}.json").read_text(encoding="utf-8"))
        schema = {"noise": int8_noise.SCHEMA, "networks": networks_record.SCHEMA}.get(found[3], accuracy_row.SCHEMA)
        lines = VIEWS[found[3]](record) if record["schema"] == schema else [NOT_MEASURED]
        return "\n".join([found[1].rstrip("\n"), *lines, found[4]])

    return TABLE.sub(table, page)


def summary(record: Mapping[str, Any]) -> list[str]:
    """What a reader of the README wants: the file as shipped, INT8 throughout, and other quantizers at their best."""
    rows = {row["name"]: row for row in record["rows"]}
    shipped = next(name for name in rows if name.startswith("INT8 as shipped"))  # that for TensorRT 8.6 comes later
    few = next(name for name in rows if name.startswith("INT8, all three, ") and name.endswith(" in float"))
    title = few.removeprefix("INT8, all three, ").replace("%", " %")
    throughout = shipped.endswith(", throughout")  # then the file as shipped is that of all steps
    other = {few: f"INT8, {title}"} if throughout else {"INT8, all three": "INT8 throughout, all steps"}
    chosen = {
        "FP16": "FP16",
        shipped: f"**{shipped}**",
        **other,
        "INT8, before": "INT8 throughout, without the eighth bit, second-order rounding and norms",
        **best_peers(record["rows"]),
    }
    head = ("", "INT8 convolutions", *NOISE_HEAD, "agrees with Keras (95 %)", "right answers lost / gained")
    cells = [(called, share(rows[name]), *noise(rows[name]), *answers(rows[name])) for name, called in chosen.items()]
    return [*markdown(head, cells), "", told(record, [rows[name] for name in chosen])]


def steps(record: Mapping[str, Any]) -> list[str]:
    """Each step of the search alone and all of them, then with a few layers in float; what the searches took."""
    head = (
        "steps",
        "INT8 convolutions",
        *NOISE_HEAD,
        "agrees with Keras (95 %)",
        "lost / gained",
        "search",
        "peak memory",
    )
    rows = [(STEPS[row["name"]], row) for row in record["rows"] if row["name"] in STEPS]
    rows += [
        (row["name"].removeprefix("INT8, "), row)
        for row in record["rows"]
        if row["name"].endswith("in float") and row["seconds"]
    ]
    cells = [(called, share(row), *noise(row), *answers(row), *cost(row)) for called, row in rows]
    return [*markdown(head, cells), "", told(record, [row for _, row in rows])]


def methods(record: Mapping[str, Any]) -> list[str]:
    """Scales by every method on held-out images, as the search for the shipped file saw it."""
    found = record["calibration"]
    cells = [
        (f"**{name}**" if name == found["method"] else name, *spread(judged), percent(judged["top1_agreement"]))
        for name, judged in found["methods"].items()
    ]
    return markdown(("scales", "SQNR of the logits", *SPREAD_HEAD, "agreement"), cells)


def noise_of(record: Mapping[str, Any]) -> list[str]:
    """Activations and weights rounded alone, in each way, and together."""
    head = (
        "activations",
        "weights",
        "scales",
        *NOISE_HEAD[:2],
        "worst image",
        "agreement",
        "noise of the noisiest image",
    )
    cells = [
        (
            row["activations"],
            row["weights"].replace("_", " "),
            row["method"] or "",
            *(decibels(row[key]) for key in ("sqnr_db", "median_db", "worst_db")),
            percent(row["top1_agreement"]),
            f"{100 * row['noisiest']:.0f} %",
        )
        for row in record["rows"]
    ]
    images = f"{record['scale_images']} images gave scales, {record['images']} held-out ones judge"
    return [
        *markdown(head, cells),
        "",
        f"{record['shifted']} of {record['quantized']} tensors can have 255 levels; {images}.",
    ]


def networks(record: Mapping[str, Any]) -> list[str]:
    """Networks of several families, INT8 throughout, with all steps and by the code before them, on the same images."""
    head = (
        "network, weights",
        "input",
        "accuracy",
        "median image",
        "change (95 %)",
        "agreement",
        "change in points (95 %)",
        "shifted",
    )
    cells = []
    for measured in record["networks"]:
        network, rows = measured["network"], {row["step"]: row for row in measured["rows"]}
        before, after = rows["earlier"], rows["norms"]
        gain = after["gains"]["earlier"]
        low, high = gain["agreement_interval"]
        cells.append(
            (
                f"{network['backbone']}, {network['weights']}",
                str(network["input_size"]),
                percent(network["accuracy"]),
                f"{decibels(before['median_db'])} → {decibels(after['median_db'])}",
                f"{gain['median_db']:+.1f} dB ({gain['interval_db'][0]:+.1f} to {gain['interval_db'][1]:+.1f})",
                f"{percent(before['top1_agreement'])} → {percent(after['top1_agreement'])}",
                f"{100 * gain['agreement']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                f"{after['shifted']} of {after['quantized']}",
            )
        )
    return markdown(head, cells)


def trunk(record: Mapping[str, Any]) -> list[str]:
    """Files with a trunk of FP32 and of FP16, computed as a CPU does and with every FP16 value rounded."""
    rows = [row for row in record["rows"] if row["half"] is not None and "INT8" in row["name"]]
    head = ("file", "SQNR", "of the median image", "SQNR, every FP16 value rounded", "of the median image")
    cells = [
        (row["name"], *(decibels(part[key]) for part in (row, row["half"]) for key in ("sqnr_db", "median_db")))
        for row in rows
    ]
    return markdown(head, cells)


def search(record: Mapping[str, Any]) -> list[str]:
    """What the search for the file as shipped saw on held-out images, step by step."""
    found = record["calibration"]
    equalization, shift = found["equalization"], found["shift"]
    strength = equalization and equalization["strength"]
    tried = [
        (
            f"equalization, strength {strength}",
            equalization and equalization | {"after": equalization["strengths"][strength]},
        ),
        (
            f"the eighth bit, {len(shift['shifted'])} of {shift['quantized']} tensors",
            shift | {"before": shift["plain"]},
        ),
        ("second-order rounding", found["rounding"]),
        ("bias correction", found["bias_correction"]),
    ]
    head = ("step", *SPREAD_HEAD, "agreement", "kept")
    cells = [
        (name, *held_out(step["before"], step["after"]), "yes" if step["used"] else "no")
        for name, step in tried
        if step is not None and step["before"] is not None and step["after"] is not None
    ]
    chosen = f"Scales: {found['method']}. Layers in float: {len(found['kept'])}."
    return [*markdown(head, cells), "", f"{chosen} Judged on {found['held_out_images']} held-out images."]


VIEWS: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    **{view.__name__: view for view in (summary, steps, methods, trunk, search, networks)},
    "noise": noise_of,
}
NOISE_HEAD = ("SQNR of the logits", "median image", "5 % are below", "worst image")
SPREAD_HEAD = ("median image", "worst twentieth", "worst image")
_SPREAD = ("median_db", "tail_db", "worst_db")


def best_peers(rows: Sequence[Row]) -> dict[str, str]:
    """Of each other quantizer the row with the highest SQNR, and how it is called."""
    best: dict[str, str] = {}
    for beginning, called in QUANTIZERS.items():
        own = [row for row in rows if row["name"].startswith(f"peer: {beginning}")]
        if own:
            name = max(own, key=lambda row: row["sqnr_db"])["name"]
            best[name] = f"{called}, {name.rpartition('-')[2]} (its best)"
    return best


def markdown(head: Cells, rows: Sequence[Cells]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def share(row: Row) -> str:
    return f"{row['int8_convolutions']} of {row['convolutions']}" if row["int8_convolutions"] else "–"


def noise(row: Row) -> Iterator[str]:
    return (decibels(row[key]) for key in ("sqnr_db", "median_db", "low_db", "worst_db"))


def spread(judged: Row) -> Iterator[str]:
    return (decibels(judged[key]) for key in ("sqnr_db", *_SPREAD))


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"


def answers(row: Row) -> Cells:
    low, high = (f"{100 * value:.1f}".replace("100.0", "100") for value in row["agreement_interval"])
    lost, gained = (row["mcnemar"][key] for key in ("losses", "gains"))
    return f"{percent(row['top1_agreement'])} ({low} to {high})", f"{lost} / {gained}"


def cost(row: Row) -> Cells:
    memory = row["peak_memory_mib"]
    return f"{row['seconds']:.0f} s", "–" if memory is None else f"{memory / 1024:.1f} GiB"


def held_out(before: Row, after: Row) -> Iterator[str]:
    for key in _SPREAD:
        yield f"{decibels(before[key])} → {decibels(after[key])}"
    yield f"{percent(before['top1_agreement'])} → {percent(after['top1_agreement'])}"


def told(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """On how many images, and whether chance explains the answers that changed."""
    found = record["calibration"]
    images = (
        f"{found['scale_images']} + {found['held_out_images']} calibration images, {record['test_images']} test images"
    )
    least = min(row["mcnemar"]["p_value"] for row in rows)
    return f"{images}; the smallest p of McNemar's exact test in this table is {least:.2g}."


if __name__ == "__main__":
    for page in (ROOT / name for name in PAGES):
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    from tests.serving_tables import PAGE, with_serving_tables

    serving = ROOT / PAGE
    serving.write_text(with_serving_tables(serving.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
