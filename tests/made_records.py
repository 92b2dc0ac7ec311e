"""Records for tests that want no whole chain: a card, hops, a verdict with the manifest that vouches for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.preprocessing import PreprocessingSpec
from export.tensorrt.sidecar import sidecar_path
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.artifacts.parity_report import Hop, ParityReport, overall_verdict, thresholds_by_precision
from pipeline.artifacts.paths import CARD, PARITY
from pipeline.data.decode import DecodeSpec
from pipeline.models.model_card import ModelCard
from pipeline.recipe.schema import VerifyThresholds


def make_card(
    classes: tuple[str, ...] = ("cat", "dog", "owl"), size: tuple[int, int] = (8, 8), **more: Any
) -> ModelCard:
    """A model of three classes that divides by 255; what is given replaces it."""
    given = {"resize": more.pop("resize", "stretch")}
    return ModelCard(classes, PreprocessingSpec.from_mode("unit"), DecodeSpec(size, **given), "softmax", **more)


def make_hop(candidate: str, verdict: str = "pass", **fields: Any) -> Hop:
    """A hop from Keras of an engine or an ONNX file, with numbers where it ran."""
    backend = "tensorrt" if candidate.endswith(".plan") else "onnxruntime"
    stem = Path(candidate).name
    precision = next((p for p in ("int8", "fp16") if p in stem), "fp32")
    numbers: dict[str, Any] = {
        "finite": True, "max_abs": 0.1, "relative_error": 0.01, "cosine": 0.99, "sqnr_db": 40.0, "top1_agreement": 1.0,
        "agreement_interval": (0.95, 1.0), "accuracy_reference": 0.9, "accuracy_candidate": 0.9, "accuracy_drop": 0.0,
        "accuracy_drop_interval": (-0.01, 0.01),
    }  # fmt: skip
    given = {"kind": "from_keras", "reference": "train/model.keras", "backend": backend, "precision": precision}
    shown = numbers if verdict != "not run" else {}
    return Hop(**{**given, "candidate": candidate, "images": 100, "verdict": verdict, **shown, **fields})


def write_verdict(root: Path, *hops: Hop, subjects: dict[str, str] | None = None, **fields: Any) -> ParityReport:
    """A card (if there is none), ``parity.json`` of the candidates' present bytes, and verify's manifest."""
    if not (root / CARD).is_file():
        (root / CARD).parent.mkdir(parents=True, exist_ok=True)
        write_json(root / CARD, make_card())
    judged = {CARD: sha256_file(root / CARD)}
    for path in {root / hop.candidate for hop in hops}:
        files = [path, sidecar_path(path)] if path.suffix == ".plan" else [path]
        judged |= {p.relative_to(root).as_posix(): sha256_file(p) for p in files if p.is_file()}
    asked = thresholds_by_precision(VerifyThresholds())
    report = ParityReport(overall_verdict(hops), asked, hops, judged | (subjects or {}), **fields)
    folder = (root / PARITY).parent
    folder.mkdir(parents=True, exist_ok=True)
    write_json(root / PARITY, report)
    write_manifest(folder, stage="verify", recipe=root.name, key=Key({}, {}, ""), seconds=1.0, result={})
    return report
