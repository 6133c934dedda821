# SPDX-License-Identifier: Apache-2.0
"""Selection and file names of the best checkpoints by a monitored metric, and its state in later checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nemo_launcher.training.checkpoint_header import SUFFIX

_FIELD = re.compile(r"\{([^{}:]*)(:[^{}]*)?\}")


def checkpoint_name(template: str, figures: Mapping[str, torch.Tensor]) -> str:
    """Return a file name in which `{val_loss:.4f}` becomes `val_loss=1.2345`; an absent metric counts as 0."""

    def filled(match: re.Match[str]) -> str:
        value = figures.get(match[1], torch.tensor(0))
        return f"{match[1]}=" + f"{{{match[2] or ''}}}".format(value.item())

    return _FIELD.sub(filled, template) + SUFFIX


@dataclass(slots=True)
class BestCheckpoints:
    """The best checkpoints of one folder by a monitored metric."""

    mode: str
    """`min` or `max`: which values of the metric are best."""
    count: int
    """The number of checkpoints to keep; -1 keeps all."""
    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    """The metric of each kept checkpoint, by path."""
    best: str = ""
    """The path of the best checkpoint."""
    best_score: torch.Tensor | None = None
    """The metric of the best checkpoint."""

    @property
    def worst(self) -> str:
        """The path of the checkpoint to replace next; empty if there are no checkpoints."""
        return max(self.scores, key=self._rank) if self.scores else ""

    def is_better(self, score: torch.Tensor) -> bool:
        """Return whether a checkpoint with this metric is among the best."""
        if self.count in (-1, 0):
            return self.count == -1
        return len(self.scores) < self.count or self._order(score) < self._rank(self.worst)

    def evict_worst(self) -> str:
        """Forget the worst checkpoint if the limit is reached, and return its path; return "" if there is room."""
        if self.count < 1 or len(self.scores) < self.count:
            return ""
        replaced = self.worst
        del self.scores[replaced]
        return replaced

    def add(self, path: str, score: torch.Tensor) -> None:
        """Add a checkpoint. A NaN metric ranks last."""
        if torch.isnan(score):
            score = torch.tensor(math.inf if self.mode == "min" else -math.inf, device=score.device)
        self.scores[path] = score
        self.best = min(self.scores, key=self._rank)
        self.best_score = self.scores[self.best]

    def restore(self, state: Mapping[str, Any], folder: Path) -> None:
        """Restore the selection from a checkpoint's state, without files that no longer exist.

        folder: where the checkpoints are now, which differs from their saved paths when the results were moved.
        """
        kept = {current_path(folder, path): score for path, score in state["best_k_models"].items()}
        kept.pop("", None)
        best, score = current_path(folder, state["best_model_path"]), state["best_model_score"]
        if best and best not in kept and score is not None:
            kept[best] = score
        order = sorted(kept, key=lambda path: self._order(kept[path]))
        if self.count >= 0:  # the limit may be lower than before; the best always stays
            order = order[: max(self.count, 1)]
        self.scores = {path: kept[path] for path in kept if path in order}
        self.best, self.best_score = (order[0], kept[order[0]]) if order else (best, self.best_score)

    def _rank(self, path: str) -> float:
        return self._order(self.scores[path])

    def _order(self, score: torch.Tensor) -> float:
        return -float(score) if self.mode == "max" else float(score)


def current_path(folder: Path, path: str) -> str:
    """Return the path of a checkpoint in `folder`, else its saved path; empty if the file no longer exists."""
    here = folder / Path(path).name
    return str(here) if path and here.is_file() else path if path and Path(path).is_file() else ""
