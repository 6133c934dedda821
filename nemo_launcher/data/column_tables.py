# SPDX-License-Identifier: Apache-2.0
"""Parquet and Arrow files and folders saved by `datasets`, read in batches of rows; errors name file and row."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nemo_launcher.data.jsonl import MAX_LINE_BYTES, other_kind
from nemo_launcher.data.record_streams import Form, seekable
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import first_line, inside, load_json, parse_json, reading

if TYPE_CHECKING:
    import pyarrow

_ROWS = 256
"""The number of rows that are turned into records at a time."""
_MAX_CHUNK, _MAX_RATIO = 256 << 20, 1000  # bytes of a column in a row group, and their ratio to its size in the file
STATE = "state.json"
"""The file that tells a folder saved by `datasets`."""
SPLITS = "dataset_dict.json"
"""The file that tells a folder of several such folders, one for each split."""

Batches = Iterator["pyarrow.RecordBatch"]


def read_columns(path: Path, form: Form) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (row number from 1, record) for each row of a Parquet or Arrow file, or of a folder saved by `datasets`.

    Whole numbers, true and false, decimals, dates and times become text, class labels their names, and floats the
    shortest text that reads as the same number. Nulls, NaN and infinities become None, which a template refuses.
    Raises UserError for a damaged file and for records larger than MAX_LINE_BYTES.
    """
    row = 0
    for part in saved_files(path) if form.kind == "folder" else [path]:
        kind = Form("arrow") if form.kind == "folder" else form
        with reading(part), seekable(part, kind) as stream:
            for batch in _parquet(stream, part) if kind.kind == "parquet" else _arrow(stream, part):
                for record in _records(batch, path, row):
                    row += 1
                    yield row, record


def count_rows(path: Path, form: Form) -> int:
    """Return the number of rows. Raises UserError for a damaged file."""
    count = 0
    for part in saved_files(path) if form.kind == "folder" else [path]:
        with reading(part), seekable(part, form) as stream:
            if form.kind == "parquet":
                count += _parquet_file(stream, part).metadata.num_rows
            else:
                count += sum(batch.num_rows for batch in _open_arrow(stream, part)[1])
    return count


def saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder that `datasets` saved (Dataset.save_to_disk), in order. Raises UserError."""
    if not (folder / STATE).is_file():
        raise UserError(folder_problem(folder))
    state = load_json(folder / STATE)
    files = state.get("_data_files") if isinstance(state, dict) else None
    names = [file.get("filename") if isinstance(file, dict) else None for file in files or ()]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(Problem(str(folder / STATE), "names no data files", "save the data set again"))
    if isinstance(state, dict) and state.get("_indices_files"):
        what = "the order of its rows stands in another file, as older versions of `datasets` wrote it"
        raise UserError(Problem(str(folder / STATE), what, "load it with `datasets` and save it again"))
    return [inside(folder, str(name), str(folder / STATE)) for name in names]


def folder_problem(folder: Path) -> Problem:
    """Return why a folder is no data: it has several splits, or `datasets` did not save it."""
    what = "is a folder, not a file"
    with contextlib.suppress(UserError, OSError):
        splits = load_json(folder / SPLITS)
        names = splits.get("splits") if isinstance(splits, dict) else None
        if isinstance(names, list) and names:
            shown = ", ".join(str(folder / str(name)[:100]) for name in names[:5])
            return Problem(str(folder), "is a data set of several splits", f"name one of them: {shown}")
    return Problem(str(folder), what, "name a data file, or a folder saved by `datasets` (save_to_disk)")


# --- reading ------------------------------------------------------------------------------------------------------


def _parquet_file(stream: IO[bytes], path: Path) -> Any:
    from pyarrow import parquet

    _check_start(stream, path, (b"PAR1",), "Parquet")
    return parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)


def _parquet(stream: IO[bytes], path: Path) -> Batches:
    file = _parquet_file(stream, path)
    for group in range(file.metadata.num_row_groups):
        columns = file.metadata.row_group(group)
        for number in range(columns.num_columns):
            column = columns.column(number)
            size = column.total_uncompressed_size
            if size > _MAX_CHUNK and size > _MAX_RATIO * max(1, column.total_compressed_size):
                what = f"the column {column.path_in_schema!r} unpacks to more than {_MAX_RATIO:,} times its size"
                raise UserError(Problem(str(path), what, "write it with smaller row groups"))
    labels = _class_labels(file.schema_arrow.metadata, path)
    for batch in file.iter_batches(batch_size=_ROWS):
        yield _named(batch, labels)


def _arrow(stream: IO[bytes], path: Path) -> Batches:
    schema, batches = _open_arrow(stream, path)
    labels = _class_labels(schema.metadata, path)
    for batch in batches:
        batch.validate(full=True)  # a damaged file has offsets that lead outside its memory
        for first in range(0, batch.num_rows, _ROWS):
            yield _named(batch.slice(first, _ROWS), labels)


def _open_arrow(stream: IO[bytes], path: Path) -> tuple[pyarrow.Schema, Batches]:
    """Return schema and batches of an Arrow file, in the file format or the stream format, which `datasets` writes."""
    from pyarrow import ipc

    of_file, of_stream = b"ARROW1", b"\xff\xff\xff\xff"
    start = _check_start(stream, path, (of_file, of_stream), "Arrow")
    if start.startswith(of_stream):
        source = ipc.open_stream(stream)
        return source.schema, iter(source)
    file = ipc.open_file(stream)
    return file.schema, map(file.get_batch, range(file.num_record_batches))


def _check_start(stream: IO[bytes], path: Path, starts: tuple[bytes, ...], kind: str) -> bytes:
    """Return the first bytes of a file. Raises UserError unless they are those of its kind."""
    start = stream.read(4096)
    stream.seek(0)
    if not start:
        raise UserError(Problem(str(path), "the file is empty", "copy it again"))
    if not start.startswith(starts):
        fix = other_kind(start, str(path)) or "name it by what it holds, such as .jsonl, .csv or .parquet"
        raise UserError(Problem(str(path), f"is not {kind}, as its name says", fix))
    return start


def _class_labels(metadata: Mapping[bytes, bytes] | None, path: Path) -> dict[str, list[str]]:
    """Return the names of the class labels of each column (datasets.ClassLabel), which the file's schema tells."""
    told = (metadata or {}).get(b"huggingface")
    found = parse_json(told, f"{path}: schema") if told else {}
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    features = found if isinstance(found, dict) else {}
    labels = {
        name: feature.get("names")
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return {
        name: names
        for name, names in labels.items()
        if isinstance(names, list) and all(isinstance(label, str) for label in names)
    }


def _named(batch: pyarrow.RecordBatch, labels: Mapping[str, list[str]]) -> pyarrow.RecordBatch:
    """Return a batch with the names of its class labels; a label without a name becomes null."""
    import pyarrow

    for name, names in labels.items():
        place = batch.schema.get_field_index(name)
        if place < 0:
            continue
        numbers = batch.column(place).to_pylist()
        texts = [names[n] if isinstance(n, int) and 0 <= n < len(names) else None for n in numbers]
        batch = batch.set_column(place, name, pyarrow.array(texts, pyarrow.string()))
    return batch


# --- values -------------------------------------------------------------------------------------------------------


def _records(batch: pyarrow.RecordBatch, path: Path, before: int) -> Iterator[dict[str, object]]:
    """Yield the rows of a batch. before: the number of rows before it."""
    names = batch.schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(Problem(str(path), f"the column {twice[:60]!r} occurs twice", "rename one of them"))
    if batch.nbytes > MAX_LINE_BYTES:  # one of its rows may be too large
        for row in range(batch.num_rows):
            if batch.slice(row, 1).nbytes > MAX_LINE_BYTES:
                what = f"the record has more than {MAX_LINE_BYTES:,} bytes"
                raise UserError(Problem(f"{path}: row {before + row + 1}", what, "shorten it or leave it out"))
    columns = [_texts_of(batch.column(number), name, path, before) for number, name in enumerate(names)]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _texts_of(column: pyarrow.Array, name: str, path: Path, before: int) -> list[object]:
    """Return a column's values as `_texts`. Raises UserError for a value that Python has not, such as a late date."""
    try:
        return _texts(column)
    except (ValueError, OverflowError) as error:
        row = next((row for row in range(len(column)) if not _has_texts(column.slice(row, 1))), 0)
        what = f"the column {name[:60]!r} holds a value that cannot be read: {first_line(error)}"
        fix = "correct it, or write the column as text"
        raise UserError(Problem(f"{path}: row {before + row + 1}", what, fix)) from None


def _has_texts(column: pyarrow.Array) -> bool:
    try:
        _texts(column)
    except (ValueError, OverflowError):
        return False
    return True


def _texts(column: pyarrow.Array) -> list[object]:
    """Return a column's values, numbers as their text."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        return _texts(column.dictionary_decode())
    values: list[object] = column.to_pylist()
    text: Callable[[Any], object] = _text
    if pyarrow.types.is_float32(kind) or pyarrow.types.is_float16(kind):
        values = list(column.to_numpy(zero_copy_only=False))  # keeps the type, whose shortest text is another
        text = _shortest
    return [text(value) for value in values]


def _shortest(value: Any) -> str | None:
    """Return a NumPy float's shortest text."""
    return str(value) if math.isfinite(float(value)) else None


def as_text(value: object) -> object:
    """Return a value below a column as `read_columns` returns those of columns, and so each one of a list."""
    return [_text(item) for item in value] if isinstance(value, list) else _text(value)


def _text(value: object) -> object:
    """Return a number, date or time as text; None for one that is not finite. Text and lists are returned as is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (int, decimal.Decimal, datetime.timedelta)):
        return str(value)
    return value
