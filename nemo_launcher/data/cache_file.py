# SPDX-License-Identifier: Apache-2.0
"""A memory-mapped file of samples, which are built on access and not kept.

The file holds the concatenated tokens of all samples; integer tables with one entry per sample; JSON with the position
of each table; and a footer with sizes and a checksum of everything. It is written sequentially.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from nemo_launcher.data.prefix_tree import IntArray, PrefixOrder
from nemo_launcher.data.prompts import Lengths
from nemo_launcher.data.records import place_start, split_place
from nemo_launcher.data.samples import S, Sample, stored_fields
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import parse_json
from nemo_launcher.files.mapped import name_when_cut_short

FORMAT = 5
"""The version of files and samples. Samples in a file of another version are encoded again."""

_FOOTER = struct.Struct("<8sQQI")  # magic, bytes of the file before the footer, of them JSON, checksum of all before it
_MAX_DESCRIPTION_BYTES = 1 << 20
_MAGIC = b"NLSMPLS\0"


class SampleCache(Sequence[S]):
    """The samples of a cache file with at most `limit` tokens (None: all), without their records.

    sample_type: of the samples (data.samples). tables: `tokens`; `bounds`, the start of each sequence of each sample in
    it, and the end of the last one; `file` (an index into `paths`) and `line` of each sample; its integer fields.
    prefixes: common prefixes of the samples, or None if they are not stored.
    """

    def __init__(
        self,
        sample_type: type[S],
        tables: Mapping[str, IntArray],
        paths: Sequence[str],
        *,
        limit: int | None,
        path: Path,
    ) -> None:
        self._type = sample_type
        self._sequences, self._numbers = stored_fields(sample_type)
        self._tables, self._paths, self._limit, self._path = tables, list(paths), limit, path
        self._starts = [place_start(path) for path in paths]
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
        make: Callable[..., S] = self._type
        return make(**sequences, **numbers, record={}, source=self._source(place))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the name of the file, which the other process maps again."""
        return _reopen, (self._path, self._paths, self._limit, self._type)

    def lengths(self) -> Lengths:
        """Return statistics of the samples' lengths, including samples above the limit."""
        starts, stops = self._input_bounds()
        longest = int((stops - starts).argmax())
        num_tokens = int(stops[longest] - starts[longest])
        return Lengths(len(starts), len(starts) - len(self), num_tokens, self._source(longest))

    def find_prefixes(self) -> PrefixOrder:
        """Compute the common prefixes of the samples."""
        starts, stops = self._input_bounds()
        return PrefixOrder.of_array(self._tables["tokens"], starts[self._kept], stops[self._kept])

    def input_arrays(self) -> Iterator[IntArray]:
        """Yield the input_ids of each sample without a copy."""
        starts, stops = self._input_bounds()
        for place in self._kept.tolist():
            yield self._tables["tokens"][starts[place] : stops[place]]

    def sources(self) -> Iterator[str]:
        """Yield the place of each sample's record."""
        return (self._source(place) for place in self._kept.tolist())

    def token_arrays(self) -> Iterator[IntArray]:
        """Yield all token ids of each sample, of all its sequences, without a copy."""
        bounds, step = self._tables["bounds"], len(self._sequences)
        for place in self._kept.tolist():
            yield self._tables["tokens"][bounds[place * step] : bounds[(place + 1) * step]]

    def _input_bounds(self) -> tuple[IntArray, IntArray]:
        """Return the start and end of each sample's input_ids."""
        bounds, step = self._tables["bounds"], len(self._sequences)
        return bounds[:-1:step], bounds[1::step]

    def _source(self, place: int) -> str:
        return f"{self._starts[self._tables['file'][place]]}{self._tables['line'][place]}"


# --- reading ----------------------------------------------------------------------------------------------------


class DamagedCacheError(Exception):
    """A cache file is damaged or incomplete."""


def open_cache(
    path: Path,
    paths: Sequence[str],
    limit: int,
    sample_type: type[S],
    *,
    vocab_size: int | None = None,
    verify: bool = True,
) -> SampleCache[S]:
    """Map a cache file.

    paths: the present paths of the data files; sample_type: of its samples; vocab_size: of the tokenizer, or None to
    skip the check of token ids; verify: read the file once to verify its checksum. Raises OSError if the file cannot be
    opened, and DamagedCacheError if it is damaged, incomplete or inconsistent.
    """
    _require(path.is_file() or not path.exists())  # opening a pipe would block
    with path.open("rb") as file:
        size, description_size = _read_footer(file, verify=verify)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        name_when_cut_short(path, size)
        description = parse_json(content[size - description_size : size], str(path))
        kind, remarks = description["kind"], description["remarks"]
        tables = {name: _table(content, size, place) for name, place in description["tables"].items()}
        _require(kind == sample_type.__name__)
        _check_tables(sample_type, tables, len(paths), vocab_size)
        _require(isinstance(remarks, list) and all(isinstance(remark, str) for remark in remarks))
        cache = SampleCache(sample_type, tables, paths, limit=limit, path=path)
        if cache.prefixes is not None:
            _check_prefixes(cache.prefixes, len(cache))
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedCacheError from error
    cache.remarks = remarks
    return cache


def _table(content: mmap.mmap, size: int, place: Any) -> IntArray:
    dtype, count, offset = place
    _require(dtype in ("int32", "int64") and all(isinstance(n, int) and n >= 0 for n in (count, offset)))
    _require(offset + count * np.dtype(dtype).itemsize <= size)
    table: IntArray = np.frombuffer(content, dtype, count, offset)
    return table


