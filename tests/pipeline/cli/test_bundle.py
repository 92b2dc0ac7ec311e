from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from export.errors import ProjectError
from pipeline.artifacts.files import write_json
from pipeline.artifacts.manifest import INDEX, MANIFEST, Key, read_manifest, why_stale, write_manifest
from pipeline.artifacts.paths import CARD
from pipeline.cli import bundle as module
from pipeline.cli.bundle import bundle, unpack, without_permissions
from pipeline.keras_files.read import read_model_file
from pipeline.recipe.load import load_recipe
from pipeline.recipe.locate import UNPACKED
from pipeline.workflow.context import Context
from tests.made_records import make_card

KEY = Key({"data/train": "a" * 64}, {"seed": 1}, "c" * 64)
Member = tuple[tarfile.TarInfo, bytes]


def make_stage(root: Path, stage: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / stage / name).parent.mkdir(parents=True, exist_ok=True)
        (root / stage / name).write_bytes(data)
    write_manifest(root / stage, stage=stage, recipe="toy", key=KEY, seconds=1, result={})


@pytest.fixture
def context(tmp_path: Path) -> Context:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}}))
    context = Context(load_recipe(path), path, tmp_path / "here")
    write_json(tmp_path / "card.json", make_card(size=(224, 224)))
    card = (tmp_path / "card.json").read_bytes()
    make_stage(context.root, "train", {"model.keras": b"keras" * 500, "model.json": card})
    make_stage(context.root, "build", {"rtx/fp16.plan": b"plan" * 99, "rtx/fp16.json": b"{}", "rtx/int8.json": b""})
    return context


@pytest.fixture
def archive(context: Context, tmp_path: Path) -> Path:
    bundle(context, tmp_path / "toy.tar")
    return tmp_path / "toy.tar"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if ".lock" not in name}


def rewrite(archive: Path, change: Callable[[list[Member]], list[Member]]) -> None:
    """Take the archive apart and put it together again."""
    with tarfile.open(archive) as tar:
        members = [(m, (tar.extractfile(m).read() if m.isfile() else b"")) for m in tar.getmembers()]
    with tarfile.open(archive, "w") as tar:
        for info, data in change(members):
            if info.isfile():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def edit_index(archive: Path, edit: Callable[[dict], object]) -> None:
    """Change the index in place, or put a list in its stead."""

    def change(members: list[Member]) -> list[Member]:
        out = []
        for info, data in members:
            if info.name == INDEX:
                index = json.loads(data)
                edited = edit(index)
                data = json.dumps(edited if isinstance(edited, list) else index).encode()
            out.append((info, data))
        return out

    rewrite(archive, change)


def refused(archive: Path, there: Path, **options: bool) -> str:
    before = content(there.parent)
    with pytest.raises(ProjectError) as info:
        unpack(archive, there, **options)
    assert content(there.parent) == before, "nothing changes, in the artifacts or beside them"
    return str(info.value)


# --- round trip ---


def test_round_trip(context: Context, archive: Path, there: Path) -> None:
    result = unpack(archive, there)
    here = content(context.root)
    arrived = content(there / "toy")
    arrived.pop(UNPACKED, None)
    assert arrived == here
    assert result["files"] == len(here) == 7
    assert result["recipe"] == "toy"
    assert result["folder"] == str(there / "toy")
    for stage in ("train", "build"):
        folder = there / "toy" / stage
        assert why_stale(folder, read_manifest(folder), KEY) == []
    assert not [p for p in (there / "toy").iterdir() if ".tmp" in p.name or p.name == ".unpacked"]


