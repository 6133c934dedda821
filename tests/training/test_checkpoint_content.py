# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with a correct checksum may have any origin: its content is checked before training uses it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.training.checkpoint_content import read_training
from nemo_launcher.training.checkpoint_file import write_checkpoint
from nemo_launcher.training.checkpoint_header import DamagedCheckpointError

pytestmark = pytest.mark.unit

RECORD = {
    "config": {"trainer": {}, "exp_manager": {}, "model": {}},
    "data": {"train_ds": ["a"], "validation_ds": ["b"]},
    "environment": {},
    "base": {"weights": "sha256:1", "settings": {}, "tokenizer": "t"},
}
CONTENT: dict[str, Any] = {
    "epoch": 0,
    "global_step": 4,
    "state_dict": {},
    "optimizer_states": [{}],
    "lr_schedulers": [],
    "callbacks": {},
    "loops": {"fit_loop": {}},
    "position": {"step": 4, "validated": True, "epochs_ended": 1, "stopped": ""},
    "finished": False,
    "figures": {},
    "record": RECORD,
    "best_val_loss": None,
    "loss_scale": {"value": 1.0, "good_steps": 0},
}


def places(values: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every key in nested dictionaries."""
    found = []
    for key, value in values.items():
        found.append((*above, key))
        found += places(value, (*above, key)) if isinstance(value, dict) else []
    return found


def test_what_training_writes_is_taken(tmp_path: Path) -> None:
    for record in (RECORD, {}):
        write_checkpoint(tmp_path / "a.ckpt", CONTENT | {"record": record})
        assert read_training(tmp_path / "a.ckpt")["global_step"] == 4


@pytest.mark.parametrize("place", places(CONTENT), ids=".".join)
@pytest.mark.parametrize("is_absent", [True, False])
def test_a_value_that_is_absent_or_of_another_kind(place: tuple[str, ...], is_absent: bool, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    if is_absent:
        del holder[place[-1]]
    else:
        holder[place[-1]] = 0.5 if isinstance(holder[place[-1]], dict) else {"a": 1}
    write_checkpoint(tmp_path / "a.ckpt", content)
    with pytest.raises(DamagedCheckpointError, match=place[-1]):
        read_training(tmp_path / "a.ckpt")