def _check_tables(
    sample_type: type[Sample], tables: Mapping[str, IntArray], num_files: int, vocab_size: int | None
) -> None:
    """Raise DamagedCacheError if the tables do not match each other or hold invalid values."""
    sequences, numbers = stored_fields(sample_type)
    names = {"tokens", "bounds", "file", "line", *numbers}
    _require(names <= tables.keys() <= names | {"members", "shared"})
    _require(("members" in tables) == ("shared" in tables))
    count, bounds, tokens = len(tables["file"]), tables["bounds"], tables["tokens"]
    _require(count > 0 and all(len(tables[name]) == count for name in ("line", *numbers)))
    _require(len(bounds) == count * len(sequences) + 1 and bounds[0] == 0 and bounds[-1] == len(tokens))
    _require(bool((np.diff(bounds) >= 0).all()))
    _require(bool((tables["file"] >= 0).all() and (tables["file"] < num_files).all() and (tables["line"] >= 1).all()))
    for name in numbers:
        _require(bool((tables[name] >= 0).all() and (tables[name] < 2**31).all()))
    if vocab_size is not None and len(tokens):
        _require(int(tokens.min()) >= 0 and int(tokens.max()) < vocab_size)


def _check_prefixes(prefixes: PrefixOrder, count: int) -> None:
    """Raise DamagedCacheError unless each of `count` samples occurs exactly once."""
    members, shared = prefixes.members, prefixes.shared
    _require(len(members) == count and bool((np.sort(members) == np.arange(count)).all()))
    _require(len(shared) == count and bool((shared >= 0).all()))


def _require(holds: bool) -> None:
    if not holds:
        raise DamagedCacheError


def _reopen(path: Path, paths: Sequence[str], limit: int, sample_type: type[S]) -> SampleCache[S]:
    return open_cache(path, paths, limit, sample_type, verify=False)


def _read_footer(file: IO[bytes], *, verify: bool) -> tuple[int, int]:
    """Return the number of bytes before the footer, and how many of them are the description."""
    size = file.seek(0, 2) - _FOOTER.size
    _require(size >= 0)
    file.seek(size)
    footer = file.read(_FOOTER.size)
    magic, written, description_size, checksum = _FOOTER.unpack(footer)
    _require(magic == _MAGIC and written == size and description_size <= min(size, _MAX_DESCRIPTION_BYTES))
    if verify:
        file.seek(0)
        found, left = 0, size
        while left and (block := file.read(min(left, 1 << 20))):
            found, left = zlib.crc32(block, found), left - len(block)
        _require(zlib.crc32(footer[:-4], found) == checksum)
    return size, description_size


# --- writing ----------------------------------------------------------------------------------------------------


def write_cache(
    path: Path,
    samples: Iterable[S],
    sample_type: type[S],
    paths: Sequence[str],
    *,
    limit: int,
    remarks_of: Callable[[Sequence[S]], list[str]],
    with_prefixes: bool,
) -> None:
    """Write samples one by one, with only a few integers per sample in memory.

    paths: the data files of the samples; limit: the maximum number of tokens in a sample; remarks_of: an encoder's
    remarks; with_prefixes: also compute common prefixes.
    """
    with path.open("wb") as file:
        output = _Output(file)
        tables = _write_tokens(output, samples, sample_type, paths)
        file.flush()
        tokens: IntArray = np.memmap(path, np.int32, "r", shape=(int(tables["bounds"][-1]),))
        present = tables | {"tokens": tokens}
        remarks = remarks_of(SampleCache(sample_type, present, paths, limit=None, path=path))
        if with_prefixes:
            prefixes = SampleCache(sample_type, present, paths, limit=limit, path=path).find_prefixes()
            tables |= {"members": prefixes.members, "shared": prefixes.shared}
        places: dict[str, tuple[str, int, int]] = {"tokens": ("int32", len(tokens), 0)}
        output.write(bytes(-output.size % 8))
        for name, table in tables.items():
            places[name] = ("int64", len(table), output.size)
            output.write(table.astype(np.int64).tobytes())
        description = json.dumps({"kind": sample_type.__name__, "tables": places, "remarks": remarks}).encode()
        output.write(description)
        footer = _FOOTER.pack(_MAGIC, output.size, len(description), 0)[:-4]
        file.write(footer + struct.pack("<I", zlib.crc32(footer, output.checksum)))


class _Output:
    """An output file with its size and checksum so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = self.checksum = 0

    def write(self, content: bytes | array[int]) -> None:
        self._file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)
        self.size += memoryview(content).nbytes


def _write_tokens(
    output: _Output, samples: Iterable[S], sample_type: type[S], paths: Sequence[str]
) -> dict[str, IntArray]:
    """Write the tokens of all samples; return the tables to write after them."""
    columns = {"bounds": array("q", [0]), "file": array("q"), "line": array("q")}
    sequences, numbers = stored_fields(sample_type)
    places = {path: place for place, path in enumerate(paths)}
    for sample in samples:
        for name in sequences:
            tokens = array("i", getattr(sample, name))
            output.write(tokens)
            columns["bounds"].append(columns["bounds"][-1] + len(tokens))
        path, number = split_place(sample.source)
        columns["file"].append(places[path])
        columns["line"].append(number)
        for name in numbers:
            columns.setdefault(name, array("q")).append(getattr(sample, name))
    return {name: np.frombuffer(column, np.int64) for name, column in columns.items()}
