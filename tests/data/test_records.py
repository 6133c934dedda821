# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest
from pyarrow import feather, parquet

from nemo_launcher.data.jsonl import MAX_LINE_BYTES
from nemo_launcher.data.record_checks import check_fields
from nemo_launcher.data.records import count_records, path_problem, read_records, split_place
from nemo_launcher.errors import UserError
from nemo_launcher.files.digest import sha256_of

pytestmark = pytest.mark.unit

ROWS = [
    {"id": "1", "question": 'Who said "yes"?', "answer": "Ann; Bo"},
    {"id": "2", "question": "first line\nsecond, line\t\u2028é", "answer": "7"},
    {"id": "3", "question": "", "answer": " x "},
]
Writer = Callable[[Path], None]


def _packed(path: Path, content: bytes) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content, mtime=0))
    elif path.suffix == ".zst":
        path.write_bytes(pyarrow.compress(content, codec="zstd", asbytes=True))
    else:
        path.write_bytes(content)


def _written(frame_to: Callable[[pandas.DataFrame, Any], None], *, text: bool) -> Writer:
    def write(path: Path) -> None:
        buffer = io.StringIO(newline="") if text else io.BytesIO()
        frame_to(pandas.DataFrame(ROWS), buffer)
        content = buffer.getvalue()
        _packed(path, content.encode() if isinstance(content, str) else content)

    return write


def _arrow_stream(frame: pandas.DataFrame, buffer: Any) -> None:
    table = pyarrow.Table.from_pandas(frame)
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def _text(write: Callable[[pandas.DataFrame, Any], None]) -> Writer:
    return _written(write, text=True)


def _bytes(write: Callable[[pandas.DataFrame, Any], None]) -> Writer:
    return _written(write, text=False)


