# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints are kept: the best by a figure. Their names, and what a checkpoint says of the others."""

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
    """Return a file name in which `{val_loss:.4f}` is `val_loss=1.2345`; a figure that is absent counts as 0."""

    def filled(match: re.Match[str]) -> str:
        value = figures.get(match[1], torch.tensor(0))
        return f"{match[1]}=" + f"{{{match[2] or ''}}}".format(value.item())

    return _FIELD.sub(filled, template) + SUFFIX


@dataclass(slots=True)
class BestCheckpoints:
    """The best checkpoints by a figure, in one folder."""

    mode: str
    """`min` or `max`: which of the figure's values are the best."""
    count: int
    """How many are kept; -1: all."""
    scores: dict[str, torch.Tensor] = field(default_factory=dict)
    """The figure of each that is kept, by path."""
    best: str = ""
    """The path of the best."""
    best_score: torch.Tensor | None = None
    """Its figure."""

    @property
    def worst(self) -> str:
        """The path of the one that the next better one replaces; empty without any."""
        return max(self.scores, key=self._rank) if self.scores else ""

    def is_better(self, score: torch.Tensor) -> bool:
        """Whether a checkpoint with this figure is to be kept."""
        if self.count in (-1, 0):
            return self.count == -1
        return len(self.scores) < self.count or self._order(score) < self._rank(self.worst)

    def evict_worst(self) -> str:
        """Return the path of the one that the next replaces, which counts no longer; empty where there is room."""
        if self.count < 1 or len(self.scores) < self.count:
            return ""
        replaced = self.worst
        del self.scores[replaced]
        return replaced

    def add(self, path: str, score: torch.Tensor) -> None:
        """Count a checkpoint. One whose figure is not a number is the worst of all."""
        if torch.isnan(score):
            score = torch.tensor(math.inf if self.mode == "min" else -math.inf, device=score.device)
        self.scores[path] = score
        self.best = min(self.scores, key=self._rank)
        self.best_score = self.scores[self.best]

    def restore(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on with those of a checkpoint's state that are still there, in `folder` where the results were moved."""
        kept = {current_path(folder, path): score for path, score in state["best_k_models"].items()}
        kept.pop("", None)
        best, score = current_path(folder, state["best_model_path"]), state["best_model_score"]
        if best and best not in kept and score is not None:
            kept[best] = score
        order = sorted(kept, key=lambda path: self._order(kept[path]))
        if self.count >= 0:  # fewer than before, but never the best alone gone
            order = order[: max(self.count, 1)]
        self.scores = {path: kept[path] for path in kept if path in order}
        self.best, self.best_score = (order[0], kept[order[0]]) if order else (best, self.best_score)

    def _rank(self, path: str) -> float:
        return self._order(self.scores[path])

    def _order(self, score: Any) -> float:
        return -float(score) if self.mode == "max" else float(score)


def current_path(folder: Path, path: str) -> str:
    """Return where a checkpoint is now: in `folder`, or where it was; empty for one that is gone."""
    here = folder / Path(path).name
    return str(here) if path and here.is_file() else path if path and Path(path).is_file() else ""
