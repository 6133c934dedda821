# SPDX-License-Identifier: Apache-2.0
"""What a distributed checkpoint inside a `.nemo` says about itself: which tensors it holds, in which pieces, and where.

Megatron-core's `torch_dist` is torch.distributed.checkpoint's format: `.metadata` is a pickle of dataclasses, and each
`*.distcp` holds pieces of tensors, one torch.save file behind the other. Only the dataclasses' names are known here and
none of them is imported. Imports no torch. Sources: torch 2.6 to 2.13, torch/distributed/checkpoint/metadata.py and
filesystem.py; megatron-core 0.16.1, dist_checkpointing/strategies/torch.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.restricted_pickle import MAX_BYTES, PickleError, Record, loads
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import name_problem, parse_json

T = TypeVar("T")
_Places = dict[tuple[str, tuple[int, ...]], Mapping[str, object]]
"""Where the pieces lie: name and offsets of a piece -> the attributes of its place."""

FOLDER = "model_weights"
_METADATA = f"{FOLDER}/.metadata"
_BACKEND = f"{FOLDER}/metadata.json"
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
    """A part of a tensor."""

    offsets: tuple[int, ...]
    """Where it begins in the whole tensor, by dimension."""
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
    """A tensor and the pieces that make it up exactly."""

    shape: tuple[int, ...]
    """Its size, by dimension."""
    dtype: str
    """torch's name of its type."""
    pieces: tuple[Piece, ...]
    """Its parts, which neither overlap nor leave a gap."""


def is_distributed(names: Iterable[str]) -> bool:
    """Return whether an archive with these members holds a distributed checkpoint, whole or not, readable or not."""
    return any(name.startswith(f"{FOLDER}/") and _is_part(name) for name in names)


def _is_part(name: str) -> bool:
    return name.endswith((".distcp", "/.metadata", "/metadata.json", "/common.pt", "/.zarray"))


def distributed_problem(names: Iterable[str], source: str) -> Problem | None:
    """Return why a distributed checkpoint cannot be read, as far as its members' names tell; None when it can."""
    names = set(names)
    if any(name.endswith("/.zarray") for name in names):
        return _other_format(source, "zarr")
    if _METADATA not in names:
        what = "is absent: the weights are a distributed checkpoint (torch_dist), which cannot be read without it"
        return Problem(f"{source}: {_METADATA}", what, "copy the archive again, files whose names begin with a dot too")
    return None


def _other_format(source: str, name: str) -> Problem:
    what = f"is a distributed checkpoint in the {name[:40]!r} format; torch_dist is read"
    fix = (
        "in the NeMo that wrote it, load it and save it with dist_ckpt_format=torch_dist or as model_weights.ckpt; or "
    )
    fix += "convert the Hugging Face model with stages=[conversion_hf2nemo]"
    return Problem(f"{source}: {FOLDER}", what, fix)


def read_metadata(archive: Archive) -> dict[str, StoredTensor]:
    """Return the tensors of an archive's distributed checkpoint by their stored names; extra states are left out.

    Raises UserError: another format, `.metadata` damaged or with more than names and places of tensors, pieces that are
    absent or do not make up their tensors.
    """
    problem = distributed_problem(archive.names, str(archive.path))
    if problem is not None:
        raise UserError(problem)
    if _BACKEND in archive.names:
        described = parse_json(archive.read(_BACKEND, 1 << 20), f"{archive.path}: {_BACKEND}")
        backend = described.get("sharded_backend") if isinstance(described, dict) else described
        if backend != "torch_dist":
            raise UserError(_other_format(str(archive.path), str(backend)))
    content = archive.read(_METADATA, MAX_BYTES)
    try:
        return _tensors(loads(content, _find), {name: archive.size(name) for name in archive.names})
    except (PickleError, TypeError, AttributeError) as error:
        what = f"cannot be read: {str(error)[:300]}"
        raise UserError(Problem(f"{archive.path}: {_METADATA}", what, "copy the archive again")) from None


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
    raise PickleError(f"holds {full[:200]}, which describes no tensor; it is not executed")


