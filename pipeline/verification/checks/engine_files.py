"""Whether an engine is what its name and its sidecar say, and which of the present ONNX files it was built from."""

from dataclasses import dataclass

from export.errors import ProjectError
from export.tensorrt.sidecar import REBUILD, read_sidecar
from export.words import listed
from pipeline.artifacts.engines import engine_sources, plan_precision
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.paths import Artifacts

REMEDY = f"Build it again: {REBUILD}"


@dataclass(frozen=True)
class EngineFile:
    """What the files beside an engine tell of it.

    Attributes:
        source: ONNX file that it was built from; None if it is none of the present ones, or unknown.
        batch_sizes: Smallest, best and largest batch of its profile, and one more than the largest; empty if unknown.
        why_not: Why it must not be compared, and behind it `REMEDY`; "" where nothing speaks against it.
    """

    source: str | None = None
    batch_sizes: tuple[int, ...] = ()
    why_not: str = ""


def check_engine_file(artifacts: Artifacts, plan: str, plan_sha256: str) -> EngineFile:
    """Hold an engine against its sidecar and the present ONNX files; no TensorRT is needed.

    A damaged sidecar is an error of the runner, which says what is wrong with it.

    Args:
        artifacts: The recipe's.
        plan: Name of the plan.
        plan_sha256: Of its content.
    """
    try:
        sidecar = read_sidecar(artifacts.path(plan))
    except ProjectError:
        return EngineFile()
    precision = plan_precision(plan)
    if sidecar.plan_sha256 != plan_sha256:
        return EngineFile(why_not=f"{plan} is not the plan that its sidecar describes. {REMEDY}")
    if sidecar.precision != precision:
        named = f"{plan} is named {precision.upper()}, and its sidecar says {sidecar.precision.upper()}"
        return EngineFile(why_not=f"{named}. {REMEDY}")
    sources = engine_sources(artifacts, precision)
    source = next((name for name in sources if sha256_file(artifacts.path(name)) == sidecar.onnx_sha256), None)
    if source is None:
        stale = f"{plan} is stale: it was built from another file than {listed(sources, separator=' or ')} of today"
        digest = f"its sidecar has the sha256 {sidecar.onnx_sha256[:12]}"
        return EngineFile(why_not=f"{stale} ({digest}). {REMEDY}")
    profile = sidecar.profile
    return EngineFile(source, (profile.min, profile.opt, profile.max, profile.max + 1))
