# SPDX-License-Identifier: Apache-2.0
"""Progress while a job runs: a bar with loss, tokens/s and time left on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import time

from tqdm import tqdm

from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.progress_file import duration

# A log gets a line at most this often, so that hours of training leave a readable file.
LINE_INTERVAL_SECONDS = 5.0


class Progress:
    """Counts steps up to a total and shows where they stand. Use as a context manager.

    The launcher sets NEMO_LAUNCHER_PROGRESS=bar when somebody watches its terminal; otherwise lines are printed. Of
    several ranks the first one shows.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, unit: str = "step") -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self._start, self._first = time.monotonic(), done
        self._last_line = 0.0
        self._bar = None
        if os.environ.get("NEMO_LAUNCHER_PROGRESS") == "bar" and ranks.rank() == 0:
            self._bar = tqdm(total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands and end its line."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int = 1, **figures: str) -> None:
        """Count `steps` more; `figures` are shown beside them, as loss="1.23"."""
        self.done += steps
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(steps)
            return
        now = time.monotonic()
        if self.done < self.total and now - self._last_line < LINE_INTERVAL_SECONDS:
            return
        self._last_line = now
        shown = "".join(f"  {name} {value}" for name, value in figures.items())
        print(
            f"{self.title}: {self.unit} {self.done} of {self.total}{shown}  {duration(self.seconds_left)} left",
            flush=True,
        )

    @property
    def seconds_left(self) -> float:
        """At the pace so far."""
        return (time.monotonic() - self._start) / max(1, self.done - self._first) * max(0, self.total - self.done)
