# SPDX-License-Identifier: Apache-2.0
"""Format jobs as a table of at most WIDTH columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.clusters.text import visible
from nemo_launcher.runtime.progress_file import duration

WIDTH = 120
HEADINGS = ("stage", "job", "id", "state", "step", "val_loss", "left", "output", "folder")
WIDEST = {"stage": 20, "job": 28, "id": 10, "state": 36, "step": 15, "val_loss": 10, "left": 10, "output": 7}
LEAST = {"folder": 16, "state": 24, "job": 12, "stage": 10}
GAP = "  "


def table(found: Sequence[JobStatus], results_dir: Path) -> str:
    """Return the jobs as a table: one line per job, with a long reason of its state on the lines below.

    Folders are relative to `results_dir`. Long names are shortened in the middle; --json has them in full.
    """
    rows = [HEADINGS, *(_row(status, results_dir) for status in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    widths = [min(width, WIDEST.get(name, width)) for width, name in zip(widths, HEADINGS, strict=True)]
    _narrow(widths)
    lines = []
    for number, row in enumerate(rows):
        cells = [shortened(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(GAP.join(cells).rstrip())
        if number > 0:
            lines += _reason_lines(found[number - 1])
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """Return text, shortened in the middle when it is longer than `width`."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _narrow(widths: list[int]) -> None:
    """Reduce column widths until the table fits: the folder first, the stage last."""
    for name, least in LEAST.items():
        column = HEADINGS.index(name)
        surplus = sum(widths) + len(GAP) * (len(widths) - 1) - WIDTH
        if surplus > 0:
            widths[column] = max(min(least, widths[column]), widths[column] - surplus)


def _state(status: JobStatus) -> str:
    text = f"{status.state} ({visible(status.reason)})"
    return text if status.reason and len(text) <= WIDEST["state"] else status.state


def _reason_lines(status: JobStatus) -> list[str]:
    if not status.reason or _state(status) != status.state:
        return []
    return textwrap.wrap(visible(status.reason), WIDTH, initial_indent="    ", subsequent_indent="    ")


def _row(status: JobStatus, results_dir: Path) -> tuple[str, ...]:
    record, training = status.record, status.training
    loss = training.val_loss if training is not None else None
    folder = record.folder
    folder = folder.relative_to(results_dir) if folder.is_relative_to(results_dir) else folder
    cells = (
        record.stage,
        record.name,
        record.job_id or "-",
        _state(status),
        f"{training.step}/{training.max_steps}" if training is not None else "-",
        f"{loss:.3f}" if loss is not None else "-",
        _left(status),
        "?" if record.damage else "no" if status.missing_outputs else "written",
        str(folder),
    )
    return tuple(visible(cell) for cell in cells)


def _left(status: JobStatus) -> str:
    """Return the time left of the training, or else of the time limit."""
    left = status.training_seconds_left
    if left is None and status.is_active and status.state == "running":
        left = status.seconds_left
    return "-" if left is None else duration(left)
