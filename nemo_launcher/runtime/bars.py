# SPDX-License-Identifier: Apache-2.0
"""Progress bars: one line that fits the terminal, however wide it is. All bars of the package come from here."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from nemo_launcher.runtime.progress_file import TERMINAL_VARIABLE

NOTEBOOK_COLUMNS = 80
_LEAST_COLUMNS = 10
_FORMS = (
    "{l_bar}{bar}{r_bar}",
    "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
    "{n_fmt}/{total_fmt} {remaining} left{postfix}",
)
"""The longest form that fits is shown: without the bar, without the title, and then with fewer figures."""


class Bar(tqdm):
    """A bar on standard error; `total` steps of `unit`."""

    monitor_interval = 0  # no thread that outlives the bar

    def __str__(self) -> str:
        """Return the bar in the terminal's width."""
        return fitted(self.format_dict, columns(self.fp))


def new_bar(total: int, unit: str, *, done: int = 0, title: str | None = None, leave: bool = False) -> Bar:
    """Return a bar, which draws nothing unless a terminal or a notebook shows it. leave: whether it stays at the end.

    title: given for a job, whose launcher decides whether there is a terminal.
    """
    is_shown = title is not None or is_notebook() or _is_terminal(sys.stderr)
    return Bar(total=total, initial=done, desc=title, unit=unit, leave=leave, disable=not is_shown)


@contextlib.contextmanager
def above_bars() -> Iterator[None]:
    """Erase the bars for what is printed inside the context, and draw them again below it."""
    with Bar.external_write_mode():
        yield


def fitted(state: dict[str, Any], width: int) -> str:
    """Return a bar of at most `width` columns. state: tqdm's format_dict."""
    figures = str(state["postfix"] or "").split(", ")
    states = [(form, len(figures)) for form in _FORMS] + [(_FORMS[-1], count) for count in range(len(figures))][::-1]
    for form, count in states:
        shown = {**state, "bar_format": form, "postfix": ", ".join(figures[:count])}
        if len(_text(shown, None)) <= width:
            return _text(shown, width)
    return _text(shown, None)[:width]


def _text(state: dict[str, Any], width: int | None) -> str:
    return str(tqdm.format_meter(**{**state, "ncols": width})).strip(": ")


def columns(stream: Any) -> int:
    """Return the columns that a line may have: those of the stream's terminal, or of the launcher's, less one."""
    if is_notebook():
        return NOTEBOOK_COLUMNS
    return max(_LEAST_COLUMNS, (_of_stream(stream) or _of_launcher() or shutil.get_terminal_size().columns) - 1)


def is_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    return "ipykernel" in sys.modules and not _is_terminal(sys.stderr)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and bool(stream.isatty())


def _of_stream(stream: Any) -> int | None:
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


def _of_launcher() -> int | None:
    name = os.environ.get(TERMINAL_VARIABLE)
    if not name:
        return None
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor).columns or None
    except OSError:
        return None
    finally:
        os.close(descriptor)
