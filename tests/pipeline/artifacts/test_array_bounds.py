"""Files of arrays, tables and names that promise more than they hold are refused before anything is allocated."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from export.errors import DataError, RecipeError
from pipeline.artifacts.archives import array_names, read_array, read_arrays, read_member
from pipeline.artifacts.array_rows import array_forms, each_row, read_rows
from pipeline.data.class_names import data_names, model_names
from pipeline.data.sources import read_source
from pipeline.models.preprocessing import own_preprocessing
from pipeline.recipe.schema import Data, Preprocessing
from tests.bounded import attempts, write_bomb


def header(shape: tuple[int, ...], dtype: str = "|u1", version: int = 1) -> bytes:
    file = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


HUGE = (9 * 2**40,)
LONG_HEADER = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b" " * 100


def test_archives_that_are_bombs(tmp_path: Path) -> None:
    shape = (4_800, 1_000_000)
    promised = write_bomb(tmp_path / "promised.npz", "x.npy", 4_800_000_000, header(shape))
    assert promised.stat().st_size < 5_000_000
    cases = {
        "9 TiB in a header": (archive(tmp_path / "header.npz", x=header(HUGE)), "promises uint8 (9895604649984,)"),
        "deflated": (promised, "that unpack to 4,800,000,128"),
        "deflated, and the archive says less": (
            write_bomb(tmp_path / "lies.npz", "x.npy", 4_800_000_000, header(shape), said=200),
            "promises uint8 (4800, 1000000)",
        ),
        "a long header": (archive(tmp_path / "long.npz", x=LONG_HEADER), "a header of 2,147,483,648 bytes"),
        "a deflated header": (
            write_bomb(tmp_path / "deep.npz", "x.npy", 20_000_000, LONG_HEADER),
            "a header of 2,147,483,648 bytes",
        ),
        "texts of no size": (archive(tmp_path / "empty.npz", x=header(HUGE, "|S0")), "no plain numbers or texts"),
        "below zero": (archive(tmp_path / "below.npz", x=header((-1, -5))), "no plain numbers or texts"),
        "objects": (archive(tmp_path / "objects.npz", x=header((1,), "|O") + b"x"), "Object arrays"),
        "fewer bytes": (archive(tmp_path / "few.npz", x=header((3,)) + b"12"), "3 bytes; it holds 2"),
        "more bytes": (archive(tmp_path / "more.npz", x=header((3,)) + b"1234"), "3 bytes; it holds 4"),
        "no array": (archive(tmp_path / "no.npz", x=b"no"), "does not begin as"),
    }
    members = {f"{i:060}": b"" for i in range(20_000)}
    cases["many members"] = (archive(tmp_path / "many.npz", **members), "a table of contents of")
    calls = [("pipeline.artifacts.archives:read_arrays", path, []) for path, _ in cases.values()]
    alone = tmp_path / "alone.npy"
    alone.write_bytes(header(HUGE))
    long = tmp_path / "long.npy"
    long.write_bytes(LONG_HEADER)
    calls += [("pipeline.artifacts.array_rows:read_rows", path, ["x", [0]]) for path, _ in list(cases.values())[:-1]]
    calls += [("pipeline.artifacts.archives:read_array", path, [10**15]) for path in (alone, long)]
    found = [
        *cases.values(),
        *list(cases.values())[:-1],
        (alone, "promises uint8 (9895604649984,)"),
        (long, "a header of 2,147,483,648 bytes"),
    ]
    for (path, part), attempt in zip(found, attempts(calls, ["numpy"])):
        assert attempt.error == "DataError", (path, attempt)
        assert str(path) in attempt.message
        assert part in attempt.message, path
        assert attempt.bytes_read < 2 * 2**20, path
        assert attempt.seconds < 5, path


def test_the_readers_of_arrays_use_it(tmp_path: Path) -> None:
    """Each place that opens a stranger's arrays."""
    path = write_bomb(tmp_path / "x.npz", "x_train.npy", 4_800_000_000, header((4_800_000_000,)))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("y_train.npy", header((0,)))
    with pytest.raises(DataError, match="unpack to 4,800,000,"):
        read_source(Data(source="npz", path=str(path)))
    mean = tmp_path / "mean.npy"
    mean.write_bytes(header((2**30, 2**10, 3), "<f8"))
    with pytest.raises(RecipeError, match=r"a \.npy file of numbers.*its header promises"):
        own_preprocessing(Preprocessing(mean=str(mean)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_sound_archives_are_read(tmp_path: Path, save) -> None:
    arrays = {
        "digits": np.zeros((2_000, 28, 28), np.uint8),  # shrinks as far as anything does
        "labels": np.arange(2_000),
        "texts": np.array(["a", "äöü"]),
        "fortran": np.asfortranarray(np.eye(3, 4)),
        "empty": np.zeros((0, 3)),
        "scalar": np.float32(3),
    }
    save(tmp_path / "a.npz", **arrays)
    assert array_names(tmp_path / "a.npz") == list(arrays)
    for name, array in read_arrays(tmp_path / "a.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype  # type: ignore[attr-defined]
    assert list(read_arrays(tmp_path / "a.npz", ["labels"])) == ["labels"]
    with pytest.raises(DataError, match="no other, but digits, labels"):
        read_arrays(tmp_path / "a.npz", ["labels", "other"])
    np.save(tmp_path / "a.npy", arrays["fortran"])
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy", 12), arrays["fortran"])
    with pytest.raises(DataError, match="more than 11 values"):
        read_array(tmp_path / "a.npy", 11)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_some_rows_are_read(tmp_path: Path, save) -> None:
    arrays: dict[str, np.ndarray] = {
        "digits": np.random.default_rng(0).integers(0, 256, (50, 5, 7, 3)).astype(np.uint8),
        "labels": np.arange(50),
        "texts": np.array(["a", "äöü"]),
        "empty": np.zeros((0, 3)),
    }
    path = tmp_path / "a.npz"
    save(path, **arrays, scalar=np.float32(3), columns=np.asfortranarray(np.eye(3, 4)))
    for name, rows in (("digits", [7, 0, 49, 7, 8]), ("digits", range(50)), ("labels", [3, 2]), ("texts", [1, 0])):
        found = read_rows(path, name, rows)
        np.testing.assert_array_equal(found, arrays[name][list(rows)])
        assert found.dtype == arrays[name].dtype
    for name, array in arrays.items():
        assert read_rows(path, name, []).shape == (0, *array.shape[1:])
        assert [row.tolist() for row in each_row(path, name)] == array.tolist()
        form = array_forms(path, [name])[name]
        assert (form.shape, form.dtype) == (array.shape, array.dtype)
    assert [int(row) for row in each_row(path, "labels", [9, 2, 2])] == [9, 2, 2]
    for name, rows, said in (
        ("digits", [0, 50], "no row 50 in digits of shape"),
        ("digits", [-1], "no row -1"),
        ("empty", [0], "no row 0"),
        ("scalar", [0], "not stored row by row"),
        ("columns", [0], "not stored row by row"),
        ("other", [0], "no other, but digits, labels"),
    ):
        with pytest.raises(DataError, match=said):
            read_rows(path, name, rows)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_more_than_the_memory_are_read(tmp_path: Path, save) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60_000, 1, 80), np.uint8)
    save(tmp_path / "a.npz", x=np.broadcast_to(noise, (60_000, 20, 80)))
    calls = [("pipeline.artifacts.archives:read_arrays", tmp_path / "a.npz", [["x"]])]
    calls += [("pipeline.artifacts.array_rows:read_rows", tmp_path / "a.npz", ["x", [59_999, 3]])]
    whole, some = attempts(calls, ["numpy"])
    assert whole.error == "MemoryError"
    assert some.error == "", some
    assert str(noise[59_999, 0, 0]) in some.message


def test_damage_of_every_byte_is_told(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(40), y=np.ones(3))
    data = (tmp_path / "a.npz").read_bytes()
    for position in range(len(data)):
        (tmp_path / "b.npz").write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        try:
            read_arrays(tmp_path / "b.npz")
        except DataError:
            continue
    for position in range(0, len(data), 5):
        (tmp_path / "b.npz").write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        with contextlib.suppress(DataError):
            read_rows(tmp_path / "b.npz", "x", [0, 39])
    for length in range(0, len(data), 7):
        (tmp_path / "b.npz").write_bytes(data[:length])
        with pytest.raises(DataError, match=r"b\.npz"):
            read_arrays(tmp_path / "b.npz")


def test_a_member_is_read_as_far_as_the_archive_says(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "a.zip", "config.json", 100_000_000, said=1000)
    with zipfile.ZipFile(path) as file, pytest.raises(zipfile.BadZipFile, match="more than the 1,000 bytes"):
        read_member(file, "config.json", 2**20)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", b"x" * 5_000_000)
    with zipfile.ZipFile(tmp_path / "b.zip") as file:
        assert read_member(file, "a", 5_000_000) == b"x" * 5_000_000
        with pytest.raises(zipfile.BadZipFile, match="where at most 4,999,999"):
            read_member(file, "a", 4_999_999)
        assert zlib.crc32(read_member(file, "a", 10**9)) == file.getinfo("a").CRC


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        ((2, 8, 8), [0, 10**12], "Expected labels from 0 to at most 99,999"),
        ((2, 0, 8), [0, 1], "Expected uint8 images"),
    ],
)
def test_labels_and_images_that_ask_for_more(tmp_path: Path, images, labels, found: str) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros(images, np.uint8), y_train=np.array(labels))
    with pytest.raises(DataError, match=found):
        read_source(Data(source="npz", path=str(tmp_path / "a.npz")))


