"""Take a recipe's artifacts to another machine in one archive, and check every byte on arrival.

Which code runs here and which files are written here is the receiver's decision, by their own recipe or command line.
So an archive's recipe loses every key that gives a permission, and what in the archive runs code is named.
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

from export.errors import ModelError, ProjectError
from export.files import commit_folder, replacing_file, temporary_folder, write_atomic
from export.records import (
    MAX_BYTES,
    MAX_RECORD_BYTES,
    MAX_RECORD_VALUES,
    from_json,
    parse_json,
    read_bounded,
    to_json,
)
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
from pipeline.models.model_card import OF_A_BUNDLE, ModelCard
from pipeline.recipe.limits import RECIPE_NAME
from pipeline.recipe.load import dump_yaml, load_recipe
from pipeline.recipe.locate import UNPACKED
from pipeline.recipe.schema import Recipe
from pipeline.terminal.command_line import Invocation, unpack_command
from pipeline.terminal.console import progress_bar
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)

# Keys of the recipe, each with its value where no permission is given.
PERMISSIONS: dict[str, object] = {
    "model.allow": (),  # code in the model file
    "runtime.host_code": False,  # code for the CPU inside an engine
    "build.version_compatible": False,  # the same, for engines of this recipe
    "build.timing_cache": None,  # a file that is written, at whatever path the recipe names
}
# The same where the images are a data set of tensorflow-datasets: it writes what it downloads below this path, and
# imports the modules that the data set's description names.
TFDS_PERMISSIONS: dict[str, object] = {"data.path": None}


def without_permissions(recipe: Recipe) -> tuple[Recipe, dict[str, object]]:
    """Return the recipe without permissions, and the keys that gave them with their values."""
    revoked: dict[str, object] = {}
    for key, none in (PERMISSIONS | (TFDS_PERMISSIONS if recipe.data.source == "tfds" else {})).items():
        name, _, field = key.partition(".")
        section = getattr(recipe, name)
        if (value := getattr(section, field)) != none:
            revoked[key] = value
            recipe = dataclasses.replace(recipe, **{name: dataclasses.replace(section, **{field: none})})
    return recipe, revoked


def list_code(root: Path) -> list[str]:
    """List what in a recipe's artifacts runs code when it is used, a line each.

    Args:
        root: ``artifacts/<recipe>``.
    """
    from pipeline.keras_files.read import read_model_file

    lines = []
    try:
        for finding in read_model_file(root / KERAS).findings if (root / KERAS).is_file() else ():
            terms = f"refused unless you give --set 'model.allow=[{finding.name}]'" if finding.allowable else "refused"
            lines.append(f"{KERAS} holds {finding.kind} {finding.name}: {finding.why} ({terms})")
    except ModelError as error:
        lines.append(f"{KERAS} could not be checked: {error}")
    except ModuleNotFoundError as error:
        lines.append(f"{KERAS} was not checked: {error.name} is not installed, and nothing here opens it")
    artifacts = Artifacts(root)
    if plans := engines(artifacts):
        lines.append(
            f"{len(plans)} TensorRT engines: an engine is a program; build your own from the ONNX files instead"
        )
    return lines + [
        f"{plan} holds code for the CPU too (refused unless you give --set runtime.host_code=true)"
        for plan in plans
        if _has_host_code(artifacts.path(plan))
    ]


def _has_host_code(plan: Path) -> bool:
    try:
        return bool(read_sidecar(plan).options.get("version_compatible"))
    except ProjectError:
        return False  # a plan without a valid sidecar is never loaded


def bundle(context: Context, output: Path) -> dict[str, object]:
    """Write a tar archive of every finished stage, with an index of sha256 digests as its first member.

    Args:
        context: the recipe and its artifacts.
        output: the archive to write.

    Returns:
        dict[str, object]: what the JSON line holds.

    Raises:
        ProjectError: no stage has finished, or a file differs from its manifest.
    """
    with recipe_lock(context.root):
        files: dict[str, Path] = {}
        for folder in sorted(p for p in context.root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if folder.name == EVIDENCE:
                log.info("left out %s: the evidence of a GPU visit, no stage writes it", folder)
                continue
            manifest = read_manifest(folder)
            if manifest is None or not is_written(f"{folder.name}/{MANIFEST}"):
                log.warning(
                    "left out %s, which %s", folder, "has no manifest" if manifest is None else "no stage writes"
                )
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
            context.card()  # refuses a recipe that contradicts the model
            _warn_of_changed_recipe(context)
        recipe = _yaml_without_permissions(context.recipe)
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
            for name, text in ((INDEX, json.dumps(to_json(index), indent=2)), (UNPACKED, recipe)):
                member = tarfile.TarInfo(name)
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
            for name, path in files.items():
                archive.add(path, arcname=name)
                bar.update()
    size = output.stat().st_size
    log.info(
        "%s: %s, %.1f MB. On the other machine: %s",
        *(output, count(len(files), "file"), size / 1e6, unpack_command(output)),
    )
    if supported := _supported_tensorrt(files):
        log.info("%s", supported)
    return {"recipe": context.recipe.name, "output": str(output), "files": len(files), "bytes": size}


def unpack(archive_path: Path, artifacts: Path, force: bool = False) -> dict[str, object]:
    """Unpack an archive of ``bundle`` into ``artifacts/<recipe>``; nothing changes unless every hash is right.

    Args:
        archive_path: the archive.
        artifacts: folder of all recipes' artifacts.
        force: replace existing artifacts of that recipe. Defaults to False.

    Returns:
        dict[str, object]: what the JSON line holds.

    Raises:
        ProjectError: no archive of ``bundle``, or one that is cut short or altered; or artifacts exist already.
    """
    check_folder(artifacts, "--artifacts")
    if refusal := _why_no_archive(archive_path):
        raise ProjectError(f"Expected an archive made by `bundle`. Received: {archive_path}, {refusal}")
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
                _extract(archive, index, root, archive_path)
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise ProjectError(
            f"Expected an archive made by `bundle`. Received: {archive_path}: {error}. Copy it again."
        ) from error
    log.info("%s: %s, every hash right", root, count(len(index.files), "file"))
    code = list_code(root)
    for line in code:
        log.warning("code: %s", line)
    log.info("next: %s", Invocation(root / UNPACKED, artifacts).command("run"))
    return {"recipe": index.recipe, "folder": str(root), "files": len(index.files), "code": code}


def _why_no_archive(path: Path) -> str:
    """Say what a path holds that is not the beginning of a tar archive, and what to do; "" for an archive."""
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
    kind = describe_file(path, head).partition(". ")[0] or "no tar archive"
    return f"which is {kind}. Name the file that `bundle` wrote. Copy it again if this is that file."


def _read_index(archive: tarfile.TarFile, path: Path) -> BundleIndex:
    if INDEX not in archive.getnames():
        raise ProjectError(
            f"Expected an archive made by `bundle`. Received: {path}, a tar archive of something else: it has no "
            f"{INDEX}."
        )
    file = archive.extractfile(INDEX)
    index = from_json(
        BundleIndex,
        parse_json(file.read(MAX_BYTES + 1) if file else b"", INDEX),
        f"{path}, {INDEX}",
        remedy="Copy it again. If it is whole, another version wrote it: write it again with `bundle` of this one.",
        what="index of a bundle",
    )
    if not RECIPE_NAME.fullmatch(index.recipe) or any(
        len(parts) < 2 or ".." in parts or parts[0].startswith(("/", ".")) or "\\" in "".join(parts)
        for parts in (PurePosixPath(name).parts for name in index.files)
    ):
        raise ValueError("it names files outside the artifacts folder")
    if unknown := [name for name in index.files if not is_written(name)]:
        raise ProjectError(
            f"Expected an archive of files that stages write. Received: {path} with "
            f"{listed((name[:100] for name in unknown), most=3)}. Don't use it, or ask its sender what they are."
        )
    return index


def _extract(archive: tarfile.TarFile, index: BundleIndex, root: Path, archive_path: Path) -> None:
    with temporary_folder(root / "unpacked") as staging:  # the next run removes what a killed one leaves
        for name, expected in progress_bar(index.files.items(), desc="  unpack"):
            member = archive.getmember(name)
            file = archive.extractfile(member)  # None for links and devices, which are refused that way
            if file is None or member.size != expected.bytes:
                raise ValueError(f"{name} is not the file that the index lists")
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(file, out)
            if sha256_file(target) != expected.sha256:
                raise ValueError(f"{name} does not have the sha256 that the index lists")
        file = archive.extractfile(UNPACKED)
        content = file.read(1 << 20) if file else b""
        if sha256_bytes(content) != index.recipe_sha256:
            raise ValueError(f"{UNPACKED} does not have the sha256 that the index lists")
        path = staging / UNPACKED
        path.write_bytes(content)
        recipe = load_recipe(path)
        if recipe.name != index.recipe:
            raise ValueError(f"its recipe is named {recipe.name!r}, its index says {index.recipe!r}")
        if (staging / CARD).is_file():
            _refuse_other_card(staging / CARD, archive_path)
        write_atomic(root / UNPACKED, _yaml_without_permissions(recipe))
        for folder in sorted(p for p in staging.iterdir() if p.is_dir()):
            commit_folder(folder, root / folder.name)


def _refuse_other_card(card: Path, archive_path: Path) -> None:
    """Refuse the card of another version, which every verb would refuse later.

    Raises:
        ProjectError: it has another schema, or other keys.
    """
    data = read_bounded(card, MAX_RECORD_BYTES)
    tree = parse_json(data, CARD, most=MAX_RECORD_BYTES, most_values=MAX_RECORD_VALUES)
    from_json(ModelCard, tree, f"{archive_path}, {CARD}", remedy=OF_A_BUNDLE, what="model card")


def _warn_of_changed_recipe(context: Context) -> None:
    """Warn where the receiver's `run` would repeat stages, because the recipe changed since they ran."""
    from pipeline.stages import STAGES

    if changes := [
        change
        for stage in STAGES
        for change in recipe_changes(read_manifest(context.folder(stage.name)), context.recipe)
    ]:
        log.warning(
            "the archive's recipe differs from the one that its stages ran with, so they run again: %s",
            listed(changes, separator="; "),
        )


def _supported_tensorrt(files: Mapping[str, Path]) -> str:
    """Say which TensorRT builds FP16 and INT8 engines from an archive's ONNX files; "" where it holds none of them."""
    if not {ONNX["fp16"], ONNX["int8"]} <= files.keys():
        return ""
    newer = "its ONNX files serve FP16 and INT8 for TensorRT 10 and later"
    if not set(TENSORRT8.values()) <= files.keys():
        return f"{newer}; for 8.6 add --set quantize.tensorrt8=true to `run`, and to `bundle` then"
    return f'{newer}, and for 8.6. The steps for 8.6 and for a Jetson differ: README, "A GPU machine"'


def _yaml_without_permissions(recipe: Recipe) -> str:
    """Return the recipe as YAML without permissions; each one left out is a warning."""
    stripped, revoked = without_permissions(recipe)
    for key, value in revoked.items():
        option = f"--set '{key}={json.dumps(list(value) if isinstance(value, tuple) else value)}'"
        log.warning("left out of the archive's recipe, because the receiver decides it: %s", option)
    return dump_yaml(stripped)
