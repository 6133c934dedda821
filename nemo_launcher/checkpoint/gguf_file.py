# SPDX-License-Identifier: Apache-2.0
"""Reader of a GGUF file's metadata and tensor positions, within limits. Imports no torch.

Source of the format: ggml, docs/gguf.md; of the block sizes: gguf-py, constants.GGML_QUANT_SIZES.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from nemo_launcher.checkpoint.stored_tensor import StoredTensor, pointer_problem, shown
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import reading
from nemo_launcher.files.mapped import name_when_cut_short

MAX_KEYS = 4096
MAX_TENSORS = 100_000
MAX_ELEMENTS = 4_000_000
"""The maximum length of a list in the metadata; the longest are vocabulary and merges."""
MAX_METADATA_BYTES = 256 << 20
"""The maximum size of everything before the weights; vocabulary and merges of 256,000 tokens take 10 MB."""
# number of a ggml type -> name, values per block, bytes per block; all types that gguf-py can dequantize
BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
NUMBERS = {name: number for number, (name, _, _) in BLOCKS.items()}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """The header of a GGUF file."""

    path: Path
    """The file."""
    metadata: dict[str, object]
    """The metadata by key."""
    tensors: dict[str, StoredTensor]
    """The tensors by name."""


@dataclass(frozen=True, slots=True)
class GGUFKeys:
    """The metadata of a file's architecture; keys are without its name, with which they begin in the file."""

    file: GGUFFile
    """The file."""
    kind: str
    """Its general.architecture."""

    def __iter__(self) -> Iterator[str]:
        start = f"{self.kind}."
        return (key.removeprefix(start) for key in self.file.metadata if key.startswith(start))

    def __contains__(self, key: str) -> bool:
        return f"{self.kind}.{key}" in self.file.metadata

    def get(self, key: str, default: object = None) -> object:
        """Return a value, or `default` if the file lacks the key."""
        return self.file.metadata.get(f"{self.kind}.{key}", default)

    def wrong(self, key: str, what: str, fix: str = "use another file of the model") -> Problem:
        """Return the Problem of a key."""
        return Problem(f"{self.file.path}: {self.kind}.{shown(key)}", what, fix)


def read_gguf(path: Path) -> GGUFFile:
    """Return everything before the weights.

    Raises UserError if the file is a Git LFS pointer, empty, incomplete, not a GGUF file, or has an unknown version or
    type.
    """
    with reading(path, _AGAIN):
        problem = pointer_problem(path)
        if problem is not None:
            raise UserError(problem)
        name_when_cut_short(path, path.stat().st_size)
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content).read()


class _Reader:
    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content, self._position = path, content, 0

    def read(self) -> GGUFFile:
        if self._bytes(4) != b"GGUF":
            raise self._error("is not a GGUF file: it does not start with GGUF", "give the path of a .gguf file")
        version = self._number("I")
        if version not in (2, 3):
            what = "is big-endian" if version in (2 << 24, 3 << 24) else f"has version {version} of the format"
            raise self._error(f"{what}; supported: versions 2 and 3, little-endian", "convert it again with llama.cpp")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
            raise self._error(f"claims {num_tensors:,} tensors and {num_keys:,} keys")
        metadata: dict[str, object] = {}
        for _ in range(num_keys):
            key = self._text()
            if key in metadata:
                raise self._error(f"the key {shown(key)} occurs twice")
            metadata[key] = self._value(self._number("I"), key)
        infos = [self._info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise self._error(f"general.alignment {alignment!r} is not usable")
        start = -(-self._position // alignment) * alignment
        return GGUFFile(self._path, metadata, self._tensors(infos, start))

    def _tensors(self, infos: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for name, shape, number, offset in infos:
            if name in tensors:
                raise self._error(f"the tensor {shown(name)} occurs twice")
            if number not in BLOCKS:
                raise self._error(
                    f"{shown(name)}: ggml type {number} cannot be read", "use a file with another quantization"
                )
            kind, block, block_bytes = BLOCKS[number]
            if shape[-1] % block:
                raise self._error(f"{shown(name)}: rows of {shape[-1]} values cannot be divided into blocks of {kind}")
            tensor = StoredTensor(self._path, start + offset, prod(shape) // block * block_bytes, shape, kind)
            if tensor.offset + tensor.num_bytes > len(self._content):
                end = tensor.offset + tensor.num_bytes
                raise self._error(
                    f"is truncated: it has {len(self._content):,} bytes, but {shown(name)} ends at {end:,}"
                )
            tensors[name] = tensor
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            if tensor.offset < end:
                raise self._error(f"{shown(name)} overlaps the previous tensor")
            end = tensor.offset + tensor.num_bytes
        return tensors

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape (slowest dimension first), type number and offset of a tensor."""
        name, num_dimensions = self._text(), self._number("I")
        if not 1 <= num_dimensions <= 4:
            raise self._error(f"{shown(name)}: has {num_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))
        if not all(0 < size < 2**40 for size in shape):
            raise self._error(f"{shown(name)}: its shape {shape[::-1]} is not usable")
        return name, shape[::-1], self._number("I"), self._number("Q")

    def _value(self, kind: int, key: str) -> object:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            raise self._error(f"{shown(key)}: unknown value type {kind}")
        inner, length = self._number("I"), self._number("Q")
        if inner not in _SCALARS and inner != _TEXT:
            raise self._error(f"{shown(key)}: lists of type {inner} are not supported")
        if length > MAX_ELEMENTS:
            raise self._error(f"{shown(key)}: claims {length:,} elements")
        if inner == _TEXT:
            return self._texts(length)
        form = struct.Struct(f"<{length}{_SCALARS[inner]}")
        return list(form.unpack(self._bytes(form.size)))

    def _texts(self, count: int) -> list[str]:
        """Return the texts of a list; a fast path, as a vocabulary has hundreds of thousands."""
        content, position, unpack = self._content, self._position, struct.Struct("<Q").unpack_from
        texts = []
        try:
            for _ in range(count):
                end = position + 8 + unpack(content, position)[0]
                self._check_end(end)
                texts.append(content[position + 8 : end].decode())
                position = end
        except (struct.error, UnicodeDecodeError):
            position = len(content) + 1
        if position > len(content):
            raise self._error("is truncated, or a list of texts in its metadata is damaged")
        self._position = position
        return texts

    def _number(self, form: str) -> int:
        """Return an integer in one of struct's formats."""
        number = self._scalar(form)
        assert isinstance(number, int)
        return number

    def _scalar(self, form: str) -> int | float | bool:
        compiled = struct.Struct(f"<{form}")
        scalar: int | float | bool = compiled.unpack(self._bytes(compiled.size))[0]
        return scalar

    def _text(self) -> str:
        content = self._bytes(self._number("Q"))
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise self._error(f"a text in its metadata is not UTF-8: {content[:40]!r}") from None

    def _bytes(self, count: int) -> bytes:
        end = self._position + count
        self._check_end(end)
        content = self._content[self._position : end]
        self._position = end
        return content

    def _check_end(self, end: int) -> None:
        """Raise UserError before anything is read beyond the end of the file or the limit of metadata."""
        if end > len(self._content):
            raise self._error(f"is truncated or damaged: it ends within its metadata, at {len(self._content):,} bytes")
        if end > MAX_METADATA_BYTES:
            raise self._error(f"claims more than {MAX_METADATA_BYTES:,} bytes of metadata")

    def _error(self, what: str, fix: str = _AGAIN) -> UserError:
        return UserError(Problem(str(self._path), what, fix))
