"""The report stage: one self-contained HTML page of what the other stages wrote."""

from __future__ import annotations

import base64
import csv
import io
import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import __version__, charts
from pipeline.files import read_json, sha256_file
from pipeline.html import badge, number, section, size, table
from pipeline.layout import BENCHMARK, CARD, PARITY, PREDICTIONS, REFERENCE, REPORT, engine_name, engines
from pipeline.manifest import read_manifest
from pipeline.npz_files import read_arrays
from pipeline.preprocess import ImageError, Resize, load_image
from pipeline.report_quantization import quantization_sections
from pipeline.stage import Context

log = logging.getLogger(__name__)

THUMBNAILS = 24
STAGES = ("train", "export", "quantize", "build", "verify", "benchmark", "infer")
CHANGED = (
    "Lost / gained: images that the reference names right and the candidate wrong, and the reverse; p: how likely "
    "chance alone parts them at least so far (exact McNemar test)."
)
KINDS = {"from_keras": "from Keras", "step": "step", "top_k": "best classes"}
Json = Mapping[str, Any]


def write_report(context: Context, folder: Path) -> dict[str, Any]:
    """Write ``report.html``: no file, script or font from elsewhere, so it can be mailed."""
    root = context.root
    card = read_json(root / CARD)
    parity = read_json(root / PARITY)
    benchmark = read_json(root / BENCHMARK) if (root / BENCHMARK).is_file() else None
    sections = [
        _cards(parity, benchmark, root),
        _chain(root),
        _training(read_json(root / "train/history.json"), card),
        _parity(context, parity),
        _engines(root),
        _benchmark(benchmark),
        _predictions(root, card, context.recipe.data.resize),
        quantization_sections(root),
        _provenance(root, parity),
    ]
    (folder / Path(REPORT).name).write_text(_page(context, parity["verdict"], sections), encoding="utf-8")
    return {"verdict_shown": parity["verdict"]}


