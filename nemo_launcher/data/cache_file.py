"""Samples in one file, mapped into memory: a sample is built when it is asked for, and thrown away by who asked.

The file holds the tokens of all samples, one behind the other; tables of whole numbers, one entry a sample; JSON that
says where each table lies; and a footer with the sizes and a checksum of all of it. It is written from front to back.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from nemo_launcher.data.prefix_tree import IntArray, PrefixOrder
from nemo_launcher.data.prompt_encoder import Sample
from nemo_launcher.data.prompts import Lengths
from nemo_launcher.data.t5_prompts import T5Sample

FORMAT = 2
"""The version of files and samples: another one than a file's, and its samples are encoded anew."""

_FOOTER = struct.Struct("<8sQQI")  # magic, bytes of the file before the footer, of them JSON, checksum of them
_MAGIC = b"NLSMPLS\0"
# The token sequences and the numbers that make a sample, by its type.
_FIELDS: dict[str, tuple[type, tuple[str, ...], tuple[str, ...]]] = {
    "Sample": (Sample, ("input_ids",), ("answer_start",)),
    "T5Sample": (T5Sample, ("input_ids", "decoder_ids"), ("num_cut",)),
}


class SampleCache(Sequence[Any]):
    """The samples of a cache file that have at most `limit` tokens (None: all); their records are left out.

    kind: of the samples, a key of _FIELDS. tables: `tokens`; `bounds`, where in it each sequence of each sample begins,
    and where the last one ends; `file` (an index of `paths`) and `line` that a sample comes from; its numbers.
    prefixes: which samples share one, None where that was not asked for.
    """

    def __init__(
        self, kind: str, tables: Mapping[str, IntArray], paths: Sequence[str], *, limit: int | None, path: Path
    ) -> None:
        self._type, self._sequences, self._numbers = _FIELDS[kind]
        self._tables, self._paths, self._limit, self._path = tables, list(paths), limit, path
        starts, stops = self._input_bounds()
        lengths = stops - starts
        self._kept = np.flatnonzero(lengths <= (lengths.max() if limit is None else limit))
        self.prefixes = PrefixOrder(tables["members"], tables["shared"]) if "members" in tables else None
        self.remarks: list[str] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        place = int(self._kept[index])
        first = place * len(self._sequences)
        bounds = self._tables["bounds"][first : first + len(self._sequences) + 1].tolist()
        tokens = [self._tables["tokens"][start:stop].tolist() for start, stop in pairwise(bounds)]
        numbers = {name: int(self._tables[name][place]) for name in self._numbers}
        sequences = dict(zip(self._sequences, tokens, strict=True))
        return self._type(**sequences, **numbers, record={}, source=self._source(place))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is the name of its file, which the other process maps again."""
        return _reopened, (self._path, self._paths, self._limit)

    def lengths(self) -> Lengths:
        """Return how long the file's samples are, those above the limit included."""
        starts, stops = self._input_bounds()
        longest = int((stops - starts).argmax())
        num_tokens = int(stops[longest] - starts[longest])
        return Lengths(len(starts), len(starts) - len(self), num_tokens, self._source(longest))

    def find_prefixes(self) -> PrefixOrder:
        """Return which samples share a prefix, found anew."""
        starts, stops = self._input_bounds()
        return PrefixOrder.of_array(self._tables["tokens"], starts[self._kept], stops[self._kept])

    def _input_bounds(self) -> tuple[IntArray, IntArray]:
        """Where the input_ids of each sample begin and end."""
        bounds, step = self._tables["bounds"], len(self._sequences)
        return bounds[:-1:step], bounds[1::step]

    def _source(self, place: int) -> str:
        return f"{self._paths[self._tables['file'][place]]}:{self._tables['line'][place]}"


# --- reading ----------------------------------------------------------------------------------------------------


class DamagedCacheError(Exception):
    """A cache file is not whole."""


