# SPDX-License-Identifier: Apache-2.0
"""Reader of tensor positions in a safetensors file. Imports no torch.

Source of the format: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import TypeGuard

from nemo_launcher.checkpoint.stored_tensor import StoredTensor, pointer_problem, shown
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, parse_json, reading

BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""The size in bytes of one value, by dtype name."""
_LENGTH = struct.Struct("<Q")
_AGAIN = "copy or download it again"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name.

    Raises UserError if the file is a Git LFS pointer, empty or incomplete, or if tensors overlap, leave gaps or do not
    match their shapes.
    """
    source = str(path)
    header, start, size = _parsed(path)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if tensor.offset != end:
            what = "overlaps the previous tensor" if tensor.offset < end else "leaves a gap after the previous tensor"
            raise UserError(Problem(f"{source}: {shown(name)}", what, _AGAIN))
        end += tensor.num_bytes
    if end > size:
        raise UserError(Problem(source, f"is truncated: it has {size:,} of {end:,} bytes", _AGAIN))
    if end < size:
        raise UserError(Problem(source, f"has {size - end:,} bytes after its last tensor", _AGAIN))
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in a safetensors file's metadata; {} without any. Raises UserError if the header is damaged."""
    metadata = _parsed(path)[0].get("__metadata__")
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return {key: text for key, text in texts if isinstance(text, str)}


def _parsed(path: Path) -> tuple[dict[str, object], int, int]:
    """Return the header, where the values begin, and the size of the file."""
    source = str(path)
    with reading(source):
        problem = pointer_problem(path)
        if problem is not None:
            raise UserError(problem)
        size = path.stat().st_size
        with path.open("rb") as stream:
            beginning = stream.read(_LENGTH.size)
            length = _LENGTH.unpack(beginning)[0] if len(beginning) == _LENGTH.size else size
            if length > min(size - _LENGTH.size, MAX_TEXT_BYTES):
                raise UserError(Problem(source, f"is truncated ({size:,} bytes) or not a safetensors file", _AGAIN))
            header = parse_json(stream.read(length), source)
    if not isinstance(header, dict):
        raise UserError(Problem(source, "is not a safetensors file: its header is not a mapping", _AGAIN))
    return header, _LENGTH.size + length, size


def _tensor(path: Path, name: str, entry: object, start: int) -> StoredTensor:
    where = f"{path}: {shown(name)}"
    keys = ("dtype", "shape", "data_offsets")
    kind, shape, offsets = (entry.get(key) if isinstance(entry, dict) else None for key in keys)
    if not (isinstance(kind, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise UserError(Problem(where, "its entry in the header is malformed", _AGAIN))
    first, last = offsets
    wanted = prod(shape) * BYTES[kind] if kind in BYTES else last - first
    if last - first != wanted or wanted < 0:
        what = f"has {last - first:,} bytes; its shape {tuple(shape)} of {kind} takes {wanted:,}"
        raise UserError(Problem(where, what, _AGAIN))
    return StoredTensor(path, start + first, wanted, tuple(shape), kind)


def _are_counts(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)
