# SPDX-License-Identifier: Apache-2.0
"""A file of the hidden states that enter the first layer with adapters: found again by its name, or computed.

The base is frozen, so they are the same in each epoch and in each training of the same layers. A file is named by a
hash of everything that they depend on, written under a temporary name by all ranks, and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nemo_launcher import __version__
from nemo_launcher.config.hidden_states import KEY
from nemo_launcher.data.cache import remove_unused
from nemo_launcher.data.hidden_file import (
    FORMAT,
    DamagedHiddenFileError,
    TableShape,
    allocate,
    finish,
    open_table,
)
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.megatron.packed_weight import dense_parameters
from nemo_launcher.runtime import ranks

SUFFIX = ".hidden"
_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ELSEWHERE = f"free some space, set model.data.cache_dir=/another/folder, or {KEY}=False"

Fill = Callable[[Path], int]
"""Writes this rank's rows into a file; returns their checksum (data.hidden_file.TableWriter)."""


@dataclass(frozen=True, slots=True)
class HiddenCache:
    """Where a table of hidden states is looked for and written."""

    folders: Sequence[Path]
    """To search; a new file is written to the first that is writable and has room."""
    like: Sequence[str]
    """The data files: the new file is no more accessible to others than they are."""
    report: Callable[[str], None] = print
    """Prints a line."""

    def find_or_fill(self, key: str, shape: TableShape, fill: Fill) -> Path:
        """Return the complete file with this key; all ranks must call this.

        Raises UserError if no folder has room for it, before anything is computed, or if a rank does not see it.
        """
        name = key + SUFFIX
        found = ranks.decide_on_rank_zero(lambda: self._find(name, shape))
        path = Path(found) if found is not None else self._create(name, shape, fill)
        _check_shared(path, shape.file_bytes)
        return path

    def _find(self, name: str, shape: TableShape) -> str | None:
        for folder in self.folders:
            path = folder / name
            try:
                open_table(path, shape, verify=True)
            except OSError:
                continue
            except DamagedHiddenFileError:
                self.report(f"{path} is damaged; the hidden states are computed again")
                continue
            with contextlib.suppress(OSError):  # another user's folder
                os.utime(path)
            self.report(f"hidden states are read from {path} ({shown_bytes(shape.file_bytes)})")
            return str(path)
        return None

    def _create(self, name: str, shape: TableShape, fill: Fill) -> Path:
        with contextlib.ExitStack() as on_rank_zero:
            target, temporary = map(Path, ranks.decide_on_rank_zero(lambda: self._reserve(name, shape, on_rank_zero)))
            _check_shared(temporary, shape.num_bytes)
            checksum = sum(part for _, part in ranks.gather_objects(fill(temporary)))
            ranks.decide_on_rank_zero(lambda: _complete(temporary, target, shape, checksum))
        ranks.barrier()  # the other ranks open the file after it was renamed
        return target

    def _reserve(self, name: str, shape: TableShape, context: contextlib.ExitStack) -> list[str]:
        """Reserve the disk space; return the names of the file and its temporary, which `context` renames or removes.

        Raises UserError if no folder has room.
        """
        refusals = []
        for folder in self.folders:
            path = folder / name
            try:
                with contextlib.ExitStack() as attempt:
                    temporary = attempt.enter_context(atomic_path(path, like=self.like))
                    remove_unused(folder, SUFFIX)
                    _check_room(folder, shape)
                    allocate(temporary, shape)
                    context.enter_context(attempt.pop_all())
            except OSError as error:
                refusals.append(_refusal(folder, shape, error))
                continue
            self.report(f"hidden states ({shape.rows:,} tokens, {shown_bytes(shape.file_bytes)}) are written to {path}")
            return [str(path), str(temporary)]
        raise UserError(refusals)


def cache_key(base: Base, stack: str, layer: int, shape: TableShape, digest: str) -> str:
    """Return a hash of everything that hidden states depend on; all ranks must call this.

    stack, layer: the layer that they enter; digest: of the samples (data.token_rows). The checksum of a base rounds its
    weights to bf16, so the exact values that run are part of the hash too.
    """
    weights = hashlib.sha256()
    for name, values in dense_parameters(base.model):
        if _runs_below(name, stack, layer):
            weights.update(name.encode())
            weights.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    description = {
        "format": [FORMAT, __version__, sys.byteorder],
        "base": [base.family.name, base.checksum, dict(sorted(base.settings.items()))],
        "weights": [part for _, part in ranks.gather_objects(weights.hexdigest())],
        "device": base.device.type,
        "layer": [stack, layer],
        "table": [shape.rows, shape.width, str(shape.dtype)],
        "samples": digest,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def shown_bytes(count: int) -> str:
    """Return a number of bytes, exact and in GiB."""
    return f"{count:,} bytes, {count / 2**30:.1f} GiB"


def _runs_below(name: str, stack: str, layer: int) -> bool:
    """Return whether a parameter of the model affects what enters a layer of a stack."""
    match = _LAYER.match(name)
    if match is not None:
        return match[1] == stack and int(match[2]) < layer
    return name.startswith(("embedding.", f"{stack}_", f"{stack}."))


def _check_room(folder: Path, shape: TableShape) -> None:
    """Raise OSError if a folder's disk has no room for a table."""
    if shutil.disk_usage(folder).free < shape.file_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refusal(folder: Path, shape: TableShape, error: OSError) -> Problem:
    if error.errno not in _NO_ROOM:
        what = f"cannot write the hidden states to {folder}: {error.strerror or error}"
        return Problem(KEY, what, f"set model.data.cache_dir=/another/folder, or {KEY}=False")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    what = f"the hidden states need {shown_bytes(shape.file_bytes)}; {folder} has {shown_bytes(free)} free"
    return Problem(KEY, what, _ELSEWHERE)


def _check_shared(path: Path, size: int) -> None:
    """Raise UserError on all ranks if one of them does not see a file of this size."""
    try:
        sees = path.stat().st_size >= size
    except OSError:
        sees = False
    for node, seen in ranks.gather_objects(sees):
        if not seen:
            what = f"the node {node} does not see {path.parent}, where rank 0 writes the hidden states"
            raise UserError(Problem(KEY, what, f"set model.data.cache_dir to a folder of all nodes, or {KEY}=False"))


def _complete(temporary: Path, target: Path, shape: TableShape, checksum: int) -> None:
    try:
        finish(temporary, shape, checksum)
    except DamagedHiddenFileError:
        what = "does not hold the hidden states that the ranks have written: its disk or file server failed"
        raise UserError(Problem(str(target.parent), what, _ELSEWHERE)) from None
