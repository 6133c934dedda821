# SPDX-License-Identifier: Apache-2.0
"""Restoring the best weights at the end of a training."""

from __future__ import annotations

import contextlib

from nemo_launcher.adapters.injection import AdapterState
from nemo_launcher.errors import UserError
from nemo_launcher.runtime import ranks
from nemo_launcher.training.export import exported_weights
from nemo_launcher.training.nemo.model import AdapterLearningModel


def load_best(model: AdapterLearningModel, path: str) -> None:
    """Load the weights of the best checkpoint.

    If that checkpoint is missing or damaged, the weights of the best exported adapter are loaded instead. Without
    either, and before any validation, the last weights stay. Rank 0 reads for all ranks, so that all parts are of the
    same step.
    """
    state = ranks.broadcast_from_rank_zero(lambda: _best_weights(model, path))
    if state is not None:
        model.load_state_dict(state)
    elif model.best.is_known:
        what = f"the best weights ({model.best}) no longer exist"
        print(f"{what}: the adapter is that of step {model.trainer.global_step}", flush=True)
        model.best.forget()  # they are not the figures of this adapter


def _best_weights(model: AdapterLearningModel, path: str) -> AdapterState | None:
    with contextlib.suppress(UserError, FileNotFoundError):
        if path:
            state: AdapterState = model.trainer.strategy.load_checkpoint(path)["state_dict"]
            model.adapters.check(state, path)
            return state
    return exported_weights(model.settings.nemo_path, model.adapters) if model.best.is_known else None
