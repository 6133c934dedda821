# SPDX-License-Identifier: Apache-2.0
"""Export of a trained adapter: the `.nemo` archive and a safetensors copy beside it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from omegaconf import DictConfig

from nemo_launcher.adapters.archive import read_adapter, save_adapter, save_safetensors
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.config.literal import plain_mapping
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base


def write_adapter(config: DictConfig, settings: Ia3Model, base: Base, state: AdapterState, second: Path | None) -> None:
    """Write a complete adapter to model.nemo_path, and to `second` if it is given, each file atomically.

    config: the `model` section as archives store it; settings: the same section, typed.
    """
    content = plain_mapping(config)
    # The archive holds complete tensors, whatever the parallel sizes of the training.
    content |= {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    content["existing_tasks"] = [*(settings.existing_tasks or []), *settings.new_tasks]
    content |= {"base_fingerprint": base.fingerprint, "base_settings": base.settings, "base_checksum": base.checksum}
    paths: list[str | Path] = [settings.nemo_path, *([second] if second else [])]
    for path in paths:
        save_adapter(path, content, state)
    save_safetensors(Path(settings.nemo_path).with_suffix(".safetensors"), content, state)


def exported_weights(path: str, adapters: AdapterSet) -> AdapterState | None:
    """Return the weights of an exported adapter; None if they are absent, damaged or do not fit these adapters."""
    with contextlib.suppress(UserError):
        state = read_adapter(path)[1]
        adapters.check(state, path)
        return state
    return None