def test_the_archive_lists_every_file_with_its_hash(context: Context, archive: Path) -> None:
    with tarfile.open(archive) as tar:
        assert tar.getnames()[0] == INDEX, "in front"
        index = json.loads(tar.extractfile(INDEX).read())
    assert index["recipe"] == "toy"
    assert index["files"].keys() == content(context.root).keys()
    for name, data in content(context.root).items():
        assert index["files"][name] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_what_is_no_output_stays_home(context: Context, tmp_path: Path, there: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    (context.root / "train" / "notes.txt").write_text("mine")
    (context.root / "half").mkdir()
    (context.root / "half" / "x").write_text("no manifest")
    (context.root / ".train.tmp-7").mkdir()
    bundle(context, tmp_path / "toy.tar")
    assert "left out" in caplog.text
    assert "half" in caplog.text
    unpack(tmp_path / "toy.tar", there)
    assert not {name for name in content(there) if "notes" in name or "half" in name or "tmp" in name}


@pytest.mark.parametrize("damage", [b"other bytes", None])
def test_a_changed_result_is_not_packed(context: Context, tmp_path: Path, damage: bytes | None) -> None:
    plan = context.root / "build/rtx/fp16.plan"
    plan.unlink() if damage is None else plan.write_bytes(damage)
    (tmp_path / "toy.tar").write_bytes(b"former")
    with pytest.raises(ProjectError, match=r"fp16\.plan as its stage wrote it"):
        bundle(context, tmp_path / "toy.tar")
    assert (tmp_path / "toy.tar").read_bytes() == b"former"


def test_nothing_to_pack(tmp_path: Path, context: Context) -> None:
    empty = Context(context.recipe, context.recipe_path, tmp_path / "empty")
    with pytest.raises(ProjectError, match="Expected finished stages"):
        bundle(empty, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_an_interrupt_keeps_the_former_archive(context: Context, archive: Path, monkeypatch) -> None:
    former = archive.read_bytes()

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle(context, archive)
    assert archive.read_bytes() == former
    assert not [p for p in archive.parent.iterdir() if "tmp-" in p.name]


# --- damage on the way ---


@pytest.mark.parametrize("name", ["train/model.keras", "build/rtx/fp16.plan", f"train/{MANIFEST}", UNPACKED])
def test_one_flipped_bit(archive: Path, there: Path, name: str) -> None:
    with tarfile.open(archive) as tar:
        member = tar.getmember(name)
    data = bytearray(archive.read_bytes())
    data[member.offset_data + member.size // 2] ^= 1
    archive.write_bytes(data)
    message = refused(archive, there)
    assert f"{name} does not have the sha256" in message
    assert "Copy it again" in message


def test_a_flipped_byte_anywhere_is_found_or_does_no_harm(context: Context, archive: Path, tmp_path: Path) -> None:
    """Padding holds nothing; what a flip in the index cannot do is bring other bytes in under these names."""
    whole = archive.read_bytes()
    expected = content(context.root)
    harmless = 0
    for run, position in enumerate(range(3, len(whole), 997)):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ 0x20]) + whole[position + 1 :])
        there = tmp_path / f"there{run}"
        try:
            result = unpack(archive, there)
        except ProjectError:
            assert content(there) == {}
        else:
            harmless += 1
            arrived = content(Path(result["folder"]))
            arrived.pop(UNPACKED, None)
            assert arrived == expected
    assert run > 10 > 0
    assert harmless < run


@pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(archive: Path, there: Path, part: float) -> None:
    with tarfile.open(archive) as tar:
        end = max(member.offset_data + member.size for member in tar.getmembers())
    archive.write_bytes(archive.read_bytes()[: int(end * part)])
    assert "Copy it again" in refused(archive, there)


@pytest.mark.parametrize("data", [b"hello" * 300, b"\0" * 10240, b"\x1f\x8b" + b"x" * 999])
def test_what_is_no_archive(tmp_path: Path, there: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    assert "Expected an archive made by `bundle`" in refused(tmp_path / "x.tar", there)


def test_what_was_named_instead_of_an_archive_is_said(archive: Path, tmp_path: Path, there: Path) -> None:
    (tmp_path / "README.md").write_text("# Read me\n" * 100)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(archive.read_bytes()))
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "README.md", "README.md")
    for name, words in {
        ".": "which is a folder. Name the .tar file that `bundle` wrote",
        "README.md": "which is no tar archive. Name the file that `bundle` wrote. Copy it again if this is that file.",
        "x.tar.gz": f"which is compressed. Write gunzip {tmp_path}/x.tar.gz, and name the .tar file that it leaves.",
        "other.tar": "a tar archive of something else: it has no bundle.json.",
    }.items():
        assert words in refused(tmp_path / name, there)


