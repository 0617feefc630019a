"""`pack` and tables, folders and zips as people have them: packed rightly, or refused by name and row."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_shards.data.dataset import Dataset
from lightning_shards.errors import InputError
from lightning_shards.packing.image_files import ImageFiles, below, list_zip
from lightning_shards.packing.pack import pack
from lightning_shards.packing.sources import TableColumns
from lightning_shards.packing.spelling import clean, split_of
from lightning_shards.packing.tables import read_cells

from .conftest import encoded
from .samples import KEEP, class_files, command, jpeg, write_csv, write_tree, write_zip

PLAIN = replace(KEEP, val=0, test=0)
LABEL = replace(PLAIN, columns=TableColumns(targets=("label",)))


def images(folder: Path, each: int = 2) -> list[tuple[str, str]]:
    """Images in `folder`, and their paths and classes."""
    write_tree(folder, class_files(each))
    return [(name, name.split("/")[0]) for name in class_files(each)]


def test_split_folders_go_by_any_usual_name(tmp_path: Path) -> None:
    files = {
        f"{split}/{c}/{i}.jpg": jpeg(i) for i, split in enumerate(("Training", "validation", "TESTING")) for c in "ab"
    }
    report = pack(write_tree(tmp_path / "tree", files), tmp_path / "d", KEEP, 1)
    assert {split: part["images"] for split, part in report["splits"].items()} == {"train": 2, "val": 2, "test": 2}
    assert Dataset.open(tmp_path / "d").targets == ["a", "b"]
    write_tree(tmp_path / "tree", {"dev/a/9.jpg": jpeg(9)})
    with pytest.raises(InputError, match="dev, validation for one split"):
        pack(tmp_path / "tree", tmp_path / "e", KEEP, 1)


@pytest.mark.parametrize("name", ["Train", " training ", "train_images", "images_train", "train2017", "train-set"])
def test_names_of_train(name: str) -> None:
    assert split_of(name) == "train"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("valid", "val"),
        ("DEV", "val"),
        ("eval", "val"),
        ("Test Set", "test"),
        ("trains", None),
        ("", None),
        ("cat", None),
    ],
)
def test_other_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_columns_that_nobody_asked_for_do_not_matter(tmp_path: Path) -> None:
    rows = [f"{n},{c},{i if i < 4 else 'unknown'},\"{'x' * 2_000_000 if i == 3 else 'a, b'}\"" for i, (n, c) in
            enumerate(images(tmp_path))]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["path,label,count,text", *rows]))
    assert pack(tmp_path / "t.csv", tmp_path / "out" / "d", LABEL, 1)["splits"]["train"]["images"] == 6


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_separators_and_line_ends(encoding: str, separator: str, end: str, tmp_path: Path) -> None:
    rows = [
        ["path", "note", "label"],
        ["a/1.jpg", "caf\u00e9", "cat"],
        ["b/2.jpg", '"two\nlines"', "dog"],
        [],
        ["", "", ""],
    ]
    text = end.join(separator.join(row) for row in rows)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert list(read_cells(tmp_path / "t.csv", ["label", "path"])) == [("cat", "a/1.jpg"), ("dog", "b/2.jpg")]


def test_a_class_in_another_encoding_is_named_with_its_row(tmp_path: Path) -> None:
    rows = ["{},{}".format(name, label.replace("cat", "caf\u00e9")) for name, label in images(tmp_path)]
    (tmp_path / "t.csv").write_bytes("\n".join(["path,label", *rows]).encode("latin-1"))
    with pytest.raises(InputError, match=r"row 3 has the class .* no UTF-8.*save a table as UTF-8"):
        pack(tmp_path / "t.csv", tmp_path / "out" / "d", LABEL, 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\na.jpg,x\nb,c.jpg,y\n", "row 2 has 3 cells"),
        ('path,label\na.jpg,x\n"b.jpg,y\nc.jpg,z\n', "row 2 cannot be read"),
        ("PK\x03\x04 a workbook", "an Excel file"),
        ("", "no column 'path'"),
    ],
)
def test_tables_that_are_none_are_refused_by_row(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        list(read_cells(tmp_path / "t.csv", ["path", "label"]))


def test_class_names_without_invisible_differences(tmp_path: Path) -> None:
    names = ["caf\u00e9", "cafe\u0301", "caf\u00e9\u200b", " caf\u00e9\u00a0", "dog"]
    assert {clean(name) for name in names} == {"caf\u00e9", "dog"}
    files = {f"{name}/{i}.jpg": jpeg(i) for i, name in enumerate(names)}
    pack(write_tree(tmp_path / "tree", files), tmp_path / "d", PLAIN, 1)
    assert Dataset.open(tmp_path / "d").targets == ["caf\u00e9", "dog"]
    write_tree(tmp_path / "tree", {"do\u200dg/1.jpg": jpeg(1)})
    with pytest.raises(InputError, match="look alike"):
        pack(tmp_path / "tree", tmp_path / "e", PLAIN, 1)


def test_lists_of_labels(tmp_path: Path) -> None:
    found = images(tmp_path)
    labels = [[label, "even" if i % 2 else "odd|ly"] for i, (_, label) in enumerate(found)]
    table = pa.table({"path": [name for name, _ in found], "label": labels, "meta": [{"a": 1}] * len(found)})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    many = replace(LABEL, task="multi_label")
    pack(tmp_path / "t.parquet", tmp_path / "out" / "d", many, 1)
    assert Dataset.open(tmp_path / "out" / "d").targets == ["bird", "cat", "dog", "even", "odd|ly"]
    with pytest.raises(InputError, match="row 1 has a list"):
        pack(tmp_path / "t.parquet", tmp_path / "out" / "e", LABEL, 1)
    with pytest.raises(InputError, match="'meta' holds struct"):
        pack(tmp_path / "t.parquet", tmp_path / "out" / "e", replace(PLAIN, columns=TableColumns(targets=("meta",))), 1)
    rows = [f"{name},\"['{label}']\"" for name, label in found]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(InputError, match=r"row 1 has the list .* joined by"):
        pack(tmp_path / "t.csv", tmp_path / "out" / "e", many, 1)


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    parts = tmp_path / "t.parquet"
    parts.mkdir()
    for number in range(2):
        pa.parquet.write_table(pa.table({"label": [f"{number}a", f"{number}b"]}), parts / f"part-{number}.parquet")
        (parts / f"._part-{number}.parquet").write_bytes(b"\0\5\x16\7")
    assert [label for (label,) in read_cells(parts, ["label"])] == ["0a", "0b", "1a", "1b"]
    (parts / "part-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-1\.parquet cannot be read"):
        list(read_cells(parts, ["label"]))


def test_empty_lines_before_the_names_of_the_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n,\n\npath,label\na.jpg,x\n")
    assert list(read_cells(tmp_path / "t.csv", ["label"])) == [("x",)]


def test_a_number_that_is_missing_is_no_class(tmp_path: Path) -> None:
    numbers = pa.array([1.0, 2.0, float("nan"), None])
    pa.parquet.write_table(pa.table({"path": list("abcd"), "label": numbers}), tmp_path / "t.parquet")
    assert [label for (label,) in read_cells(tmp_path / "t.parquet", ["label"])] == ["1", "2", "", ""]


def test_files_of_the_system_are_no_images(tmp_path: Path) -> None:
    names = ("cat/Thumbs.db", "dog/desktop.ini", "cat/._1.jpg", "__MACOSX/cat/1.jpg", ".DS_Store", "cat/~$1.jpg")
    extra = dict.fromkeys(names, b"x")
    tree = write_tree(tmp_path / "tree", {**class_files(4), **extra})
    archive = write_zip(tmp_path / "z.zip", {**class_files(4), **extra})
    reports = [pack(source, tmp_path / f"d{i}", KEEP, 1) for i, source in enumerate((tree, archive))]
    assert [(report["damaged"], report["ignored"]) for report in reports] == [(0, 3), (0, 3)]
    assert reports[0]["fingerprint"] == reports[1]["fingerprint"]


def test_any_number_of_folders_may_lie_around_the_classes(tmp_path: Path) -> None:
    files = {f"a/b/c/{name}": data for name, data in class_files(4).items()}
    extra = {"__MACOSX/a/b/c/cat/._1.jpg": b"x", "a/.DS_Store": b"x", "a/b/README.txt": b"x"}
    sources = (write_tree(tmp_path / "tree", files | extra), write_zip(tmp_path / "z.zip", files | extra))
    plain = pack(write_tree(tmp_path / "plain", class_files(4)), tmp_path / "d", KEEP, 1)
    for number, source in enumerate(sources):
        report = pack(source, tmp_path / f"d{number}", KEEP, 1)
        assert (report["fingerprint"], report["ignored"]) == (plain["fingerprint"], 1)


def test_a_zip_with_backslashes_is_a_zip_of_folders(tmp_path: Path) -> None:
    files = class_files(4)
    write_zip(tmp_path / "z.zip", {name.replace("/", "\\"): data for name, data in files.items()})
    write_zip(tmp_path / "plain.zip", files)
    reports = [pack(tmp_path / name, tmp_path / f"{name}.d", KEEP, 1) for name in ("z.zip", "plain.zip")]
    assert reports[0]["fingerprint"] == reports[1]["fingerprint"]
    with pytest.raises(InputError, match="points out"):
        list_zip(write_zip(tmp_path / "bad.zip", {"..\\x.jpg": b""}))


def test_paths_as_other_systems_write_them(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path in (
        "a/b.jpg",
        "a\\b.jpg",
        "./a/b.jpg",
        " a/b.jpg ",
        f"{tmp_path}/real/a/b.jpg",
        f"{tmp_path}/link/a/b.jpg",
    ):
        assert below(tmp_path / "real", path, "row 1") == "a/b.jpg"
    for path in ("C:\\data\\b.jpg", "..\\b.jpg", "/b.jpg", "", f"{tmp_path}/b.jpg"):
        with pytest.raises(InputError, match="row 1 has the path"):
            below(tmp_path / "real", path, "row 1")


def test_files_are_found_in_either_form_of_their_name(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cafe\u0301.jpg": jpeg(1), "b.jpg": jpeg(2)})
    (tmp_path / "t.csv").write_text("path,label\ncaf\u00e9.jpg,x\nb.jpg,y\n")
    assert pack(tmp_path / "t.csv", tmp_path / "out" / "d", LABEL, 1)["damaged"] == 0


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 3000), change=st.binary(min_size=1, max_size=30))
def test_a_zip_with_any_damage_is_read_or_refused(at: int, change: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.zip"
    if not path.with_suffix(".whole").exists():
        files = {f"{n}.jpg": jpeg(n, 8, 8) for n in range(3)}
        write_zip(path, files, method=zipfile.ZIP_DEFLATED).rename(path.with_suffix(".whole"))
    whole = path.with_suffix(".whole").read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + change + whole[at + len(change) :])
    try:
        names, members = list_zip(path)
    except InputError:
        return
    reader = ImageFiles(path, members)
    for name in names:
        try:
            data = reader.read(name)
        except (OSError, ValueError):
            continue
        assert data in [jpeg(n, 8, 8) for n in range(3)] or not data
    reader.close()


@settings(max_examples=150, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda t: ("path,label\n" + t).encode("utf-8", "surrogatepass")),
    )
)
def test_any_bytes_as_a_table_are_rows_or_a_sentence(content: bytes, tmp_path_factory: Any) -> None:
    for suffix in (".csv", ".parquet"):
        path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
        path.write_bytes(content)
        try:
            assert all(len(row) == 2 for row in read_cells(path, ["path", "label"]))
        except InputError as error:
            assert os.fspath(path) in str(error)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Cat", "cat", "dog"), "'Cat' and 'cat' count as 2 classes;"),
        (("1", "1.0", "2"), "'1' and '1.0' count as 2 classes;"),
        (("A", "a", "B", "b"), "and 1 more such"),
        (("1", "2", "cat"), ""),
    ],
)
def test_classes_that_a_person_may_mean_as_one_are_named(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    rows = []
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
        rows.append({"path": f"{number}.png", "label": names[number % len(names)]})
    done = command(write_csv(tmp_path / "t.csv", rows), tmp_path / "out", "--target-columns", "label")
    assert done.returncode == 0, done.stderr
    assert ("alike: " in done.stdout) == bool(said) and said in done.stdout


def test_a_zip_whose_disk_fails_is_not_called_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def seek(self, *_: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_zip(tmp_path / "a.zip", class_files(2))
    monkeypatch.setattr(zipfile.io, "open", lambda *_: Failing())  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"a.zip cannot be read \(Input/output error\)"):
        list_zip(tmp_path / "a.zip")
