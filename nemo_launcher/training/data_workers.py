# SPDX-License-Identifier: Apache-2.0
"""DataLoader workers: their signals, and the report of a dead one, for which torch raises a plain RuntimeError."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.runtime import signals

_DEAD = re.compile(r"DataLoader worker \(pid.*")


def start_worker(number: int) -> None:
    """Prepare a worker process; number: its index, which torch passes (worker_init_fn)."""
    signals.heed_parent_alone()


@contextlib.contextmanager
def report_dead_workers(describe_saved: Callable[[], str]) -> Iterator[None]:
    """Turn torch's error about a dead worker into a UserError.

    describe_saved: returns a text about what training has saved.
    """
    try:
        yield
    except RuntimeError as error:
        found = _DEAD.search(str(error))
        if found is None:
            raise
        what = f"a process that prepares batches has died, perhaps because memory or /dev/shm is full ({found[0]})"
        fix = "launch again with more memory, or without such processes: model.data.num_workers=0"
        raise UserError(
            Problem("model.data.num_workers", f"{what}; training stops, {describe_saved()}", fix)
        ) from error