def test_a_place_that_is_no_folder(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    assert "README.md is no folder" in refused(archive, tmp_path / "README.md" / "s")


def test_inspect_names_the_verb_for_an_archive(archive: Path) -> None:
    with pytest.raises(ProjectError, match=r"a tar archive\. If `bundle` made it: python -m pipeline unpack /"):
        read_model_file(archive)
    with zipfile.ZipFile(archive, "a") as behind:
        behind.writestr("config.json", "{}")
    with pytest.raises(ProjectError, match="a tar archive"):
        read_model_file(archive)


def test_missing(tmp_path: Path, there: Path) -> None:
    assert "does not exist" in refused(tmp_path / "x.tar", there)
    assert not there.exists()


def test_a_file_that_the_archive_lacks(archive: Path, there: Path) -> None:
    rewrite(archive, lambda members: [m for m in members if m[0].name != "build/rtx/fp16.plan"])
    assert "fp16.plan" in refused(archive, there)


# --- archives that mean harm ---


def add_file(archive: Path, name: str, data: bytes = b"evil") -> None:
    edit_index(
        archive,
        lambda index: index["files"].update({name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}),
    )
    rewrite(archive, lambda members: [*members, (tarfile.TarInfo(name), data)])


@pytest.mark.parametrize(
    "name",
    ["../evil", "train/../../../evil", "/evil/x", "evil", "train\\..\\evil", ".hidden/x", ".lock/x", "..", "train/.."],
)
def test_names_that_lead_outside(archive: Path, there: Path, name: str) -> None:
    add_file(archive, name)
    assert "outside the artifacts folder" in refused(archive, there)


STRANGE = [
    "train/payload.py", "train/__init__.py", "train/model.keras/x", "train/features.json", "train/manifest.json.py",
    "train/Model.keras", "build/rtx/plugin.so", "build/other/fp16.plan", "build/rtx/fp16-a.b.plan", "build/fp16.plan",
    "export/model.onnx.data", "infer/images/x.py", "infer/images/000-a.png.py", "infer/images/a/000-a.png",
    "other/manifest.json", "conftest/x.py", "train/model.json\n", "verify/sub/parity.json",
]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_file_that_no_stage_writes(archive: Path, there: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(module, "_extract", lambda *_: pytest.fail("something was written"))
    add_file(archive, name)
    message = refused(archive, there)
    assert f"{archive} with {name}. Don't use it" in message


def test_evidence_of_a_gpu_stays_where_it_is(
    context: Context, tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not packed, without a warning, and what is there already survives an archive."""
    warned: list[str] = []
    monkeypatch.setattr(module.log, "warning", lambda form, *words: warned.append(form % words))
    for root in (context.root, there / "toy"):
        (root / "evidence").mkdir(parents=True)
        (root / "evidence" / "h200.json").write_text(str(root))
    bundle(context, tmp_path / "toy.tar")
    with tarfile.open(tmp_path / "toy.tar") as tar:
        assert not [name for name in tar.getnames() if "evidence" in name]
    assert not [words for words in warned if "evidence" in words]
    unpack(tmp_path / "toy.tar", there)
    assert (there / "toy" / "evidence" / "h200.json").read_text() == str(there / "toy")


def test_what_no_stage_writes_is_not_packed(context: Context, tmp_path: Path, there: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    make_stage(context.root, "mine", {"x.py": b"mine"})
    bundle(context, tmp_path / "toy.tar")
    assert f"left out {context.root / 'mine'}, which no stage writes" in caplog.text
    unpack(tmp_path / "toy.tar", there)
    make_stage(context.root, "export", {"model.onnx": b"x", "payload.py": b"mine"})
    with pytest.raises(ProjectError, match=r"a stage writes in .*export. Received: payload\.py"):
        bundle(context, tmp_path / "toy.tar")


@pytest.mark.parametrize("recipe", ["../toy", "/toy", "a/b", "."])
def test_a_recipe_name_that_leads_outside(archive: Path, there: Path, recipe: str) -> None:
    edit_index(archive, lambda index: index.update(recipe=recipe))
    assert "outside the artifacts folder" in refused(archive, there)


@pytest.mark.parametrize("recipe", ["..", "", ".hidden", "a\\..\\b"])
def test_a_recipe_name_that_is_no_recipe_name(archive: Path, there: Path, recipe: str) -> None:
    (there.parent / "train").mkdir()
    (there.parent / "train" / "mine.py").write_text("mine")
    edit_index(archive, lambda index: index.update(recipe=recipe))
    refused(archive, there)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file(archive: Path, there: Path, tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret").write_text("secret")

    def change(members: list[Member]) -> list[Member]:
        out = []
        for info, data in members:
            if info.name == "train/model.json":
                info = tarfile.TarInfo(info.name)
                info.type, info.linkname = kind, str(tmp_path / "secret")
            out.append((info, data))
        return out

    rewrite(archive, change)
    refused(archive, there)


def test_a_link_for_an_empty_file(archive: Path, there: Path) -> None:
    def change(members: list[Member]) -> list[Member]:
        for info, _ in members:
            if info.name == "build/rtx/int8.json":
                info.type, info.linkname = tarfile.SYMTYPE, "fp16.plan"
        return members

    rewrite(archive, change)
    assert "build/rtx/int8.json" in refused(archive, there)


def test_a_folder_reached_through_a_link(archive: Path, there: Path, tmp_path: Path) -> None:
    """The link itself is no member of the index, so it is never made."""
    link = tarfile.TarInfo("train")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    rewrite(archive, lambda members: [(link, b""), *members])
    before = set(tmp_path.iterdir())
    unpack(archive, there)
    assert set(tmp_path.iterdir()) - before == {there}
    assert not (there / "toy" / "train").is_symlink()


@pytest.mark.parametrize(
    "edit",
    [
        lambda index: index.update(schema=99),
        lambda index: index.pop("recipe"),
        lambda index: index.pop("files"),
        lambda index: index["files"].update({"train/model.json": {}}),
        lambda index: index["files"].update({"train/model.json": 5}),
        lambda index: index.update(recipe=5),
    ],
)
def test_an_index_of_another_layout(archive: Path, there: Path, edit: Callable) -> None:
    edit_index(archive, edit)
    refused(archive, there)


@pytest.mark.parametrize("schema", [0, 99])
def test_an_index_of_another_version_is_written_anew(archive: Path, there: Path, schema: int) -> None:
    edit_index(archive, lambda index: index.update(schema=schema))
    message = refused(archive, there)
    assert (
        f"Expected the index of a bundle of schema 1 in {archive}, bundle.json. Received: schema {schema}." in message
    )
    assert "another version wrote it: write it again with `bundle` of this one." in message


def test_a_model_card_of_another_version_is_refused_before_anything_is_written(
    context: Context, tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "card", lambda _: None)  # the version that wrote it read its own card
    tree = json.loads((context.root / CARD).read_text())
    (context.root / CARD).write_text(json.dumps(tree | {"schema": 3}))
    card = (context.root / CARD).read_bytes()
    make_stage(context.root, "train", {"model.keras": b"keras", "model.json": card})
    archive = tmp_path / "toy.tar"
    bundle(context, archive)
    message = refused(archive, there)
    assert f"Expected the model card of schema 4 in {archive}, {CARD}. Received: schema 3." in message
    assert "make it again with `bundle` of this version where the model was trained" in message


@pytest.mark.parametrize("edit", [lambda index: [1], lambda index: index.update(files=["train/model.json"])])
def test_an_index_of_other_types(archive: Path, there: Path, edit: Callable) -> None:
    edit_index(archive, edit)
    refused(archive, there)


def test_an_archive_does_not_say_where_a_data_set_is_fetched_to(tmp_path: Path) -> None:
    """tensorflow-datasets writes there, and imports the modules that a description there names."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "tfds", "tfds": "mnist", "path": str(tmp_path / "x")}}))
    recipe = load_recipe(path)
    given, taken = without_permissions(recipe)
    assert given.data.path is None
    assert taken == {"data.path": str(tmp_path / "x")}
    path.write_text(yaml.safe_dump({"data": {"source": "folder", "path": str(tmp_path / "x")}}))
    assert without_permissions(load_recipe(path))[1] == {}


# --- what is there already ---


@pytest.fixture
def former(there: Path) -> dict[str, bytes]:
    make_stage(there / "toy", "train", {"model.keras": b"former"})
    make_stage(there / "toy", "verify", {"parity.json": b"former"})
    return content(there)


def test_artifacts_that_are_there_are_not_replaced_unless_forced(archive: Path, there: Path, former) -> None:
    assert "--force" in refused(archive, there)
    unpack(archive, there, force=True)
    arrived = content(there / "toy")
    assert arrived["train/model.keras"] == b"keras" * 500
    assert arrived["build/rtx/fp16.plan"] == b"plan" * 99
    assert arrived["verify/parity.json"] == b"former"


def test_former_artifacts_are_intact_after_a_failed_unpack(archive: Path, there: Path, former) -> None:
    with tarfile.open(archive) as tar:
        member = tar.getmember("train/model.keras")
    data = bytearray(archive.read_bytes())
    data[member.offset_data] ^= 1
    archive.write_bytes(data)
    refused(archive, there, force=True)
    assert content(there) == former


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_former_artifacts_are_intact_after_an_interrupt(archive: Path, there: Path, former, monkeypatch, error) -> None:
    real, calls = module.sha256_file, []

    def interrupted(path: Path) -> str:
        calls.append(path)
        if len(calls) == 3:
            raise error
        return real(path)

    monkeypatch.setattr(module, "sha256_file", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        unpack(archive, there, force=True)
    assert content(there) == former
    assert not [p for p in (there / "toy").iterdir() if ".unpacked" in p.name]


def test_a_lock_that_was_left_is_no_artifact(archive: Path, there: Path) -> None:
    (there / "toy").mkdir(parents=True)
    (there / "toy" / ".lock").touch()
    assert unpack(archive, there)["files"] == 7
