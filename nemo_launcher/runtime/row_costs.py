# SPDX-License-Identifier: Apache-2.0
"""The cost of a row of tokens on this machine, by its length and the number of threads that run it.

training.calibration measures it once for each machine, model shape and dtype, and keeps the result in the user's cache
folder. data.batching cuts a global batch by it. Imports no torch: the launcher estimates times with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import write_json, write_text
from nemo_launcher.files.foreign import load_json, read_bytes
from nemo_launcher.files.owner import Owner, this_process

FORMAT = 1
_STARTED = ".started"
_RUNNING_SECONDS = 600  # much longer than a calibration takes
# Without a calibration: the fixed cost of a row in tokens, because each row reads all weights (for SmolLM2-135M on an
# AMD EPYC 25 in fp32 and 57 in bf16), and the share of its work that more threads do not speed up.
ROW_OVERHEAD = 32
_SERIAL_SHARE = 0.25
# Beyond these, what a file says is no measurement, and sums of costs could overflow.
_MAX_TOKENS = 2**31
_MAX_SECONDS = 1e9


@dataclass(frozen=True, slots=True)
class RowCosts:
    """Seconds of forward and backward of a row, measured at some lengths; without measurements, relative costs."""

    lengths: tuple[int, ...] = ()
    """The numbers of tokens measured, ascending; empty for the fixed rules."""
    seconds: Mapping[int, tuple[float, ...]] | None = None
    """Seconds of a row of each length, by the number of threads that run it while others run rows beside it."""
    fitting_tokens: int | None = None
    """About the number of tokens of a row that fit into the memory of the GPU; None if unknown, or on a CPU."""

    @property
    def is_calibrated(self) -> bool:
        """Whether costs are measured."""
        return bool(self.lengths)

    def has(self, threads: int) -> bool:
        """Return whether rows run by this number of threads were measured."""
        return self.seconds is not None and threads in self.seconds

    def cost(self, tokens: float, threads: int) -> float:
        """Return the seconds of a row that `threads` threads run, or its relative cost under the fixed rules.

        Between two measured lengths the cost is linear; outside it continues the nearest line. Raises KeyError for a
        number of threads that was not measured.
        """
        if self.seconds is None:
            return (tokens + ROW_OVERHEAD) * (_SERIAL_SHARE + (1 - _SERIAL_SHARE) / threads)
        seconds = self.seconds[threads]
        right = min(max(1, bisect_left(self.lengths, tokens)), len(self.lengths) - 1)
        start, stop = self.lengths[right - 1], self.lengths[right]
        slope = (seconds[right] - seconds[right - 1]) / (stop - start)
        return max(seconds[right - 1] + (tokens - start) * slope, seconds[0] * min(1.0, tokens / self.lengths[0]))

    def as_dict(self) -> dict[str, object]:
        """Return plain values, for a checkpoint or a cache file."""
        seconds = {str(threads): list(row) for threads, row in (self.seconds or {}).items()}
        fitting = {} if self.fitting_tokens is None else {"fitting_tokens": self.fitting_tokens}
        return {"lengths": list(self.lengths), "seconds": seconds, **fitting}

    @classmethod
    def from_dict(cls, values: object) -> RowCosts | None:
        """Invert as_dict; return None for anything else."""
        if not isinstance(values, dict):
            return None
        lengths, seconds = values.get("lengths"), values.get("seconds")
        if lengths == [] and seconds == {}:
            fitting = values.get("fitting_tokens")
            return FIXED if fitting is None else cls(fitting_tokens=fitting) if _is_length(fitting) else None
        if not _is_ascending(lengths) or not isinstance(seconds, dict) or not seconds:
            return None
        if not all(_is_count(threads) and _are_seconds(row, len(lengths)) for threads, row in seconds.items()):
            return None
        return cls(tuple(lengths), {int(threads): tuple(row) for threads, row in seconds.items()})


FIXED = RowCosts()


def _is_ascending(lengths: object) -> TypeGuard[list[int]]:
    return (
        isinstance(lengths, list)
        and len(lengths) > 1
        and all(map(_is_length, lengths))
        and all(first < second for first, second in pairwise(lengths))
    )


def _is_length(tokens: object) -> TypeGuard[int]:
    return type(tokens) is int and 0 < tokens <= _MAX_TOKENS


def _is_count(threads: object) -> bool:
    """Return whether a key is a number of threads in the form that as_dict gives it."""
    return isinstance(threads, str) and re.fullmatch("[1-9][0-9]{0,5}", threads) is not None


def _are_seconds(row: object, count: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == count
        and all(isinstance(value, float) and 0 < value <= _MAX_SECONDS for value in row)  # not NaN either
        and all(first <= second for first, second in pairwise(row))
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration is for, and its file in the cache folder."""

    cpu: str
    """The name of the CPU."""
    threads: int
    """The number of threads of the process."""
    model: str
    """The shape of the base model."""
    dtype: str
    """The dtype of the activations."""
    torch: str
    """The version of torch."""

    @property
    def path(self) -> Path:
        """The file with the costs."""
        digest = hashlib.sha256(json.dumps([FORMAT, asdict(self)]).encode()).hexdigest()
        return cache_folder() / f"row_costs-{digest[:16]}.json"

    def was_killed(self) -> bool:
        """Return whether an earlier calibration was killed, and forget it: the next process may try again.

        A process of another machine or container counts as killed _RUNNING_SECONDS after its start.
        """
        try:
            started = self.path.with_suffix(_STARTED)
            owner = Owner.parse(read_bytes(started, 200).decode("ascii", "replace"))
            age = time.time() - started.stat().st_mtime
        except (OSError, UserError):
            return False
        if owner is not None and not owner.is_dead and (owner.is_here or age < _RUNNING_SECONDS):
            return False  # it is running
        with contextlib.suppress(OSError):
            started.unlink()
        return True

    @contextlib.contextmanager
    def in_progress(self) -> Iterator[None]:
        """Mark the calibration as started until the block ends; after a kill the mark remains (was_killed)."""
        with contextlib.suppress(OSError, UserError):
            write_text(self.path.with_suffix(_STARTED), str(this_process()))
        try:
            yield
        finally:
            with contextlib.suppress(OSError, UserError):
                self.path.with_suffix(_STARTED).unlink()

    def read(self) -> RowCosts | None:
        """Return the costs in the cache; None if there are none or the file is damaged."""
        try:
            costs = RowCosts.from_dict(load_json(self.path).get("costs"))
        except (OSError, UserError, AttributeError):
            return None
        return costs if costs is not None and costs.is_calibrated else None

    def write(self, costs: RowCosts) -> None:
        """Write the costs atomically. Raises OSError if the folder cannot be written, UserError if there is none."""
        write_json(self.path, {"for": asdict(self), "costs": costs.as_dict()})


def cache_folder() -> Path:
    """Return the user's cache folder for this program (XDG_CACHE_HOME, by default ~/.cache).

    Raises UserError for a user without a home folder, as in a container that runs with any user id: a relative path
    would leave files in the current folder.
    """
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.path.expanduser("~"), ".cache")):
        if os.path.isabs(base):
            return Path(base) / "nemo-adapter-launcher"
    raise UserError(Problem("XDG_CACHE_HOME", "is not set, and this user has no home folder"))


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's name as the system reports it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
