# SPDX-License-Identifier: Apache-2.0
"""What a launch says about a model to be converted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from nemo_launcher.checkpoint.gguf_model import GGUFModel, read_model
from nemo_launcher.checkpoint.hf_architectures import architecture_of
from nemo_launcher.checkpoint.hf_folder import HFFolder, read_folder
from nemo_launcher.checkpoint.hub_model import title_of
from nemo_launcher.errors import UserError
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def describe_source(stage: Stage) -> list[str]:
    """Return a line on the model that a conversion reads; none for other stages and unreadable models."""
    if isinstance(stage, Conversion):
        with contextlib.suppress(UserError, OSError):
            model = read_folder(stage.source) if stage.source.is_dir() else read_model(stage.source)
            return [f"{stage.name}: {', '.join(_facts(model, stage.section.model.precision))}"]
    return []


def _facts(model: HFFolder | GGUFModel, precision: str | int | None) -> Iterator[str]:
    config = model.config
    layers = next(config[key] for key in _LAYERS if key in config)
    yield f"{title_of(model.path)} is a {architecture_of(config)} of {layers} layers"
    weights = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    if weights:
        yield f"with {weights / 1e6:,.0f} million weights"
    stored = config.get("dtype", config.get("torch_dtype")) or "the type of its files"
    yield f"which are kept as {str(stored).removeprefix('torch.')}" if precision is None else f"stored as {precision}"
