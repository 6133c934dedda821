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
from nemo_launcher.checkpoint.language_model import left_out_text
from nemo_launcher.errors import UserError
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def describe_source(stage: Stage) -> list[str]:
    """Return a line on the model that a conversion reads; none for other stages and unreadable models."""
    if isinstance(stage, Conversion):
        with contextlib.suppress(UserError, OSError):
            settings = stage.section.model
            model: HFFolder | GGUFModel = (
                read_folder(stage.source, language_model=settings.hf_language_model)
                if stage.source.is_dir()
                else read_model(stage.source)
            )
            return [f"{stage.name}: {', '.join(_facts(model, settings.precision))}"]
    return []


def _facts(model: HFFolder | GGUFModel, precision: str | int | None) -> Iterator[str]:
    config = model.config
    layers = next(config[key] for key in _LAYERS if key in config)
    whole = model.whole if isinstance(model, HFFolder) else None
    part = "is a" if whole is None else f"is a {whole.name}, of which the language model is taken: a"
    yield f"{title_of(model.path)} {part} {architecture_of(config)} of {layers} layers"
    weights = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    if weights:
        yield f"with {weights / 1e6:,.0f} million weights"
    stored = config.get("dtype", config.get("torch_dtype")) or "the type of its files"
    yield f"which are kept as {str(stored).removeprefix('torch.')}" if precision is None else f"stored as {precision}"
    if whole is not None and not model.tensors:  # pickles are not opened here
        yield "without its other parts"
    elif isinstance(model, HFFolder) and whole is not None:
        yield left_out_text({name: tensor.shape for name, tensor in model.left_out.items()})
