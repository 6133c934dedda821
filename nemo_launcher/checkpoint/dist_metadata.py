# SPDX-License-Identifier: Apache-2.0
"""Metadata of a distributed checkpoint: its tensors, their pieces, and where the pieces are stored.

Megatron-core's `torch_dist` is the format of torch.distributed.checkpoint: `.metadata` is a pickle of dataclasses, and
each `*.distcp` is a sequence of torch.save files with pieces of tensors. Only the names of the dataclasses are known
here; none is imported. Imports no torch. Sources: torch 2.6 to 2.13, torch/distributed/checkpoint/metadata.py and
filesystem.py; megatron-core 0.16.1, dist_checkpointing/strategies/torch.py.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.nemo2 import WEIGHTS, is_nemo2
from nemo_launcher.checkpoint.restricted_pickle import MAX_BYTES, PickleError, Record, loads
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import name_problem, parse_json

T = TypeVar("T")
_Places = dict[tuple[str, tuple[int, ...]], Mapping[str, object]]
"""Storage of the pieces: (tensor name, offsets) -> attributes of the piece's place."""

_FOLDER = "model_weights"
_OTHER_STATES = re.compile(r"(chained_\d+\.)?optimizer\..*|.*_extra_state.*")
"""Names of what is not a weight: the optimizer's state in a training checkpoint, the state of FP8 layers."""
_MAX_SIZE = 1 << 40
_MAX_DIMENSIONS = 8
_CLASSES = (
    "torch.distributed.checkpoint.",
    "megatron.core.dist_checkpointing.",
    "nvidia_resiliency_ext.",
    "pathlib.",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a tensor."""

    offsets: tuple[int, ...]
    """Its start in the complete tensor, by dimension."""
    sizes: tuple[int, ...]
    """Its size, by dimension."""
    file: str
    """The archive member that holds it."""
    start: int
    """Its first byte in the member."""
    length: int
    """Its length in bytes."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and its pieces."""

    shape: tuple[int, ...]
    """Its size, by dimension."""
    dtype: str
    """torch's name of its dtype."""
    pieces: tuple[Piece, ...]
    """Its pieces, which cover it without gaps or overlaps."""


def distributed_folder(names: Set[str]) -> str | None:
    """Return the folder of a distributed checkpoint, complete or not, among an archive's members; None without one."""
    if any(name.startswith(f"{_FOLDER}/") and _is_part(name) for name in names):
        return _FOLDER
    return WEIGHTS if is_nemo2(names) else None


def _is_part(name: str) -> bool:
    return name.endswith((".distcp", "/.metadata", "/metadata.json", "/common.pt", "/.zarray"))


def distributed_problem(names: Set[str], source: str) -> Problem | None:
    """Return why a distributed checkpoint cannot be read, judging by its members' names, or None."""
    folder = distributed_folder(names)
    if folder is None:
        return None
    if any(name.endswith("/.zarray") for name in names):
        return _other_format(source, folder, "zarr")
    if f"{folder}/.metadata" not in names:
        what = (
            "is absent: the weights are a distributed checkpoint (torch_dist), which cannot be read without this file"
        )
        return Problem(
            f"{source}: {folder}/.metadata",
            what,
            "copy the archive again, including hidden files (names that start with a dot)",
        )
    return None


def _other_format(source: str, folder: str, name: str) -> Problem:
    what = f"is a distributed checkpoint in the {name[:40]!r} format; only torch_dist is supported"
    fix = "load it in the NeMo that wrote it and save it with "
    if folder == WEIGHTS:
        fix += "MegatronStrategy(save_ckpt_format='torch_dist')"
    else:
        fix += "dist_ckpt_format=torch_dist or as model_weights.ckpt"
    fix += "; or convert the Hugging Face model with stages=[conversion_hf2nemo]"
    return Problem(f"{source}: {folder}", what, fix)


def read_metadata(archive: Archive) -> dict[str, StoredTensor]:
    """Return the tensors of an archive's distributed checkpoint by their stored names, without extra states.

    Raises UserError for another format, for a `.metadata` that is damaged or holds other objects, and for pieces that
    are missing or do not cover their tensors.
    """
    folder = distributed_folder(archive.names)
    assert folder is not None  # the caller has asked distributed_folder
    problem = distributed_problem(archive.names, str(archive.path))
    if problem is not None:
        raise UserError(problem)
    metadata, described = f"{folder}/.metadata", f"{folder}/metadata.json"
    if described in archive.names:
        value = parse_json(archive.read(described, 1 << 20), f"{archive.path}: {described}")
        backend = value.get("sharded_backend") if isinstance(value, dict) else value
        if backend != "torch_dist":
            raise UserError(_other_format(str(archive.path), folder, str(backend)))
    content = archive.read(metadata, MAX_BYTES)
    files = (name for name in archive.names if name.startswith(f"{folder}/"))
    sizes = {name.removeprefix(f"{folder}/"): archive.size(name) for name in files}
    try:
        return _tensors(loads(content, _find), folder, sizes)
    except (PickleError, TypeError, AttributeError) as error:
        what = f"cannot be read: {str(error)[:300]}"
        raise UserError(Problem(f"{archive.path}: {metadata}", what, "copy the archive again")) from None


def _find(module: str, name: str) -> object:
    full = f"{module}.{name}"
    if full.startswith(_CLASSES):
        return lambda *arguments: Record(name, arguments)
    if (module, name) == ("torch", "Size"):
        return lambda sizes=(): sizes
    if (module, name) == ("torch.serialization", "_get_layout"):
        return lambda layout=None: layout
    if (module, name) == ("collections", "OrderedDict"):
        return dict
    if module == "torch" and name.isidentifier() and name.islower():
        return name  # a dtype
    raise PickleError(f"holds {full[:200]}, which is not part of a tensor's description; it is not executed")


def _tensors(metadata: object, folder: str, sizes: dict[str, int]) -> dict[str, StoredTensor]:
    """Return the tensors in a parsed `.metadata`; sizes: of the files of its folder."""
    described = _attribute(metadata, "Metadata", "state_dict_metadata", dict)
    places: _Places = {}
    for index, info in _attribute(metadata, "Metadata", "storage_data", dict).items():
        if not isinstance(index, Record) or not isinstance(info, Record):
            raise PickleError("its table of storage places is malformed")
        name, offset = (index.attributes.get(key) for key in ("fqn", "offset"))
        if not isinstance(name, str):  # untrusted containers are never printed: they may contain themselves
            raise PickleError("its table of storage places is malformed")
        places[name, _sizes(offset) if offset is not None else ()] = info.attributes
    found = {}
    for name, tensor in described.items():
        if not isinstance(name, str) or len(name) > 500 or not name.isprintable() or not isinstance(tensor, Record):
            raise PickleError("its table of tensors is malformed")
        if tensor.name == "BytesStorageMetadata" or _OTHER_STATES.fullmatch(name):
            continue
        found[name] = _tensor(name, tensor, places, folder, sizes)
    if not found:
        raise PickleError("it names no tensors")
    return found


def _tensor(name: str, tensor: Record, places: _Places, folder: str, sizes: dict[str, int]) -> StoredTensor:
    shape = _sizes(_attribute(tensor, "TensorStorageMetadata", "size", tuple))
    properties = _attribute(tensor, "TensorStorageMetadata", "properties", Record)
    state = properties.attributes.get("state") or (properties.attributes.get("dtype"),)
    if not isinstance(state, tuple) or not state or not isinstance(state[0], str):
        raise PickleError(f"{name[:100]!r} has no dtype")
    pieces = []
    for chunk in _attribute(tensor, "TensorStorageMetadata", "chunks", list):
        offsets = _sizes(_attribute(chunk, "ChunkStorageMetadata", "offsets", tuple))
        place = places.get((name, offsets))
        if place is None and not any(offsets):
            place = places.get((name, ()))
        if place is None:
            raise PickleError(f"{name[:100]!r} has a piece without storage")
        extent = _sizes(_attribute(chunk, "ChunkStorageMetadata", "sizes", tuple))
        file, start, length = _storage(name, place, sizes)
        pieces.append(Piece(offsets, extent, f"{folder}/{file}", start, length))
    _check_tiling(name, shape, pieces)
    return StoredTensor(shape, state[0], tuple(pieces))


def _storage(name: str, place: Mapping[str, object], sizes: dict[str, int]) -> tuple[str, int, int]:
    """Return the file of a piece, its first byte there, and its length."""
    path = place.get("relative_path")
    if not isinstance(path, str) or name_problem(path) is not None or path not in sizes:
        shown = repr(path[:100]) if isinstance(path, str) else "an invalid file name"
        raise PickleError(f"{name[:100]!r} is stored in {shown}, which is absent")
    start, length = _sizes((place.get("offset"), place.get("length")))
    if start + length > sizes[path]:
        raise PickleError(f"{name[:100]!r} ends after the end of {path!r}")
    if place.get("transform_descriptors"):
        raise PickleError(f"{name[:100]!r} is stored compressed")
    return path, start, length


def _check_tiling(name: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
    """Raise PickleError unless the pieces form one grid over the complete tensor."""
    axes: list[list[tuple[int, int]]] = []
    for dimension, size in enumerate(shape):
        if any(len(piece.offsets) != len(shape) or len(piece.sizes) != len(shape) for piece in pieces):
            raise PickleError(f"{name[:100]!r} has pieces with another number of dimensions")
        axis = sorted({(piece.offsets[dimension], piece.sizes[dimension]) for piece in pieces})
        ends = [0, *itertools.accumulate(length for _, length in axis)]
        if [start for start, _ in axis] != ends[:-1] or ends[-1] != size:
            raise PickleError(f"{name[:100]!r} is not covered by its pieces")
        axes.append(axis)
    cells = {piece.offsets for piece in pieces}
    if len(cells) != len(pieces) or len(pieces) != math.prod(map(len, axes)):
        raise PickleError(f"{name[:100]!r} is not covered by its pieces")


def _attribute(record: object, kind: str, name: str, of: type[T]) -> T:
    if not isinstance(record, Record) or record.name != kind:
        raise PickleError(f"it holds no {kind}")
    value = record.attributes.get(name)
    if not isinstance(value, of):
        raise PickleError(f"a {kind} without {name}")
    return value


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS:
        raise PickleError("a malformed shape")
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SIZE for value in values):
        raise PickleError("a malformed shape")
    return values