def test_tables_of_huge_fields(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    with table.open("wb") as file:
        file.write(b"path,label\n")
        file.truncate(300_000_000)  # a hole: zeros that take no disk
    wide = tmp_path / "w.csv"
    wide.write_text("path,label\n" + "x" * 200_000 + ",a\n")
    long = tmp_path / "l.csv"
    long.write_text("path,label\n" + "x" * 5_000 + ",a\n")
    for path, found in {table: "a line of 1,048,576 characters", wide: "field limit", long: "name too long"}.items():
        with pytest.raises(DataError, match=f"Expected a CSV file.*{found}"):
            read_source(Data(source="csv", path=str(path)))


def test_lists_of_names_out_of_proportion(tmp_path: Path) -> None:
    for name, text, found in (
        ("deep.json", "[" * 100_000, "nested more than"),
        ("large.txt", "a\n" * 5_000_000, "more than the 8,388,608 bytes"),
        ("many.json", json.dumps(["a"] * 300_000), "values, where at most"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(DataError, match=found):
            data_names(Data(source="folder", path=str(tmp_path), classes=str(path)), tmp_path)
        with pytest.raises(RecipeError, match=found):
            model_names(str(path))
    path = tmp_path / "names.txt"
    path.write_text("\n".join(f"class {i}" for i in range(100_000)))  # takes minutes where each is sought among all
    assert len(model_names(str(path)) or ()) == 100_000
    config = Data(source="folder", path=str(tmp_path), classes=str(path))
    assert len(data_names(config, tmp_path) or ()) == 100_000


@pytest.mark.parametrize("key", ["\u00b2", "1" * 5000, "-1", ""])
def test_names_by_what_is_no_number(tmp_path: Path, key: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({key: "a", "1": "b"}))
    with pytest.raises(RecipeError, match=r"model\.classes: expected a list of names in"):
        model_names(str(path))
    path.write_text(json.dumps({"10": "c", "9": "a", "\u0661": "b"}))
    assert model_names(str(path)) == ("b", "a", "c"), "numbers of any script"
