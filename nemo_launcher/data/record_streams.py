# SPDX-License-Identifier: Apache-2.0
"""The form of a data file by its suffix, and its bytes, unpacked while they are read."""

from __future__ import annotations

import contextlib
import gzip
import io
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from nemo_launcher.data.jsonl import other_kind
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import first_line

SUFFIXES = {
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""The forms of data files by suffix. All other names are JSON Lines."""
PACKED = (".gz", ".zst")
"""The suffixes of packed files, after that of the form."""
TABLES = ("parquet", "arrow", "folder")
"""The forms whose records are counted in rows. The others are text."""

_HEAD_BYTES = 4096
_MAX_RATIO, _FREE_BYTES = 50, 1 << 30  # of a packed table, which is unpacked to a temporary file
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a data file."""

    kind: str
    """`jsonl`, or one of the values of SUFFIXES, or `folder`."""
    packing: str = ""
    """The suffix of its packing, one of PACKED; empty for none."""


def form_of(path: str | Path) -> Form:
    """Return the form of a data file, from its name; a folder is one that `datasets` saved."""
    path = Path(path)
    if path.is_dir():
        return Form("folder")
    name = path.name.lower()
    packing = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    return Form(SUFFIXES.get(Path(name.removesuffix(packing)).suffix, "jsonl"), packing)


@contextlib.contextmanager
def unpacked(path: Path, form: Form) -> Iterator[IO[bytes]]:
    """Open a data file for reading in order. Raises UserError for a damaged one, also while it is read."""
    with contextlib.ExitStack() as opened:
        stream = cast(IO[bytes], opened.enter_context(path.open("rb")))
        if form.packing:
            _check_packing(path, form, stream)
        try:
            if form.packing == ".gz":
                stream = cast(IO[bytes], opened.enter_context(gzip.GzipFile(fileobj=stream)))
            elif form.packing == ".zst":
                stream = opened.enter_context(_zstd(stream))
            yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(_damaged(path, error)) from None
        except OSError as error:
            if form.packing != ".zst" or error.errno is not None:
                raise
            raise UserError(_damaged(path, error)) from None  # as pyarrow reports damage


def head(stream: IO[bytes]) -> bytes:
    """Return the first bytes of a stream that `unpacked` opened, without consuming them."""
    return cast(io.BufferedReader, stream).peek(_HEAD_BYTES)[:_HEAD_BYTES]


@contextlib.contextmanager
def seekable(path: Path, form: Form) -> Iterator[IO[bytes]]:
    """Open a table for reading at any place; a packed one is unpacked to a temporary file.

    Raises UserError for a damaged one, and if it unpacks to more than 50 times its size and 1 GiB.
    """
    if not form.packing:
        with path.open("rb") as stream:
            yield stream
        return
    limit = max(_FREE_BYTES, _MAX_RATIO * path.stat().st_size)
    with tempfile.TemporaryFile() as copy:
        with unpacked(path, form) as stream:
            while block := stream.read(_BLOCK):
                copy.write(block)
                if copy.tell() > limit:
                    what = f"unpacks to more than {limit:,} bytes, {_MAX_RATIO} times its size"
                    raise UserError(Problem(str(path), what, "unpack it yourself if this is intended"))
        copy.seek(0)
        yield cast(IO[bytes], copy)


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    import pyarrow  # takes a third of a second

    return cast(IO[bytes], io.BufferedReader(pyarrow.CompressedInputStream(stream, "zstd"), 1 << 16))


def _check_packing(path: Path, form: Form, stream: IO[bytes]) -> None:
    """Raise UserError unless the file starts as its suffix says."""
    start = head(stream)
    magic = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}[form.packing]
    if not start:
        raise UserError(Problem(str(path), "the file is empty", "copy it again"))
    if not start.startswith(magic):
        other = other_kind(start, str(path)) or f"if it is not packed, name it {path.name.removesuffix(form.packing)}"
        what = f"is not {'gzip' if form.packing == '.gz' else 'zstd'}, as its name says"
        raise UserError(Problem(str(path), what, other))


def _damaged(path: Path, error: BaseException) -> Problem:
    return Problem(str(path), f"cannot be unpacked: {first_line(error)}", "copy it again")
