# SPDX-License-Identifier: Apache-2.0
"""Positions of tensors in a model's weight files. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from nemo_launcher.errors import Problem
from nemo_launcher.files.foreign import kind_problem

LFS_HEADER = b"version https://git-lfs"
NAMED = 10
"""The number of tensors or files listed in a message; the others are counted."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors or GGUF file."""

    path: Path
    """The file."""
    offset: int
    """Its first byte in the file."""
    num_bytes: int
    """Its length in bytes."""
    shape: tuple[int, ...]
    """Its size by dimension, the last dimension contiguous."""
    kind: str
    """The format's name of its type, such as BF16, F8_E4M3 or Q4_K."""

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return prod(self.shape)


def pointer_problem(path: Path) -> Problem | None:
    """Return a Problem for a path that is not a regular file, is empty or a Git LFS pointer, or None."""
    problem = kind_problem(path)
    if problem is not None:
        return problem
    with path.open("rb") as stream:
        beginning = stream.read(len(LFS_HEADER))
    if beginning == LFS_HEADER:
        fix = "run `git lfs pull` in the cloned folder, or download the file itself"
        return Problem(str(path), "is a Git LFS pointer, not the file itself", fix)
    return None if beginning else Problem(str(path), "is empty", "copy or download it again")


def shown(name: str) -> str:
    """Return an untrusted name for printing: at most 100 characters, without control characters."""
    return name if name.isprintable() and len(name) <= 100 else repr(name[:100])


def some_of(names: Iterable[str]) -> str:
    """Return the first names of a list, and how many there are."""
    ordered = [shown(name) for name in sorted(names)]
    rest = len(ordered) - NAMED
    return ", ".join(ordered[:NAMED]) + (f" and {rest} more ({len(ordered)} in all)" if rest > 0 else "")