def _tensors(metadata: object, sizes: dict[str, int]) -> dict[str, StoredTensor]:
    described = _attribute(metadata, "Metadata", "state_dict_metadata", dict)
    places: _Places = {}
    for index, info in _attribute(metadata, "Metadata", "storage_data", dict).items():
        if not isinstance(index, Record) or not isinstance(info, Record):
            raise PickleError("its table of places is none")
        name, offset = (index.attributes.get(key) for key in ("fqn", "offset"))
        if not isinstance(name, str):  # foreign containers are never printed: they may hold themselves many times
            raise PickleError("its table of places is none")
        places[name, _sizes(offset) if offset is not None else ()] = info.attributes
    found = {}
    for name, tensor in described.items():
        if not isinstance(name, str) or len(name) > 500 or not name.isprintable() or not isinstance(tensor, Record):
            raise PickleError("its table of tensors is none")
        if tensor.name == "BytesStorageMetadata" or "_extra_state" in name:
            continue
        found[name] = _tensor(name, tensor, places, sizes)
    if not found:
        raise PickleError("it names no tensors")
    return found


def _tensor(name: str, tensor: Record, places: _Places, sizes: dict[str, int]) -> StoredTensor:
    shape = _sizes(_attribute(tensor, "TensorStorageMetadata", "size", tuple))
    properties = _attribute(tensor, "TensorStorageMetadata", "properties", Record)
    state = properties.attributes.get("state") or (properties.attributes.get("dtype"),)
    if not isinstance(state, tuple) or not state or not isinstance(state[0], str):
        raise PickleError(f"{name[:100]!r} has no type of numbers")
    pieces = []
    for chunk in _attribute(tensor, "TensorStorageMetadata", "chunks", list):
        offsets = _sizes(_attribute(chunk, "ChunkStorageMetadata", "offsets", tuple))
        place = places.get((name, offsets))
        if place is None and not any(offsets):
            place = places.get((name, ()))
        if place is None:
            raise PickleError(f"{name[:100]!r} has a piece that is stored nowhere")
        pieces.append(
            _piece(name, offsets, _sizes(_attribute(chunk, "ChunkStorageMetadata", "sizes", tuple)), place, sizes)
        )
    _check_tiling(name, shape, pieces)
    return StoredTensor(shape, state[0], tuple(pieces))


def _piece(
    name: str, offsets: tuple[int, ...], extent: tuple[int, ...], place: Mapping[str, object], sizes: dict[str, int]
) -> Piece:
    path = place.get("relative_path")
    if not isinstance(path, str) or name_problem(path) is not None or f"{FOLDER}/{path}" not in sizes:
        shown = repr(path[:100]) if isinstance(path, str) else "what is no file"
        raise PickleError(f"{name[:100]!r} lies in {shown}, which is absent")
    start, length = _sizes((place.get("offset"), place.get("length")))
    if start + length > sizes[f"{FOLDER}/{path}"]:
        raise PickleError(f"{name[:100]!r} lies beyond the end of {path!r}")
    if place.get("transform_descriptors"):
        raise PickleError(f"{name[:100]!r} is stored compressed")
    return Piece(offsets, extent, f"{FOLDER}/{path}", start, length)


def _check_tiling(name: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
    """Raise PickleError unless the pieces are the cells of one grid over the whole tensor."""
    axes: list[list[tuple[int, int]]] = []
    for dimension, size in enumerate(shape):
        if any(len(piece.offsets) != len(shape) or len(piece.sizes) != len(shape) for piece in pieces):
            raise PickleError(f"{name[:100]!r} has pieces of other dimensions")
        axis = sorted({(piece.offsets[dimension], piece.sizes[dimension]) for piece in pieces})
        ends = [0, *itertools.accumulate(length for _, length in axis)]
        if [start for start, _ in axis] != ends[:-1] or ends[-1] != size:
            raise PickleError(f"{name[:100]!r} is not made up of its pieces")
        axes.append(axis)
    cells = {piece.offsets for piece in pieces}
    if len(cells) != len(pieces) or len(pieces) != math.prod(map(len, axes)):
        raise PickleError(f"{name[:100]!r} is not made up of its pieces")


def _attribute(record: object, kind: str, name: str, of: type[T]) -> T:
    if not isinstance(record, Record) or record.name != kind:
        raise PickleError(f"it holds no {kind}")
    value = record.attributes.get(name)
    if not isinstance(value, of):
        raise PickleError(f"a {kind} without {name}")
    return value


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS:
        raise PickleError("a shape that is none")
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SIZE for value in values):
        raise PickleError("a shape that is none")
    return values
