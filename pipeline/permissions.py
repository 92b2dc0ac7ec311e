"""What an archive from somewhere else may not decide: which code runs here, and which files are written here.

Both are the receiver's word, by the recipe that they wrote or the command line. So an archive's recipe loses what
would give a permission, and what in the archive runs code is named.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from export.errors import ProjectError
from export.sidecar import read_sidecar
from pipeline.artifacts import Artifacts
from pipeline.errors import ModelError
from pipeline.layout import KERAS
from pipeline.plans import engines
from pipeline.recipe import Recipe

# Key of the recipe, and what it says where no permission is given.
PERMISSIONS: dict[str, object] = {
    "model.allow": (),  # code in the model file
    "runtime.host_code": False,  # code that an engine brings for the CPU
    "build.version_compatible": False,  # the same, for engines of this recipe
    "build.timing_cache": None,  # a file that is written, wherever it says
}


# The same where the images are a data set of tensorflow-datasets: it writes what it fetches there, and imports the
# modules that a data set's description there names.
TFDS_PERMISSIONS: dict[str, object] = {"data.path": None}


def without_permissions(recipe: Recipe) -> tuple[Recipe, dict[str, object]]:
    """The recipe without what gives a permission, and the keys that were taken back with what they said."""
    taken: dict[str, object] = {}
    permissions = PERMISSIONS | (TFDS_PERMISSIONS if recipe.data.source == "tfds" else {})
    for key, none in permissions.items():
        name, _, field = key.partition(".")
        section = getattr(recipe, name)
        if getattr(section, field) != none:
            taken[key] = getattr(section, field)
            recipe = dataclasses.replace(recipe, **{name: dataclasses.replace(section, **{field: none})})
    return recipe, taken


def code_in(root: Path) -> list[str]:
    """What in a recipe's artifacts runs code when it is used, a line each.

    Args:
        root: ``artifacts/<recipe>``.
    """
    from pipeline.model_file import read_model_file

    said = []
    try:
        for finding in read_model_file(root / KERAS).findings if (root / KERAS).is_file() else ():
            way = f"refused unless you say --set 'model.allow=[{finding.name}]'" if finding.allowable else "refused"
            said.append(f"{KERAS} holds {finding.kind} {finding.name}: {finding.why} ({way})")
    except ModelError as error:
        said.append(f"{KERAS} cannot be told: {error}")
    except ModuleNotFoundError as error:
        said.append(f"{KERAS} was not looked into: {error.name} is not installed, and nothing here opens it")
    artifacts = Artifacts(root)
    plans = engines(artifacts)
    if plans:
        said.append(
            f"{len(plans)} TensorRT engines: an engine is a program; build your own from the ONNX files instead"
        )
    return said + [
        f"{plan} brings code for the CPU too (refused unless you say --set runtime.host_code=true)"
        for plan in plans
        if _brings_host_code(artifacts.path(plan))
    ]


def _brings_host_code(plan: Path) -> bool:
    try:
        return bool(read_sidecar(plan).options.get("version_compatible"))
    except ProjectError:
        return False  # such a plan is not loaded at all