def open_cache(path: Path, paths: Sequence[str], limit: int, *, verify: bool = True) -> SampleCache:
    """Map a cache file. paths: the data files as they are called now; verify: read it once and compare the checksum.

    Raises OSError when it cannot be opened, DamagedCacheError when it was cut short or changed.
    """
    with path.open("rb") as file:
        size, description_size = _read_footer(file, verify=verify)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    description = json.loads(content[size - description_size : size])
    tables: dict[str, IntArray] = {
        name: np.frombuffer(content, dtype, count, offset)
        for name, (dtype, count, offset) in description["tables"].items()
    }
    cache = SampleCache(description["kind"], tables, paths, limit=limit, path=path)
    cache.remarks = description["remarks"]
    return cache


def _reopened(path: Path, paths: Sequence[str], limit: int) -> SampleCache:
    return open_cache(path, paths, limit, verify=False)


def _read_footer(file: IO[bytes], *, verify: bool) -> tuple[int, int]:
    """Return how many bytes lie before the footer, and how many of them are the description."""
    size = file.seek(0, 2) - _FOOTER.size
    if size < 0:
        raise DamagedCacheError
    file.seek(size)
    magic, written, description_size, checksum = _FOOTER.unpack(file.read(_FOOTER.size))
    if magic != _MAGIC or written != size or description_size > size:
        raise DamagedCacheError
    if verify:
        file.seek(0)
        found, left = 0, size
        while left and (block := file.read(min(left, 1 << 20))):
            found, left = zlib.crc32(block, found), left - len(block)
        if found != checksum:
            raise DamagedCacheError
    return size, description_size


# --- writing ----------------------------------------------------------------------------------------------------


def write_cache(
    path: Path,
    samples: Iterable[Any],
    paths: Sequence[str],
    *,
    limit: int,
    remarks_of: Callable[[Sequence[Any]], list[str]],
    with_prefixes: bool,
) -> None:
    """Write samples as they come, which need no more memory than some numbers each.

    paths: the data files they come from; limit: the most tokens of one that is used; remarks_of: an encoder's remarks;
    with_prefixes: also find which samples share a prefix.
    """
    with path.open("wb") as file:
        output = _Output(file)
        kind, tables = _write_tokens(output, samples, paths)
        file.flush()
        tokens: IntArray = np.memmap(path, np.int32, "r", shape=(int(tables["bounds"][-1]),))
        present = tables | {"tokens": tokens}
        remarks = remarks_of(SampleCache(kind, present, paths, limit=None, path=path))
        if with_prefixes:
            prefixes = SampleCache(kind, present, paths, limit=limit, path=path).find_prefixes()
            tables |= {"members": prefixes.members, "shared": prefixes.shared}
        places: dict[str, tuple[str, int, int]] = {"tokens": ("int32", len(tokens), 0)}
        output.write(bytes(-output.size % 8))
        for name, table in tables.items():
            places[name] = ("int64", len(table), output.size)
            output.write(table.astype(np.int64).tobytes())
        description = json.dumps({"kind": kind, "tables": places, "remarks": remarks}).encode()
        output.write(description)
        file.write(_FOOTER.pack(_MAGIC, output.size, len(description), output.checksum))


class _Output:
    """A file, with the size and the checksum of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = self.checksum = 0

    def write(self, content: bytes | array[int]) -> None:
        self._file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)
        self.size += memoryview(content).nbytes


def _write_tokens(output: _Output, samples: Iterable[Any], paths: Sequence[str]) -> tuple[str, dict[str, IntArray]]:
    """Write the tokens of all samples; return what kind they are and the tables that are to follow."""
    kind, columns = "", {"bounds": array("q", [0]), "file": array("q"), "line": array("q")}
    places = {path: place for place, path in enumerate(paths)}
    for sample in samples:
        kind = type(sample).__name__
        _, sequences, numbers = _FIELDS[kind]
        for name in sequences:
            tokens = array("i", getattr(sample, name))
            output.write(tokens)
            columns["bounds"].append(columns["bounds"][-1] + len(tokens))
        path, _, line = sample.source.rpartition(":")
        columns["file"].append(places[path])
        columns["line"].append(int(line))
        for name in numbers:
            columns.setdefault(name, array("q")).append(getattr(sample, name))
    return kind, {name: np.frombuffer(column, np.int64) for name, column in columns.items()}
