# SPDX-License-Identifier: Apache-2.0
"""What to tell when a process that prepares batches dies: torch raises a RuntimeError where its batch is waited for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from nemo_launcher.errors import Problem, UserError

_DEAD = re.compile(r"DataLoader worker \(pid.*")


@contextlib.contextmanager
def report_dead_workers(describe_saved: Callable[[], str]) -> Iterator[None]:
    """Raise UserError in place of torch's error; describe_saved: says what training has saved."""
    try:
        yield
    except RuntimeError as error:
        found = _DEAD.search(str(error))
        if found is None:
            raise
        what = f"a process that prepares batches has died, as without memory or room in /dev/shm ({found[0]})"
        fix = "launch again, with more memory or without such processes: model.data.num_workers=0"
        raise UserError(
            Problem("model.data.num_workers", f"{what}; training stops, {describe_saved()}", fix)
        ) from error
