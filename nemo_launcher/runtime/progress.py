# SPDX-License-Identifier: Apache-2.0
"""Progress of a running job: a bar with loss, tokens/s and time left in a terminal, plain lines in a log."""

from __future__ import annotations

import os
import time

from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.bars import Bar, new_bar
from nemo_launcher.runtime.progress_file import duration

# The minimum time between two lines, so that the log of a long training stays readable.
LINE_INTERVAL_SECONDS = 5.0


class Progress:
    """Counts and shows steps up to a total. Use it as a context manager.

    The launcher sets NEMO_LAUNCHER_PROGRESS=bar if its output is a terminal; otherwise lines are printed. Only rank 0
    shows a bar.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, unit: str = "step") -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self._start, self._first = time.monotonic(), done
        self._last_line = 0.0
        self._bar: Bar | None = None
        if os.environ.get("NEMO_LAUNCHER_PROGRESS") == "bar" and ranks.rank() == 0:
            self._bar = new_bar(total, unit, done=done, title=title, leave=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is and terminate its line."""
        if self._bar is not None:
            self._bar.close()

    def show(self, **figures: str) -> None:
        """Show figures that changed after the last step in the bar; lines have them at the next step."""
        if self._bar is not None:
            self._bar.set_postfix(figures)

    def advance(self, steps: int = 1, **figures: str) -> None:
        """Count `steps` more; `figures` are shown beside them, such as loss="1.23"."""
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
        """The estimated time left, from the average pace so far."""
        return (time.monotonic() - self._start) / max(1, self.done - self._first) * max(0, self.total - self.done)