FORMS: dict[str, Writer] = {
    "rows.jsonl": _text(lambda frame, out: frame.to_json(out, orient="records", lines=True)),
    "rows.json": _text(lambda frame, out: frame.to_json(out, orient="records", indent=2)),
    "data.json": _text(lambda frame, out: json.dump({"version": "1", "data": ROWS}, out)),
    "lines.json": _text(lambda frame, out: frame.to_json(out, orient="records", lines=True)),
    "rows.csv": _text(lambda frame, out: frame.to_csv(out, index=False)),
    "bom.csv": _text(lambda frame, out: out.write("\ufeff" + frame.to_csv(index=False, lineterminator="\r\n"))),
    "semicolons.csv": _text(lambda frame, out: frame.to_csv(out, index=False, sep=";")),
    "tabs.csv": _text(lambda frame, out: frame.to_csv(out, index=False, sep="\t")),
    "index.csv": _text(lambda frame, out: frame.to_csv(out)),
    "rows.tsv": _text(lambda frame, out: frame.to_csv(out, index=False, sep="\t")),
    "ROWS.PARQUET": _bytes(lambda frame, out: frame.to_parquet(out, row_group_size=2)),
    "rows.feather": _bytes(lambda frame, out: feather.write_feather(frame, out)),
    "rows.arrow": _bytes(_arrow_stream),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(tmp_path: Path, name: str, packing: str) -> None:
    path = tmp_path / f"{name}{packing}"
    FORMS[name](path)
    found = list(read_records(path))
    assert [record for _, record in found] == ROWS
    assert count_records(path) == len(ROWS)
    assert [split_place(place)[0] for place, _ in found] == [str(path)] * 3


def test_a_folder_of_datasets_gives_its_records_in_order(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS * 200).save_to_disk(tmp_path / "saved", num_shards=3)
    found = list(read_records(tmp_path / "saved"))
    assert [record for _, record in found] == ROWS * 200
    assert found[599][0] == f"{tmp_path / 'saved'}: row 600"
    assert count_records(tmp_path / "saved") == 600


def test_the_checksum_of_a_folder_covers_all_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / name)
    (tmp_path / "b" / "state.json").write_bytes((tmp_path / "a" / "state.json").read_bytes())
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    shard = next((tmp_path / "b").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert sha256_of(tmp_path / "a") != sha256_of(tmp_path / "b")


def test_a_folder_of_several_splits_names_them(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "all")
    problem = path_problem(tmp_path / "all")
    assert problem is not None
    assert problem.fix == f"name one of them: {tmp_path / 'all' / 'train'}"
    assert path_problem(tmp_path / "all" / "train") is None


# --- values -------------------------------------------------------------------------------------------------------


def test_numbers_in_tables_become_their_text(tmp_path: Path) -> None:
    columns = {
        "whole": pyarrow.array([3, -(2**60)], pyarrow.int64()),
        "truth": pyarrow.array([True, False]),
        "double": pyarrow.array([0.1, 1.0]),
        "single": pyarrow.array([0.1, 1.0], pyarrow.float32()),
        "label": pyarrow.array(["a", "b"]).dictionary_encode(),
        "list": pyarrow.array([["x"], ["y", "z"]]),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert [record for _, record in read_records(tmp_path / "t.parquet")] == [
        {"whole": "3", "truth": "true", "double": "0.1", "single": "0.1", "label": "a", "list": ["x"]},
        {"whole": str(-(2**60)), "truth": "false", "double": "1.0", "single": "1.0", "label": "b", "list": ["y", "z"]},
    ]


def test_class_labels_become_their_names(tmp_path: Path) -> None:
    kinds = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"]), "text": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"label": [1, 0, -1], "text": ["a", "b", "c"]}, features=kinds)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "t.parquet")
    for path in (tmp_path / "saved", tmp_path / "t.parquet"):
        assert [record["label"] for _, record in read_records(path)] == ["yes", "no", None]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_null_is_refused_with_its_row(tmp_path: Path, value: float | None) -> None:
    parquet.write_table(pyarrow.table({"text": pyarrow.array([1.5, value])}), tmp_path / "t.parquet")
    problems = check_fields(tmp_path / "t.parquet", ["text"], None)
    assert [str(problem.where) for problem in problems] == [f"{tmp_path / 't.parquet'}: row 2"]
    assert "'text' holds null" in problems[0].what


# --- mistakes -----------------------------------------------------------------------------------------------------

PARQUET = io.BytesIO()
parquet.write_table(pyarrow.table({"a": ["x" * 100] * 100}), PARQUET)


@pytest.mark.parametrize(
    ("name", "content", "where", "what", "fix"),
    [
        ("a.csv", "a,b\n1,2\n\n3\n", ":4", "has 1 value, but the header has 2 values, separated by commas", "quotes"),
        ("a.csv", 'a;b\n1;2\n1;"x\ny";z\n', ":3", "has 3 values, but the header has 2 values, separated by", "quotes"),
        ("a.csv", 'a,b\n1,2\n"1,2\n3,4\n', ":3", "a double quote that opens here is not closed", "close it"),
        ("a.tsv", 'a\tb\n"x" y\tz\n', ":2", "text follows a closing double quote", "double quotes"),
        ("a.csv", "a,b\r1,2\r", ":1", "carriage return", "tr"),
        ("a.csv", "a,b,a\n1,2,3\n", ":1", "the column 'a' occurs twice", "rename"),
        ("a.csv", b"a,b\n1,\xff\n", ":2", "is not UTF-8", "UTF-8"),
        ("a.csv", "a,b\n", "", "no records", "add records"),
        ("a.csv", "", "", "no records", "add records"),
        ("a.csv", "a,b\n".encode("utf-16"), "", "is not CSV, as its name says", "iconv"),
        ("a.csv", PARQUET.getvalue(), "", "is not CSV, as its name says", "name it .parquet"),
        ("a.json", gzip.compress(b"[]", mtime=0), "", "is not JSON, as its name says", "name it as in"),
        ("a.json", "[1]", ": row 1", "holds a number, not an object", "list of objects"),
        ("a.json", '[{"a": "1"},\n {"a": ]', ":2:8", "not JSON", "list of objects"),
        ("a.json", '{\n"a": [{"b": 1}], "c": [{"d": 1}]}', "", "several lists of objects: a, c", "jq"),
        ("a.json", "7", "", "holds a number, not a list of objects", "list of objects"),
        ("a.json", "[]", "", "no records", "add records"),
        ("a.parquet", '{"a": "1"}\n', "", "is not Parquet, as its name says", ".jsonl"),
        ("a.parquet", "", "", "the file is empty", "copy"),
        ("a.parquet", PARQUET.getvalue()[:-60], "", "cannot be read", "copy"),
        ("a.arrow", PARQUET.getvalue(), "", "is not Arrow, as its name says", "name it .parquet"),
        ("a.arrow", b"ARROW1\0\0" + b"\xff" * 99, "", "cannot be read", "copy"),
        ("a.jsonl.gz", '{"a": "1"}\n', "", "is not gzip, as its name says", "name it a.jsonl"),
        ("a.jsonl.gz", gzip.compress(b'{"a": "1"}\n' * 9000, mtime=0)[:-20], "", "cannot be unpacked", "copy"),
        ("a.csv.zst", pyarrow.compress(b"a\n1\n" * 9000, codec="zstd", asbytes=True)[:-9], "", "unpacked", "copy"),
        ("a.csv.zst", b"\x28\xb5\x2f\xfd" + b"x" * 99, "", "cannot be unpacked", "copy"),
        ("a.jsonl.gz", b"", "", "the file is empty", "copy"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_way_out(
    tmp_path: Path, name: str, content: str | bytes, where: str, what: str, fix: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as error:
        list(read_records(path))
    (problem,) = error.value.problems
    assert str(problem.where) == f"{path}{where}"
    assert what in problem.what
    assert fix in (problem.fix or "")


@pytest.mark.parametrize("name", ["bomb.jsonl", "bomb.csv", "bomb.json"])
def test_a_decompression_bomb_is_refused_without_being_unpacked(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'text\n"' if name == "bomb.csv" else b'[{"a": "')
        for _ in range(10):
            file.write(b" " * MAX_LINE_BYTES)
    tracemalloc.start()
    with pytest.raises(UserError, match="bytes"):
        list(read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * MAX_LINE_BYTES or name == "bomb.json"
    assert peak < 9 * MAX_LINE_BYTES


def test_a_huge_row_of_a_table_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"a": ["x", "y" * (MAX_LINE_BYTES + 1), "z"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="row 2: the record has more than 16,777,216 bytes"):
        list(read_records(tmp_path / "t.parquet"))


def test_a_value_longer_than_the_csv_modules_own_limit_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], ["x" * 500_000]])
    assert [len(str(record["text"])) for _, record in read_records(tmp_path / "a.csv")] == [500_000]


# --- one door -----------------------------------------------------------------------------------------------------

READERS = {"read_lines", "read_json", "read_table", "read_columns", "unpacked", "seekable"}
WITHIN = {"records", "column_tables", "record_streams", "json_lists", "jsonl", "text_tables"}


def test_data_files_are_read_through_one_door_only() -> None:
    package = Path(__file__).resolve().parents[2] / "nemo_launcher"
    outside = [
        f"{path.name}: {alias.name}"
        for path in package.rglob("*.py")
        if not (path.parent.name == "data" and path.stem in WITHIN)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nemo_launcher.data.")
        for alias in node.names
        if alias.name in READERS
    ]
    assert outside == []


# --- columns of fields --------------------------------------------------------------------------------------------

COLUMNS = {"context": "passage", "taskname": "kind", "answer": "title"}


def test_fields_are_read_from_the_columns_that_hold_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("kind,passage,title,context\nnews,text,head,other\n")
    found = [record for _, record in read_records(tmp_path / "a.csv", COLUMNS)]
    assert found == [{"taskname": "news", "context": "text", "answer": "head"}]
    assert list(COLUMNS) == ["context", "taskname", "answer"]


def test_a_misspelt_column_is_named_with_the_one_that_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("kind,passages\nnews,text\n")
    with pytest.raises(UserError) as error:
        list(read_records(tmp_path / "a.csv", COLUMNS))
    (problem,) = error.value.problems  # not of title, which is absent as in an unlabelled file
    assert problem.what == "no column 'passage', which `fields` names"
    assert problem.fix == "did you mean 'passages'?"


def test_a_device_without_an_end_is_not_counted() -> None:
    with pytest.raises(UserError, match="/dev/zero: is a device or pipe, not a regular file"):
        count_records("/dev/zero")
