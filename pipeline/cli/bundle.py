"""Takes a recipe's artifacts to another machine in one archive, and checks on arrival what it may decide.

What an archive from somewhere else may not decide: which code runs here, and which files are written here.

Both are the receiver's word, by the recipe that they wrote or the command line. So an archive's recipe loses what
would give a permission, and what in the archive runs code is named.

Takes a recipe's artifacts to another machine in one archive, and checks every byte on arrival.
"""

import dataclasses
import io
import json
import logging
import shlex
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from export.errors import ModelError, ProjectError
from export.files import put_folder, replacing_file, temporary_folder, write_atomic
from export.records import MOST_BYTES, from_json, parse_json, to_json
from export.tensorrt.sidecar import read_sidecar
from export.words import count, listed
from pipeline.artifacts.archives import open_tar
from pipeline.artifacts.engines import engines
from pipeline.artifacts.files import recipe_lock, sha256_bytes, sha256_file
from pipeline.artifacts.gpu_evidence import FOLDER as EVIDENCE
from pipeline.artifacts.inputs import recipe_changes
from pipeline.artifacts.manifest import INDEX, MANIFEST, BundleIndex, FileRecord, read_manifest
from pipeline.artifacts.output import check_folder, require_space
from pipeline.artifacts.paths import CARD, KERAS, ONNX, TENSORRT8, Artifacts, is_written
from pipeline.keras_files.archive_checks import HEAD, describe_file, is_tar
from pipeline.recipe.limits import RECIPE_NAME
from pipeline.recipe.load import dump_yaml, load_recipe
from pipeline.recipe.locate import UNPACKED
from pipeline.recipe.schema import Recipe
from pipeline.terminal.command_line import Invocation, unpack_command
from pipeline.terminal.console import progress_bar
from pipeline.workflow.context import Context

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
    from pipeline.keras_files.read import read_model_file

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


log = logging.getLogger(__name__)

RECIPE = UNPACKED


