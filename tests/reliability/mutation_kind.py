# SPDX-License-Identifier: Apache-2.0
"""What a kind of mutated input is: the valid input, its formats, and how the project uses it."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.reliability.mutants import Format, hostile_values
from tests.reliability.small_jobs import Inputs

PROBE = "question: Where does Anna live? 2023 \u00e9\u4e16 answer:"


class Kind(ABC):
    """One kind of input. inputs: created once and only read; canary: a file that no mutant may create."""

    name: str
    once: int = 200
    """The number of mutants that one forked child processes in sequence."""
    wants_processes = False
    """Whether its use starts programs, so that programs do not indicate executed code."""

    def __init__(self, inputs: Inputs, canary: Path) -> None:
        self.inputs, self.values, self.canary = inputs, hostile_values(canary), canary

    @abstractmethod
    def make(self, folder: Path) -> None:
        """Write the valid input into an empty folder."""

    @abstractmethod
    def formats(self) -> Mapping[str, Format]:
        """Return its files to mutate, and their formats."""

    @abstractmethod
    def use(self, folder: Path, out: Path) -> Any:
        """Use the input like a job or verb; return the result as JSON values."""

    def choose(self, draw: random.Random) -> str:
        """Return the file to mutate."""
        return draw.choice(sorted(self.formats()))

    def must_agree(self, way: str) -> bool:
        """Return whether mutants made in this way must give the result of the valid input if they are accepted."""
        return way == "harmless"


def digest(*contents: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def digest_of_tensors(tensors: Mapping[str, Any]) -> str:
    """Return a hash of tensors and their names."""
    parts = [
        f"{name} {t.dtype} {tuple(t.shape)}".encode() + t.contiguous().numpy().tobytes() for name, t in tensors.items()
    ]
    return digest(*sorted(parts))
