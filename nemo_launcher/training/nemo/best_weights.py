# SPDX-License-Identifier: Apache-2.0
"""The best weights of a training, taken back at its end."""

from __future__ import annotations

import contextlib

from nemo_launcher.adapters.injection import AdapterState
from nemo_launcher.errors import UserError
from nemo_launcher.runtime import ranks
from nemo_launcher.training.export import exported_weights
from nemo_launcher.training.nemo.model import AdapterLearningModel


def load_best(model: AdapterLearningModel, path: str) -> None:
    """Take over the weights of the best checkpoint.

    Where that is not kept, or damaged, they are those of the best adapter as it was exported; before any validation,
    and where neither is there, the last ones stay. Rank 0 reads for all: weights of which each rank has a part must not
    be of different steps.
    """
    state = ranks.broadcast_from_rank_zero(lambda: _best_weights(model, path))
    if state is not None:
        model.load_state_dict(state)
    elif model.best_val_loss is not None:
        what = f"the best weights (val_loss {model.best_val_loss:.4f}) are not there any more"
        print(f"{what}: the adapter is that of step {model.trainer.global_step}", flush=True)
        model.best_val_loss = None  # which is not this adapter's


def _best_weights(model: AdapterLearningModel, path: str) -> AdapterState | None:
    with contextlib.suppress(UserError, FileNotFoundError):
        if path:
            state: AdapterState = model.trainer.strategy.load_checkpoint(path)["state_dict"]
            model.adapters.check(state, path)
            return state
    return None if model.best_val_loss is None else exported_weights(model.settings.nemo_path, model.adapters)