def bundle(context: Context, output: Path) -> dict[str, object]:
    """Write a tar archive of every finished stage, with an index of sha256 in front.

    Raises:
        ProjectError: nothing to pack, or a file is not what its manifest says.
    """
    with recipe_lock(context.root):
        files: dict[str, Path] = {}
        for folder in sorted(p for p in context.root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if folder.name == EVIDENCE:
                log.info("left out %s: it is of a GPU that was visited, no stage writes it", folder)
                continue
            manifest = read_manifest(folder)
            if manifest is None:
                log.warning("left out %s, which has no manifest", folder)
                continue
            if not is_written(f"{folder.name}/{MANIFEST}"):
                log.warning("left out %s, which no stage writes", folder)
                continue
            for name, recorded in manifest.outputs.items():
                path = folder / name
                if not is_written(f"{folder.name}/{name}"):
                    raise ProjectError(
                        f"Expected files that a stage writes in {folder}. Received: {name}, which none does. "
                        f"Delete {folder} and run `{context.command('run')}` again."
                    )
                if not path.is_file() or sha256_file(path) != recorded.sha256:
                    raise ProjectError(
                        f"Expected {path} as its stage wrote it. Received: a changed or missing file. "
                        f"Run `{context.command('run')}` first."
                    )
                files[f"{folder.name}/{name}"] = path
            files[f"{folder.name}/{MANIFEST}"] = folder / MANIFEST
        if not files:
            raise ProjectError(
                f"Expected finished stages below {context.root}. Received: none. Run `{context.command('run')}` first."
            )
        if (context.root / CARD).is_file():
            context.card()  # a recipe that says other than the model is no recipe of it
            _say_other_recipe(context)
        given, taken = without_permissions(context.recipe)
        _say_left_out(taken)
        recipe = dump_yaml(given)
        index = BundleIndex(
            recipe=context.recipe.name,
            recipe_sha256=sha256_bytes(recipe.encode()),
            files={name: FileRecord(sha256_file(path), path.stat().st_size) for name, path in files.items()},
        )
        require_space(output.parent, sum(path.stat().st_size for path in files.values()), str(output), "-o")
        with (
            replacing_file(output) as temporary,
            tarfile.open(temporary, "w") as archive,
            progress_bar(total=len(files), desc="  bundle") as bar,
        ):
            _add_text(archive, INDEX, json.dumps(to_json(index), indent=2))
            _add_text(archive, RECIPE, recipe)
            for name, path in files.items():
                archive.add(path, arcname=name)
                bar.update()
    size = output.stat().st_size
    log.info("%s: %s, %.1f MB. There: %s", output, count(len(files), "file"), size / 1e6, unpack_command(output))
    if serves := _tensorrt_served(files):
        log.info("%s", serves)
    return {"recipe": context.recipe.name, "output": str(output), "files": len(files), "bytes": size}


def unpack(archive_path: Path, artifacts: Path, force: bool = False) -> dict[str, object]:
    """Unpack an archive of ``bundle`` into ``artifacts/<recipe>``; nothing changes unless every hash is right.

    Args:
        archive_path: the archive.
        artifacts: folder of all recipes' artifacts.
        force: replace artifacts of that recipe that are there.

    Raises:
        ProjectError: not such an archive, cut short, altered, or artifacts are there already.
    """
    check_folder(artifacts, "--artifacts")
    if what := _why_no_archive(archive_path):
        raise ProjectError(f"Expected an archive made by `bundle`. Received: {archive_path}, {what}")
    try:
        with open_tar(archive_path) as archive:
            index = _read_index(archive, archive_path)
            root = artifacts / index.recipe
            if any(root.glob("*/" + MANIFEST)) and not force:
                raise ProjectError(
                    f"Expected no artifacts of recipe {index.recipe}. Received: {root} exists. "
                    "Replace it with --force, or name another folder with --artifacts."
                )
            with recipe_lock(root):
                _extract(archive, index, root)
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise ProjectError(
            f"Expected an archive made by `bundle`. Received: {archive_path}: {error}. Copy it again."
        ) from error
    log.info("%s: %s, every hash right", root, count(len(index.files), "file"))
    code = code_in(root)
    for line in code:
        log.warning("code: %s", line)
    log.info("next: %s", Invocation(root / RECIPE, artifacts).command("run"))
    return {"recipe": index.recipe, "folder": str(root), "files": len(index.files), "code": code}


def _why_no_archive(path: Path) -> str:
    """What lies at a path that is not even the beginning of a tar archive, and what to do; else empty."""
    if path.is_dir():
        return "which is a folder. Name the .tar file that `bundle` wrote; artifacts in a folder need no unpacking."
    if not path.is_file():
        return f"which {'is a device or a pipe' if path.exists() else 'does not exist'}."
    with path.open("rb") as file:
        head = file.read(HEAD)
    if is_tar(head):
        return ""
    if head.startswith(b"\x1f\x8b"):
        return f"which is compressed. Write gunzip {shlex.quote(str(path))}, and name the .tar file that it leaves."
    what = describe_file(path, head).partition(". ")[0] or "no tar archive"
    return f"which is {what}. Name the file that `bundle` wrote. If this is the one: Copy it again."


def _read_index(archive: tarfile.TarFile, path: Path) -> BundleIndex:
    if INDEX not in archive.getnames():
        raise ProjectError(
            f"Expected an archive made by `bundle`. Received: {path}, a tar archive of something else: it has no "
            f"{INDEX}."
        )
    file = archive.extractfile(INDEX)
    tree = parse_json(file.read(MOST_BYTES + 1) if file else b"", INDEX)
    index = from_json(BundleIndex, tree, f"{path}, {INDEX}", remedy="Copy it again.", what="index of a bundle")
    parts = [PurePosixPath(name).parts for name in index.files]
    if not RECIPE_NAME.fullmatch(index.recipe) or any(
        len(p) < 2 or ".." in p or p[0] in ("/", "") or p[0].startswith(".") or "\\" in "".join(p) for p in parts
    ):
        raise ValueError("it names files outside the artifacts folder")
    if strange := [name for name in index.files if not is_written(name)]:
        raise ProjectError(
            f"Expected an archive of files that stages write. Received: {path} with "
            f"{listed((name[:100] for name in strange), most=3)}. Don't use it, or ask its sender what they are."
        )
    return index


def _extract(archive: tarfile.TarFile, index: BundleIndex, root: Path) -> None:
    with temporary_folder(root / "unpacked") as staging:  # it goes, whatever a kill leaves of it
        for name, expected in progress_bar(index.files.items(), desc="  unpack"):
            member = archive.getmember(name)
            file = archive.extractfile(member)  # None for links and devices, which are refused so
            if file is None or member.size != expected.bytes:
                raise ValueError(f"{name} is not the file that the index lists")
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(file, out)
            if sha256_file(target) != expected.sha256:
                raise ValueError(f"{name} does not have the sha256 that the index lists")
        file = archive.extractfile(RECIPE)
        recipe = file.read(1 << 20) if file else b""
        if sha256_bytes(recipe) != index.recipe_sha256:
            raise ValueError(f"{RECIPE} does not have the sha256 that the index lists")
        write_atomic(root / RECIPE, _receivers(recipe, index.recipe, staging))
        for folder in sorted(p for p in staging.iterdir() if p.is_dir()):
            put_folder(folder, root / folder.name)


def _receivers(recipe: bytes, name: str, folder: Path) -> str:
    """The archive's recipe as the receiver's: without any permission, which is theirs to give."""
    path = folder / RECIPE
    path.write_bytes(recipe)
    loaded = load_recipe(path)
    if loaded.name != name:
        raise ValueError(f"its recipe is named {loaded.name!r}, its index says {name!r}")
    given, taken = without_permissions(loaded)
    _say_left_out(taken)
    return dump_yaml(given)


def _say_other_recipe(context: Context) -> None:
    """The receiver's `run` would train anew where this recipe is not the one that the stages ran by."""
    from pipeline.stages import STAGES

    manifests = (read_manifest(context.folder(stage.name)) for stage in STAGES)
    changes = [change for manifest in manifests for change in recipe_changes(manifest, context.recipe)]
    if changes:
        log.warning(
            "the archive's recipe says other than what its stages ran by, so that they run again: %s",
            listed(changes, separator="; "),
        )


def _tensorrt_served(files: Mapping[str, Path]) -> str:
    """Which TensorRT builds FP16 and INT8 engines from the ONNX files of an archive; "" where they are not in it."""
    if not {ONNX["fp16"], ONNX["int8"]} <= files.keys():
        return ""
    newer = "its ONNX files serve FP16 and INT8 for TensorRT 10 and later"
    if not set(TENSORRT8.values()) <= files.keys():
        return f"{newer}; for 8.6 add --set quantize.tensorrt8=true to `run`, and to `bundle` then"
    return f'{newer}, and for 8.6. On 8.6 and on a Jetson the way is another: README, "A GPU machine"'


def _say_left_out(taken: Mapping[str, Any]) -> None:
    for key, value in taken.items():
        option = f"--set '{key}={json.dumps(list(value) if isinstance(value, tuple) else value)}'"
        log.warning("left out of the archive's recipe, because it is for the receiver to say: %s", option)


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
