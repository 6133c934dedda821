# SPDX-License-Identifier: Apache-2.0
"""Selection of the best checkpoints, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_launcher.training.best_checkpoints import BestCheckpoints, checkpoint_name

pytestmark = pytest.mark.unit


def keep(best: BestCheckpoints, scores: list[float]) -> list[str]:
    """Add checkpoints with these metrics, named by index; return those that are kept."""
    for place, score in enumerate(scores):
        value = torch.tensor(score)
        if best.is_better(value):
            best.evict_worst()
            best.add(str(place), value)
    return list(best.scores)


@pytest.mark.parametrize(
    ("mode", "count", "left", "first"),
    [
        ("min", 2, ["1", "3"], "3"),
        ("max", 2, ["0", "2"], "2"),
        ("min", -1, ["0", "1", "2", "3", "4"], "3"),
        ("min", 0, [], ""),
        ("min", 1, ["3"], "3"),
    ],
)
def test_the_best_are_kept(mode: str, count: int, left: list[str], first: str) -> None:
    best = BestCheckpoints(mode, count)
    assert keep(best, [3.0, 2.0, 4.0, 1.0, 3.0]) == left
    assert best.best == first


def test_the_first_of_two_equal_ones_is_the_best_and_a_later_one_does_not_replace_it() -> None:
    best = BestCheckpoints("min", 1)
    assert keep(best, [2.0, 2.0]) == ["0"]


def test_a_figure_that_is_not_a_number_is_the_worst() -> None:
    nan = float("nan")
    best = BestCheckpoints("min", 2)
    assert keep(best, [nan, 2.0, 3.0, nan]) == ["1", "2"]
    assert keep(BestCheckpoints("max", 2), [nan, 2.0, nan, 1.0]) == ["1", "3"]


def test_those_that_are_gone_are_forgotten_and_moved_ones_found(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.ckpt", "c.ckpt"):
        (tmp_path / name).touch()
    scores = {f"/before/{name}.ckpt": torch.tensor(value) for name, value in (("a", 3.0), ("b", 1.0), ("gone", 0.5))}
    state = {"best_k_models": scores, "best_model_path": "/before/gone.ckpt", "best_model_score": torch.tensor(0.5)}
    best = BestCheckpoints("min", 5)
    best.restore(state, tmp_path)
    assert list(best.scores) == [str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt")]
    assert (best.best, float(best.best_score or 0)) == (str(tmp_path / "b.ckpt"), 1.0)
    fewer = BestCheckpoints("min", 0)
    fewer.restore(state, tmp_path)
    assert list(fewer.scores) == [str(tmp_path / "b.ckpt")]


def test_names_are_lightnings() -> None:
    """Like those of Lightning's ModelCheckpoint, so that names of earlier checkpoints are recognized."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    figures = {"val_loss": torch.tensor(1.23456), "epoch": torch.tensor(3), "step": torch.tensor(40)}
    for template in ("x--{val_loss:.4f}-{epoch}", "{epoch:02d}-{step}-last", "plain", "{absent:.2f}-{step}"):
        wanted = ModelCheckpoint(filename=template).format_checkpoint_name(dict(figures))
        assert checkpoint_name(template, figures) == wanted