def _page(context: Context, verdict: str, sections: Sequence[str]) -> str:
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    recipe = context.recipe
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(recipe.name)}: Keras to TensorRT</title><style>{style}</style></head><body>
<header><div><h1>{escape(recipe.name)} {badge(verdict, f"verdict: {verdict}")}</h1>
<p>{escape(recipe.description or "From Keras to TensorRT")}</p></div></header>
<main>{"".join(sections)}<footer>Made by keras-resnet-to-tensorrt {__version__}. Every number on this page was
measured by the run that it is reported for; files are bound to the verdict by sha256.</footer></main></body></html>
"""


def _cards(parity: Json, benchmark: Json | None, root: Path) -> str:
    hops = {hop["precision"]: hop for hop in parity["hops"] if hop["kind"] == "from_keras" and hop["cosine"]}
    found = [(f"{hops['fp32']['accuracy_reference']:.2%}", "Keras accuracy on test images")] if "fp32" in hops else []
    for precision in ("fp16", "int8"):
        if precision in hops:
            found.append((f"{hops[precision]['top1_agreement']:.2%}", f"{precision.upper()} agrees with Keras"))
    plans = engines(root)
    if plans:
        hops_of_engines = [hop for hop in parity["hops"] if hop["backend"] == "tensorrt"]
        missed = {hop["candidate"] for hop in hops_of_engines if hop["verdict"] != "pass"}
        passed = {hop["candidate"] for hop in hops_of_engines} - missed
        found.append((str(len(plans)), f"TensorRT engines built, {len(passed)} of them run and passed here"))
    if benchmark:
        best = _best_speedup(benchmark["results"])
        if best:
            found.append(best)
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{v}</b><span>{t}</span></div>' for v, t in found)
        + "</div>"
    )


def _best_speedup(results: Sequence[Json]) -> tuple[str, str] | None:
    """The gain over Keras of what is fastest at the largest batch; None if nothing gains."""
    timed = [row for row in results if "error" not in row]
    batch = max((row["batch"] for row in timed), default=0)
    rows = {(row["backend"], engine_name(row)): row["p50_ms"] for row in timed if row["batch"] == batch}
    keras = rows.pop(("keras", "fp32"), 0.0)
    if not rows or min(rows.values()) >= keras:
        return None
    backend, precision = min(rows, key=lambda key: rows[key])
    return f"{keras / rows[backend, precision]:.1f}x", f"Keras' speed: {backend} {precision}, batch {batch}"


def _chain(root: Path) -> str:
    boxes = []
    for stage in STAGES:
        manifest = read_manifest(root / stage)
        if manifest is not None:
            written = sum(entry["bytes"] for entry in manifest.outputs.values())
            boxes.append(f"<div><b>{stage}</b><span>{manifest.seconds:.1f} s, {size(written)}</span></div>")
    return section("Stages", "What ran, how long it took, what it wrote.", f'<div class="chain">{"".join(boxes)}</div>')


def _training(history: Sequence[Json], card: Json) -> str:
    if "source" in card:
        changes = "".join(f"<li>{escape(change)}</li>" for change in card.get("changes", ()))
        how = "with changes that keep its answers" if changes else "as it is"
        text = f"Taken over {how}: {escape(str(card.get('source')))}; nothing was trained."
        return section("Model", text, f"<ul>{changes}</ul>" if changes else "")
    how = "transfer learning from pretrained weights" if card.get("transfer") else "from scratch"
    text = f"{escape(card['backbone'])}, {card['parameters']:,} parameters, {how}"
    if not history:
        return section("Training", f"{text}; no epoch was trained.", "")
    return section("Training", f"{text}.", charts.training_curves(history))


def _parity(context: Context, parity: Json) -> str:
    limits = context.recipe.verify.thresholds
    chart = charts.parity_waterfall(
        [hop for hop in parity["hops"] if hop["kind"] == "from_keras"],
        {precision: getattr(limits, precision).sqnr_db for precision in ("fp32", "fp16", "int8")},
    )
    columns = ("*rel. error", "*SQNR dB", "*top-1", "*accuracy", "*lost / gained")
    head = ("", "reference", "candidate", *columns, "verdict")
    rows = []
    said = []
    for hop in parity["hops"]:
        numbers = (
            number(hop["relative_error"], ".1e"),
            number(hop["sqnr_db"], ".1f"),
            number(hop["top1_agreement"], ".2%"),
            number(hop["accuracy_candidate"], ".2%"),
            _changed(hop.get("mcnemar")),
        )
        kind = KINDS[hop["kind"]]
        rows.append(
            (kind, escape(hop["reference"]), escape(hop["candidate"]), *numbers, badge(hop["verdict"], hop["verdict"]))
        )
        why = hop.get("certainty") if hop["verdict"] == "pass" else hop["why"]
        if why and hop["verdict"] != "not run":
            said.append(f"{hop['candidate']} against {hop['reference']}: {why}.")
    images = parity["hops"][0]["images"] if parity["hops"] else 0
    notes = said + [f"{hop['precision'].upper()}: {hop['note']}." for hop in parity["hops"] if hop["note"]]
    notes += [f"{hop['why'][:1].upper()}{hop['why'][1:]}." for hop in parity["hops"] if hop["verdict"] == "not run"]
    notes.append(CHANGED)
    footnote = "".join(f'<p class="note">{escape(note)}</p>' for note in dict.fromkeys(notes))
    text = f"Every file against Keras, and against the step before it, on {images} test images that selected nothing."
    return section("Parity", text, chart + table(head, rows) + footnote)


def _engines(root: Path) -> str:
    rows, notes = [], []
    for path in engines(root):
        sidecar = read_json(path.with_suffix(".json"))
        where = ", ".join(sidecar["targets"]) or sidecar["gpu"] or sidecar.get("runs_on") or ""
        profile = sidecar["profile"]
        name = f"{path.parent.name}/{path.name}"
        rows.append(
            (
                escape(name),
                escape(f"{sidecar['flavour']} {sidecar['tensorrt_version']}"),
                escape(where),
                f"{profile['min']} / {profile['opt']} / {profile['max']}",
                escape(_convolutions(sidecar)),
                size(sidecar["plan_bytes"]),
                f"{sidecar['seconds']:.1f} s",
            )
        )
        notes += [f"{name}: {warning}." for warning in sidecar.get("warnings", ())]
    if not rows:
        manifest = read_manifest(root / "build")
        why = manifest.result.get("why_not", "") if manifest else ""
        return section("Engines", f"None was built on this machine. {escape(why)}", "")
    head = ("engine", "TensorRT", "built for", "*batch min / opt / max", "convolutions", "*size", "*build time")
    footnote = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return section("Engines", "TensorRT engines, built from the verified ONNX files.", table(head, rows) + footnote)


def _convolutions(sidecar: Json) -> str:
    """How many run in which type, or, where the engine was not loaded, how many were asked for in which."""
    found, asked = sidecar.get("found") or {}, sidecar.get("asked") or {}
    counts = found.get("convolutions") or asked.get("convolutions") or {}
    listed = ", ".join(f"{number} {kind.upper()}" for kind, number in counts.items())
    return listed if found.get("convolutions") or not listed else f"{listed} asked for"


def _benchmark(benchmark: Json | None) -> str:
    if benchmark is None:
        return section("Speed", "Not measured. Run python -m benchmarks.", "")
    results = benchmark["results"]
    machine = benchmark["machine"]
    gpus = ", ".join(gpu["name"] for gpu in machine.get("gpus") or []) or "no NVIDIA GPU"
    text = f"{escape(str(machine['cpu']['model']))}, {machine['cpu']['usable_cores']} cores; {escape(gpus)}."
    head = ("backend", "precision", "*batch", "*p50 ms", "*p90 ms", "*p99 ms", "*images/s", "what it does not say")
    rows = []
    for row in results:
        first = (escape(row["backend"]), escape(engine_name(row)), str(row["batch"]))
        if "error" in row:
            rows.append((*first, "", "", "", "", f"failed: {escape(row['error'])}"))
            continue
        p50, p90, p99 = (number(row[key], ".3f") for key in ("p50_ms", "p90_ms", "p99_ms"))
        rows.append((*first, p50, p90, p99, number(row["images_per_second"], ",.1f"), escape(_remarks(row))))
    includes = dict.fromkeys(f"{row['backend']}: {row['includes']}." for row in results)
    footnote = "".join(f'<p class="note">{escape(text)}</p>' for text in includes)
    return section("Speed", text, charts.speed(results) + table(head, rows) + footnote)


def _remarks(row: Mapping[str, Any]) -> str:
    alone = [f"{row['compute']['p50_ms']:.3f} ms of it the engine alone"] if "compute" in row else []
    return "; ".join([*alone, *([row["caveat"]] if row["caveat"] else [])])


def _predictions(root: Path, card: Json, resize: Resize) -> str:
    path = root / PREDICTIONS
    manifest = read_manifest(root / "infer")
    if manifest is None or not path.is_file() or manifest.inputs[PARITY] != sha256_file(root / PARITY):
        return section("Predictions", "None: a file that verification failed, or does not know, does not serve.", "")
    served = manifest.result["model"]
    truth = _labels_by_pixels(root, card)
    figures = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in list(csv.DictReader(file))[:THUMBNAILS]:
            figures.append(_thumbnail(row, root / "infer", card, resize, truth))
    text = f"A sample of test images, classified by <code>{escape(served)}</code>; a red frame is a wrong answer."
    return section("Predictions", text, f'<div class="grid">{"".join(figures)}</div>')


def _labels_by_pixels(root: Path, card: Json) -> dict[bytes, str]:
    held = read_arrays(root / REFERENCE, ("pixels", "labels"))
    return {pixels.tobytes(): card["classes"][label] for pixels, label in zip(held["pixels"], held["labels"])}


def _thumbnail(row: Json, folder: Path, card: Json, resize: Resize, truth: Mapping[bytes, str]) -> str:
    name = escape(Path(row["path"]).name)
    if row["status"] != "ok":
        return f'<figure class="wrong"><figcaption>{name}: {escape(row["error"])}</figcaption></figure>'
    try:
        pixels = load_image(folder / row["path"], (card["size"][0], card["size"][1]), resize)
    except ImageError as error:
        return f'<figure class="wrong"><figcaption>{name}: {escape(str(error))}</figcaption></figure>'
    label = truth.get(pixels.tobytes())
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((160, 160))
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    wrong = label is not None and label != row["class"]
    caption = f"<b>{escape(row['class'])}</b> {float(row['probability']):.0%}" + (
        f"<br>is {escape(label or '')}" if wrong else ""
    )
    kind = "wrong" if wrong else "right" if label is not None else ""
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{data}" alt="{name}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _provenance(root: Path, parity: Json) -> str:
    subjects = [(escape(name), f"<code>{digest}</code>") for name, digest in parity["subjects"].items()]
    versions: dict[str, set[str]] = {}
    for stage in STAGES:
        manifest = read_manifest(root / stage)
        for tool, version in (manifest.versions if manifest else {}).items():
            versions.setdefault(tool, set()).add(version)
    tools = [(escape(tool), escape(", ".join(sorted(found)))) for tool, found in sorted(versions.items())]
    tables = table(("file", "sha256"), subjects), table(("tool", "version"), tools)
    body = f"{tables[0]}<details><summary>Versions</summary>{tables[1]}</details>"
    return section("What was judged", "The verdict holds for these bytes and no others.", body)


def _changed(mcnemar: Json | None) -> str:
    """Right answers lost and gained; empty where none were compared."""
    return "" if mcnemar is None else f"{mcnemar['losses']} / {mcnemar['gains']}, p {mcnemar['p_value']:.2g}"
