"""The tables of docs/serving.md, made from ``benchmarks/results/server.json`` and ``ways-imagenet.json``.

``make result-tables`` writes them, with those of INT8 (`tests.result_tables`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.server.record import SCHEMA
from tests import ways
from tests.result_tables import markdown

PAGE = "docs/serving.md"
TABLE = re.compile(r"(<!-- (server|ways) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
NAMES = {
    "classify": "`POST /classify`",
    "v2-files": "image files over the protocol",
    "v2-pixels": "pixels over the protocol",
    "open-loop": "`POST /classify` at random times",
}


def with_serving_tables(page: str, results: Path) -> str:
    """The page with its tables as the records say now.

    Args:
        page: its Markdown.
        results: the folder of the records.
    """

    def table(found: re.Match[str]) -> str:
        file, view, schema = VIEWS[found[2]]
        record = json.loads((results / file).read_text(encoding="utf-8"))
        assert record["schema"] == schema, f"{file} has another schema: measure again"
        return "\n".join([found[1].rstrip("\n"), *view(record), found[3]])

    return TABLE.sub(table, page)


def server(record: Mapping[str, Any]) -> list[str]:
    """Counts, latency and memory of each scenario."""
    head = ("", "requests", "wrong", "lost", "requests/s", "p50", "p99", "batch", "memory grew by")
    rows = []
    for run in record["runs"]:
        load = f"{run['offered']:.0f} a second" if run["offered"] else f"{run['concurrency']} at a time"
        rows.append(
            (
                f"{NAMES[run['name']]}, {load}",
                f"{run['requests']:,}",
                str(run["wrong"]),
                str(sum(run["lost"].values())),
                f"{run['requests_per_second']:,.0f}",
                f"{run['latency']['p50_ms']:.0f} ms",
                f"{run['latency']['p99_ms']:.0f} ms",
                "–" if run["mean_batch"] is None else f"{run['mean_batch']:.1f}",
                _growth(run),
            )
        )
    cpus = record["machine"]["cpu"]["usable_cores"]
    alone = record["runs"][0]["alone"]["p50_ms"]
    precision = record["answered_by"]["precision"].upper()
    told = (
        f"The recipe {record['model']}, {precision} on ONNX Runtime, on {cpus} CPUs that server and client share; "
        f"an image alone takes {alone:.1f} ms there and back. With a fixed number of requests at a time the latency "
        "is that number over the rate; at random times, half as many as the server can answer, it is what a client "
        "waits."
    )
    return [*markdown(head, rows), "", *wrapped(told)]


def _growth(run: Mapping[str, Any]) -> str:
    growth = run["memory"]["growth_mib"]
    return "–" if growth is None else f"{growth:.1f} MiB"


def wrapped(text: str, width: int = 130) -> list[str]:
    lines = [""]
    for word in text.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return lines


def same(record: Mapping[str, Any]) -> list[str]:
    """How many best classes are those of `infer`."""
    head = ("way", "the same best class", "largest difference of its probability")
    rows = [
        (way, f"{found['same']} of {found['photos']}", f"{found['largest_difference']:.0e}".replace("0e+00", "0"))
        for way, found in record["ways"].items()
    ]
    return markdown(head, rows)


VIEWS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], list[str]], int]] = {
    "server": ("server.json", server, SCHEMA),
    "ways": ("ways-imagenet.json", same, ways.SCHEMA),
}
